/*
 * The consumer's side of a ring of grants.
 *
 * Invariants
 * - An id is claimed (next_id moved on) before it is returned, and `alive` is looked at after the claim: a child that
 *   was forked between the two finds the page wiped and gets nothing. A fork after the look is a fork after the call.
 *   A call that claims more than once looks once more at its end.
 * - A grant is copied into this private page before the shared cursor moves over its slot.
 * - Prefetched ids leave a handle in increasing order, and above `floor`. Strict ids are an order of their own: they
 *   leave the floor alone, or each of them would burn what has been prefetched.
 * - Freshness: a grant's deadline is shortened by the coarse clock's resolution, so that the cheap clock's lag can only
 *   throw an id away too early.
 */
#define _GNU_SOURCE
#include "ph_ring.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "ph_atomic.h"
#include "ph_ring_layout.h"
#include "ph_scarab.h"

#define ALIVE UINT64_C(0x45564954)
#define LOCK_SPINS 64
#define STRICT_SPINS 100
#define LOCK_SLEEP_NS 20000

#define WIPED_BYTES 65536 /* a multiple of every page size */

struct ph_ring {
    /* All zero in a forked child. */
    union {
        uint8_t wiped[WIPED_BYTES];
        struct {
            /* What a pop touches: one cache line. */
            uint64_t next_id;
            uint64_t end_id;      /* ids next_id … end_id - 1 may be handed out until deadline_ns */
            uint64_t deadline_ns; /* on `clock`, resolution and skew already taken off */
            uint64_t alive;       /* ALIVE; 0 in a forked child */
            uint64_t lock;
            uint64_t status;
            uint64_t clock; /* CLOCK_MONOTONIC_COARSE, or CLOCK_MONOTONIC for short ages */
            uint64_t floor; /* only ids greater than this */

            uint64_t grant_end_id; /* end_id is the low-water mark of the last grant until it is reached */
            uint64_t uncounted_id; /* ids of this grant from here on are not in `taken` yet */
            uint64_t taken;
            uint64_t cursor;
            uint64_t strict_lock;
            uint64_t request_number;
            uint64_t strict_status;
            uint64_t strict_detail;
        };
    };
    /* Never changed after opening, and not wiped: code that a fork interrupts finds no null pointer and no foreign
       descriptor in the child. */
    const struct ph_grants_segment *grants;
    struct ph_client_segment *client;
    struct ph_layout layout;
    uint64_t clock_lag_ns;
    int64_t skew_ns;
    uint32_t coordinator;
    int doorbell_fd;
};

