#define _GNU_SOURCE
#include "engine/hosttime.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "ph_atomic.h"

#define STEP_NS 1000000
#define TORN_NS INT64_C(100000)
#define READINGS_MAX 4
#define INDEX_BITS 16
#define INDEX_MASK ((UINT64_C(1) << INDEX_BITS) - 1)

static int64_t later(int64_t a, int64_t b) { return a > b ? a : b; }

int64_t ph_slewed(int64_t host_ns, int64_t elapsed_ns, int64_t slew_per_mille) {
    /* wide: a machine may have slept for a year */
    return host_ns + elapsed_ns - (int64_t)((__int128)elapsed_ns * slew_per_mille / 1000);
}

void ph_host_clock_init(struct ph_host_clock *clock, struct ph_host_page *page, uint32_t writer,
                        struct ph_clock_source source, int64_t jump_ns_max, int64_t slew_per_mille) {
    memset(clock, 0, sizeof *clock);
    clock->page = page;
    clock->writer = writer;
    clock->source = source;
    clock->jump_ns_max = jump_ns_max;
    clock->slew_per_mille = slew_per_mille;
    source.read(source.context, &clock->realtime_ns, &clock->boottime_ns);
}

/* Release and acquire on each word: a reader that sees a word of a newer moment sees, after it, that `current` moved. */
static int64_t load(const int64_t *word) { return (int64_t)ph_load_acquire((const uint64_t *)(const void *)word); }
static void store(int64_t *word, int64_t value) { ph_store_release((uint64_t *)(void *)word, (uint64_t)value); }

/* Returns the value of `current` that the moment belongs to. */
static uint64_t newest_moment(const struct ph_host_page *page, struct ph_moment *moment) {
    uint64_t current;
    do {
        current = ph_load_acquire(&page->current); /* pairs with publish() */
        const struct ph_moment *entry = &page->moments[(current & INDEX_MASK) % PH_MOMENTS_MAX];
        moment->host_ns = load(&entry->host_ns);
        moment->boottime_ns = load(&entry->boottime_ns);
        moment->realtime_ns = load(&entry->realtime_ns);
    } while (ph_load_relaxed(&page->current) != current);
    return current;
}

/* 0: somebody else published since `current` was read. */
static int publish(struct ph_host_page *page, uint32_t writer, uint64_t current, const struct ph_moment *moment) {
    uint64_t index = 2 * (uint64_t)writer;
    index += index == (current & INDEX_MASK);
    struct ph_moment *entry = &page->moments[index];
    store(&entry->host_ns, moment->host_ns);
    store(&entry->boottime_ns, moment->boottime_ns);
    store(&entry->realtime_ns, moment->realtime_ns);
    uint64_t next = ((current >> INDEX_BITS) + 1) << INDEX_BITS | index;
    return ph_exchange_if(&page->current, current, next); /* pairs with newest_moment() */
}

void ph_host_page_moment(const struct ph_host_page *page, struct ph_moment *moment) { newest_moment(page, moment); }

void ph_host_page_set_moment(struct ph_host_page *page, const struct ph_moment *moment) {
    while (!publish(page, PH_SUPERVISOR_WRITER, ph_load_acquire(&page->current), moment)) {
    }
}

/* V at a reading, from the newest moment. */
static int64_t host_time_of(struct ph_host_clock *clock, const struct ph_moment *moment, int accepted) {
    int64_t elapsed_ns = later(clock->boottime_ns - moment->boottime_ns, 0);
    int64_t jump_ns = clock->realtime_ns - (moment->host_ns + elapsed_ns);
    if (jump_ns > clock->jump_ns_max && !accepted) {
        clock->jump_ns = jump_ns;
        return moment->host_ns + elapsed_ns;
    }
    clock->jump_ns = 0;
    return later(clock->realtime_ns, ph_slewed(moment->host_ns, elapsed_ns, clock->slew_per_mille));
}

/*
 * The two clocks are read one after the other. A process that loses the processor in between reads a wall clock that
 * seems to have stepped back, and V would lead it: such a pair is read again. A step is still there then.
 */
static void read_source(struct ph_host_clock *clock) {
    int64_t realtime_ns;
    int64_t boottime_ns;
    int64_t elapsed_ns;
    int tries = 0;
    do {
        clock->source.read(clock->source.context, &realtime_ns, &boottime_ns);
        elapsed_ns = later(boottime_ns - clock->boottime_ns, 0);
    } while (realtime_ns < clock->realtime_ns + elapsed_ns - TORN_NS && ++tries < READINGS_MAX);
    clock->steps_back += realtime_ns < clock->realtime_ns + elapsed_ns - STEP_NS;
    clock->realtime_ns = realtime_ns;
    clock->boottime_ns += elapsed_ns; /* never back: a reading that goes to and fro would add each step */
}

int64_t ph_host_clock_read(struct ph_host_clock *clock) {
    read_source(clock);
    for (;;) {
        struct ph_moment newest;
        uint64_t current = newest_moment(clock->page, &newest);
        uint64_t accept_jump = ph_load_acquire(&clock->page->accept_jump); /* pairs with ph_host_clock_accept() */
        struct ph_moment moment = {.host_ns = host_time_of(clock, &newest, accept_jump != 0),
                                   .boottime_ns = later(clock->boottime_ns, newest.boottime_ns),
                                   .realtime_ns = clock->realtime_ns};
        int same_ms = moment.host_ns / PH_NS_PER_MS == newest.host_ns / PH_NS_PER_MS;
        if (same_ms || publish(clock->page, clock->writer, current, &moment)) {
            if (accept_jump != 0) {
                ph_exchange_if(&clock->page->accept_jump, accept_jump, 0);
            }
            clock->host_ns = moment.host_ns;
            clock->ahead_ns = later(moment.host_ns - clock->realtime_ns, 0);
            return moment.host_ns;
        }
    }
}

int ph_file_birth(int fd, uint64_t *inode, int64_t *birth_ns) {
    struct statx status;
    if (statx(fd, "", AT_EMPTY_PATH, STATX_INO | STATX_BTIME, &status) != 0) {
        return -1;
    }
    *inode = status.stx_ino;
    *birth_ns = status.stx_mask & STATX_BTIME
                    ? (int64_t)status.stx_btime.tv_sec * 1000000000 + (int64_t)status.stx_btime.tv_nsec
                    : 0;
    return 0;
}

void ph_host_clock_accept(struct ph_host_page *page) {
    ph_store_release(&page->accept_jump, 1); /* pairs with ph_host_clock_read() */
}