static uint64_t clock_ns(uint64_t clock) {
    struct timespec now;
    clock_gettime((clockid_t)clock, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

static const uint32_t *futex_word(const uint64_t *word) { return (const uint32_t *)(const void *)word; }

/* Not FUTEX_PRIVATE: the worker wakes from another process. A read-only mapping is enough to sleep on. */
static void futex_sleep(const uint64_t *word, uint64_t seen, uint64_t timeout_ns) {
    struct timespec timeout = {(time_t)(timeout_ns / 1000000000), (long)(timeout_ns % 1000000000)};
    syscall(SYS_futex, futex_word(word), FUTEX_WAIT, (uint32_t)seen, &timeout, NULL, 0);
}

static void ring_doorbell(const struct ph_ring *ring) {
    uint64_t one = 1;
    /* EAGAIN: the counter is full of unseen rings, so the worker is about to look anyway. */
    ssize_t written = write(ring->doorbell_fd, &one, sizeof one);
    (void)written;
}

/* Sleeps rather than spins once the holder is evidently not running. */
static void lock_wait(uint64_t *lock) {
    for (unsigned attempt = 0; !ph_lock_try(lock); attempt++) {
        if (attempt < LOCK_SPINS) {
            ph_cpu_relax();
        } else if (attempt < 2 * LOCK_SPINS) {
            sched_yield();
        } else {
            struct timespec pause = {0, LOCK_SLEEP_NS};
            nanosleep(&pause, NULL);
        }
    }
}

static int alive(const struct ph_ring *ring) {
    ph_compiler_barrier();
    return ph_load_relaxed(&ring->alive) == ALIVE;
}

/* Both locks' holders set it, and anyone reads it. */
static void set_status(struct ph_ring *ring, enum ph_ring_status status) { ph_store_relaxed(&ring->status, status); }

static int status_is(const struct ph_ring *ring, enum ph_ring_status status) {
    return ph_load_relaxed(&ring->status) == (uint64_t)status;
}

static int grant_usable(struct ph_ring *ring, uint64_t first_tick, uint64_t count, uint64_t deadline_ns) {
    uint64_t sequences = ph_sequence_count(&ring->layout);
    if (count == 0 || count > sequences - (first_tick & (sequences - 1))) {
        set_status(ring, PH_RING_DAMAGED);
        return 0;
    }
    uint64_t first_id = ph_id_of_tick(&ring->layout, ring->coordinator, first_tick);
    if (first_id + count - 1 <= ring->floor || clock_ns(ring->clock) >= deadline_ns) {
        return 0;
    }
    ring->next_id = ring->uncounted_id = first_id > ring->floor ? first_id : ring->floor + 1;
    ring->grant_end_id = first_id + count;
    ring->deadline_ns = deadline_ns;
    return 1;
}

/* Tells the worker how much of its grants was of use. */
static void count_taken(struct ph_ring *ring) {
    uint64_t end_id = ring->next_id < ring->grant_end_id ? ring->next_id : ring->grant_end_id;
    if (end_id > ring->uncounted_id) {
        ring->taken += end_id - ring->uncounted_id;
        ring->uncounted_id = end_id;
        ph_store_relaxed(&ring->client->taken, ring->taken);
    }
}

/*
 * Opens the next fresh grant. The last one is opened up to its middle only; reaching the middle rings for more, so a
 * busy client never runs dry and a slow one never asks for what it will not use.
 */
static int open_grant(struct ph_ring *ring) {
    if (!alive(ring) || status_is(ring, PH_RING_DAMAGED)) {
        return 0;
    }
    count_taken(ring);
    uint64_t head = ph_load_acquire(&ring->grants->head); /* pairs with publish() in producer.c */
    if (ring->end_id < ring->grant_end_id) {
        ring->end_id = ring->grant_end_id;
        if (head == ring->cursor) {
            ring_doorbell(ring);
        }
        if (clock_ns(ring->clock) < ring->deadline_ns) {
            return 1;
        }
    }
    if (head - ring->cursor > PH_RING_SLOTS) {
        set_status(ring, PH_RING_DAMAGED);
        return 0;
    }
    for (uint64_t cursor = ring->cursor; cursor != head;) {
        const struct ph_grant *slot = &ring->grants->slots[cursor % PH_RING_SLOTS];
        uint64_t first_tick = ph_load_relaxed(&slot->first_tick);
        uint64_t count = ph_load_relaxed(&slot->count);
        uint64_t deadline_ns = ph_load_relaxed(&slot->deadline_ns) + (uint64_t)ring->skew_ns - ring->clock_lag_ns;
        ring->cursor = ++cursor;
        if (!alive(ring)) {
            return 0; /* a child's wiped cursor would tell the worker lies about its parent */
        }
        ph_store_release(&ring->client->cursor, cursor); /* pairs with ph_producer_demand() in producer.c */
        if (grant_usable(ring, first_tick, count, deadline_ns)) {
            uint64_t left = ring->grant_end_id - ring->next_id;
            ring->end_id = cursor == head ? ring->next_id + (left + 1) / 2 : ring->grant_end_id;
            set_status(ring, PH_RING_READY);
            return 1;
        }
    }
    if (!status_is(ring, PH_RING_DAMAGED)) {
        uint64_t state = ph_load_acquire(&ring->grants->state);
        set_status(ring, state == PH_RING_OPEN ? PH_RING_EMPTY : PH_RING_REVOKED);
    }
    return 0;
}

/* Claims up to `count` consecutive ids; returns how many, and the first. */
static size_t claim(struct ph_ring *ring, size_t count, uint64_t *first_id) {
    for (;;) {
        uint64_t id = ring->next_id;
        uint64_t left = ring->end_id - id;
        if (id < ring->end_id && clock_ns(ring->clock) < ring->deadline_ns) {
            size_t claimed = count < left ? count : (size_t)left;
            ring->next_id = id + claimed;
            *first_id = id;
            return alive(ring) ? claimed : 0;
        }
        if (!open_grant(ring)) {
            return 0;
        }
    }
}

uint64_t ph_ring_next(struct ph_ring *ring) {
    uint64_t id;
    return claim(ring, 1, &id) ? id : 0;
}

size_t ph_ring_take(struct ph_ring *ring, uint64_t *out, size_t count) {
    size_t taken = 0;
    while (taken < count) {
        uint64_t first_id;
        size_t claimed = claim(ring, count - taken, &first_id);
        if (claimed == 0) {
            break;
        }
        for (size_t i = 0; i < claimed; i++) {
            out[taken + i] = first_id + i;
        }
        taken += claimed;
    }
    return alive(ring) ? taken : 0; /* forked between two claims: the first ones are the parent's */
}

uint64_t ph_ring_next_locked(struct ph_ring *ring) {
    lock_wait(&ring->lock);
    uint64_t id = ph_ring_next(ring);
    ph_lock_release(&ring->lock);
    return id;
}

size_t ph_ring_take_locked(struct ph_ring *ring, uint64_t *out, size_t count) {
    lock_wait(&ring->lock);
    size_t taken = ph_ring_take(ring, out, count);
    ph_lock_release(&ring->lock);
    return taken;
}

/* Something to take? Otherwise says to the worker that this client sleeps on the head it saw. */
static int grant_at_hand(struct ph_ring *ring, uint64_t *head) {
    lock_wait(&ring->lock);
    int ready = alive(ring) &&
                ((ring->next_id < ring->end_id && clock_ns(ring->clock) < ring->deadline_ns) || open_grant(ring));
    *head = ring->cursor;
    if (!ready && alive(ring)) {
        ph_store_seq_cst(&ring->client->waiting, ring->cursor + 1); /* pairs with publish() in producer.c */
    }
    ph_lock_release(&ring->lock);
    return ready;
}

int ph_ring_wait_locked(struct ph_ring *ring, uint64_t timeout_ns) {
    uint64_t give_up_ns = clock_ns(CLOCK_MONOTONIC) + timeout_ns;
    for (;;) {
        uint64_t head;
        if (grant_at_hand(ring, &head)) {
            return PH_RING_READY;
        }
        int status = ph_ring_status(ring);
        uint64_t now_ns = clock_ns(CLOCK_MONOTONIC);
        if (status != PH_RING_EMPTY || now_ns >= give_up_ns) {
            return status;
        }
        ring_doorbell(ring);
        if (ph_load_seq_cst(&ring->grants->head) == head) { /* pairs with publish() in producer.c */
            futex_sleep(&ring->grants->head, head, give_up_ns - now_ns);
        }
    }
}

static int answered(const struct ph_ring *ring, uint64_t number) {
    return ph_load_acquire(&ring->grants->answer_number) == number; /* pairs with ph_producer_answer() */
}

/* Looks for a while when the worker is awake; a worker that has to be woken may need this very core. */
static int await_answer(struct ph_ring *ring, uint64_t number, int awake, uint64_t timeout_ns) {
    for (unsigned spin = 0; awake && spin < STRICT_SPINS; spin++) {
        if (answered(ring, number)) {
            return 1;
        }
        ph_cpu_relax();
    }
    uint64_t give_up_ns = clock_ns(CLOCK_MONOTONIC) + timeout_ns;
    ph_store_seq_cst(&ring->client->request_waiting, number); /* pairs with ph_producer_answer() */
    for (;;) {
        uint64_t seen = ph_load_seq_cst(&ring->grants->answer_number);
        uint64_t now_ns = clock_ns(CLOCK_MONOTONIC);
        if (seen == number) {
            return 1;
        }
        if (now_ns >= give_up_ns || ph_load_acquire(&ring->grants->state) != PH_RING_OPEN) {
            return 0;
        }
        futex_sleep(&ring->grants->answer_number, seen, give_up_ns - now_ns);
    }
}

/* Posts one request and waits; returns the id or 0 with the status set. */
static uint64_t exchange(struct ph_ring *ring, uint32_t coordinator, uint64_t after, uint64_t timeout_ns) {
    uint64_t number = ++ring->request_number;
    ph_store_relaxed(&ring->client->request_after, after);
    ph_store_relaxed(&ring->client->request_coordinator, coordinator);
    ph_store_relaxed(&ring->client->request_flags, coordinator == PH_RING_KEYLESS ? PH_STRICT_KEYLESS : 0);
    ph_store_seq_cst(&ring->client->request_number, number); /* pairs with ph_producer_request() and its sleep */
    int awake = ph_load_seq_cst(&ring->grants->polling) != 0;
    if (!awake) {
        ring_doorbell(ring);
    }
    if (!await_answer(ring, number, awake, timeout_ns)) {
        int open = ph_load_acquire(&ring->grants->state) == PH_RING_OPEN;
        ph_store_relaxed(&ring->strict_status, open ? PH_RING_TIMED_OUT : PH_RING_REVOKED);
        return 0;
    }
    uint64_t value = ph_load_relaxed(&ring->grants->answer_value);
    uint64_t status = ph_load_relaxed(&ring->grants->answer_status);
    ph_store_relaxed(&ring->strict_detail, value);
    if (status != PH_STRICT_OK) {
        ph_store_relaxed(&ring->strict_status, status == PH_STRICT_ELSEWHERE ? PH_RING_ELSEWHERE : PH_RING_REFUSED);
        return 0;
    }
    if (value <= after) {
        set_status(ring, PH_RING_DAMAGED);
        return 0;
    }
    ph_store_relaxed(&ring->strict_status, PH_RING_READY);
    return value;
}

uint64_t ph_ring_strict_locked(struct ph_ring *ring, uint32_t coordinator, uint64_t after, uint64_t timeout_ns) {
    lock_wait(&ring->strict_lock);
    uint64_t id = 0;
    if (alive(ring) && !status_is(ring, PH_RING_DAMAGED)) {
        id = exchange(ring, coordinator, after, timeout_ns);
        if (!alive(ring)) {
            id = 0;
        }
    }
    ph_lock_release(&ring->strict_lock);
    return id;
}

void ph_ring_raise_floor_locked(struct ph_ring *ring, uint64_t id) {
    lock_wait(&ring->lock);
    if (id > ring->floor) {
        ring->floor = id;
    }
    if (ring->next_id <= ring->floor) {
        ring->next_id = ring->floor + 1;
    }
    ph_lock_release(&ring->lock);
}

int ph_ring_status(const struct ph_ring *ring) {
    return alive(ring) ? (int)ph_load_relaxed(&ring->status) : PH_RING_FORKED;
}

int ph_ring_strict_status(const struct ph_ring *ring) { return (int)ph_load_relaxed(&ring->strict_status); }

uint64_t ph_ring_strict_detail(const struct ph_ring *ring) { return ph_load_relaxed(&ring->strict_detail); }

uint32_t ph_ring_coordinator(const struct ph_ring *ring) { return ring->coordinator; }

/* A segment that cannot shrink under the mapping: no SIGBUS, whatever the other side does. */
static void *map_sealed(int fd, int protection) {
    struct stat status;
    int seals = fcntl(fd, F_GET_SEALS);
    if (fstat(fd, &status) != 0 || seals < 0) {
        return MAP_FAILED;
    }
    if (status.st_size < PH_RING_SEGMENT_BYTES || !(seals & F_SEAL_SHRINK)) {
        errno = EPROTO;
        return MAP_FAILED;
    }
    return mmap(NULL, PH_RING_SEGMENT_BYTES, protection, MAP_SHARED, fd, 0);
}

static int segment_understood(struct ph_ring *ring) {
    const struct ph_grants_segment *grants = ring->grants;
    if (ph_load_acquire(&grants->magic) != PH_RING_MAGIC || grants->slot_count != PH_RING_SLOTS) {
        return 0;
    }
    ring->layout.ms_bits = (uint8_t)grants->ms_bits;
    ring->layout.coordinator_bits = (uint8_t)grants->coordinator_bits;
    ring->layout.sequence_bits = (uint8_t)grants->sequence_bits;
    ring->layout.epoch_ms = grants->epoch_ms;
    ring->coordinator = (uint32_t)grants->coordinator;
    return ph_layout_valid(&ring->layout) && grants->coordinator < PH_COORDINATOR_MAX;
}

static void choose_clock(struct ph_ring *ring, uint64_t max_age_ns) {
    struct timespec resolution;
    clock_getres(CLOCK_MONOTONIC_COARSE, &resolution);
    ring->clock = CLOCK_MONOTONIC;
    if (max_age_ns >= 2 * (uint64_t)resolution.tv_nsec) {
        ring->clock = CLOCK_MONOTONIC_COARSE;
        ring->clock_lag_ns = (uint64_t)resolution.tv_nsec;
    }
}

struct ph_ring *ph_ring_open(int grants_fd, int client_fd, int doorbell_fd, int64_t skew_ns, uint64_t max_age_ns) {
    struct ph_ring *ring = mmap(NULL, sizeof *ring, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (ring == MAP_FAILED) {
        return NULL;
    }
    ring->grants = map_sealed(grants_fd, PROT_READ);
    ring->client = map_sealed(client_fd, PROT_READ | PROT_WRITE);
    ring->doorbell_fd = doorbell_fd;
    if (madvise(ring, WIPED_BYTES, MADV_WIPEONFORK) != 0 || ring->grants == MAP_FAILED || ring->client == MAP_FAILED) {
        int error = errno;
        ph_ring_close(ring);
        errno = error;
        return NULL;
    }
    if (!segment_understood(ring)) {
        ph_ring_close(ring);
        errno = EPROTO;
        return NULL;
    }
    choose_clock(ring, max_age_ns);
    ring->skew_ns = skew_ns;
    ring->cursor = ph_load_relaxed(&ring->client->cursor);
    ring->request_number = ph_load_relaxed(&ring->client->request_number);
    set_status(ring, PH_RING_EMPTY);
    ph_compiler_barrier();
    ring->alive = ALIVE;
    return ring;
}

void ph_ring_close(struct ph_ring *ring) {
    if (ring->grants != NULL && ring->grants != MAP_FAILED) {
        munmap((void *)(uintptr_t)ring->grants, PH_RING_SEGMENT_BYTES);
    }
    if (ring->client != NULL && ring->client != MAP_FAILED) {
        munmap(ring->client, PH_RING_SEGMENT_BYTES);
    }
    munmap(ring, sizeof *ring);
}
