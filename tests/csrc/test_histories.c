/*
 * Histories of one host, drawn at random and run on the product's own code: hosttime.c, evidence.c, mint.c, issuer.h,
 * obelisk.c, syncer.c. F18, F19, F43, F44, F60, F61, F62. What is not the product's is small: processes (they die
 * anywhere), the disk's cache and medium (a power cut keeps any part of what was not synced), the clocks, an operator
 * who answers the repair's question truthfully, and clients.
 *
 * Checked
 * - U: no tick of a coordinator leaves twice.
 * - A: no id is of a millisecond that host time has not reached, and host time is never ahead of every reading of the
 *   wall clock that was followed, carried on by boottime within its boot.
 * - M: a strict id that was asked for after another one of its key was answered is the greater one, whoever answers.
 * - K: while the page of this boot stands, a start believes it: a kill burns nothing.
 * - L: when the faults end, every coordinator issues within a bound, with slow syncs too.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "durable/obelisk.h"
#include "engine/evidence.h"
#include "engine/mint.h"
#include "random.h"

#define QUANTUM INT64_C(250000) /* a quarter of a millisecond: the world's clocks move in these */
#define MS (4 * QUANTUM)
#define COORDINATORS_MAX 3
#define KEYLESS COORDINATORS_MAX
#define KEYS (COORDINATORS_MAX + 1)
#define REQUESTS_MAX 6
#define BACKUPS_MAX 3
#define EVENTS_MAX 4096
#define TABLE_BITS 16
#define WINDOW_MS 12
#define TEND_MS 20
#define JUMP_NS (10 * MS)
#define SLEW 500
#define EPOCH_MS UINT64_C(1735689600000)
#define NEVER UINT64_MAX

static const struct ph_layout layout = {44, 10, 10, EPOCH_MS};

enum fault_kind {
    KILL_HOST,
    CUT,
    RUN_STEP,
    BOOT_STEP,
    BIG_STEP,
    LOSE,
    RESTORE,
    PAGE,
    CLEAN,
    HANG,
    EIO_,
    ACCEPT,
    FAULTS
};

struct file {
    uint8_t medium[PH_OBELISK_BYTES];
    int dirty[3];           /* pages of the cache that a sync would write */
    int lost, needs_repair; /* an operator knows of it */
    int tampered;           /* the page's entry need not be believed */
};

struct worker {
    int runs, hangs;
    struct ph_mint mint;
    struct ph_obelisk obelisk;
    struct ph_syncer syncer;
    uint64_t asked_event; /* when the newest ceiling was asked for */
    /* The sync that is under way; at most one. */
    int flies;
    uint64_t flying_ceiling, flying_event;
    struct ph_clock_sample flying_sample;
    int64_t flies_since_ns;
    int busy; /* a request that it has read and not answered; while it pauses it does nothing else. 0: none */
};

struct request {
    int used, key, by, stands_in;
    uint64_t base; /* the greatest id of the key that had been answered when it came */
    int picked;
    struct ph_strict strict;
};

struct event_of_record {
    uint64_t start_id, number, event;
    uint32_t coordinator;
};

static struct world {
    struct random random;
    uint32_t count;
    int faults[FAULTS];
    int forgets;        /* the operator repairs nothing after a restore, within one boot and with the page standing */
    int64_t slowest_ns; /* sync */
    int64_t true_ns, offset_ns, boot_ns;
    uint8_t boot_id[16];
    uint64_t event, set_back_event; /* events so far; the last in which the clock was set back, or a repair made */
    struct file files[COORDINATORS_MAX];
    uint8_t backups[BACKUPS_MAX][COORDINATORS_MAX][PH_OBELISK_BYTES];
    int backup_count;
    struct worker workers[COORDINATORS_MAX];
    int host_runs, page_named, page_is_own, page_is_real;
    struct ph_host_page *page, *older_page;
    struct ph_host_page *other_page; /* of starts that could not have the usual one */
    int other_named, other_is_own;
    int older_page_count;
    struct request requests[REQUESTS_MAX];
    uint64_t answered[KEYS];
    uint64_t highest_ms;
    uint32_t keyless_owner;
    int64_t followed_ns, followed_at_ns; /* the highest reading of the wall clock that was followed, and when */
    int jumped;                          /* the wall clock has jumped ahead by more than the bound in this boot */
    struct event_of_record records[EVENTS_MAX];
    uint32_t record_count;
    uint64_t table_key[1 << TABLE_BITS], table_bits[1 << TABLE_BITS];
    uint32_t table_count;
    char path[COORDINATORS_MAX][96];
    const char *broken;
} *w;

#define LOG(...)                                                                                                       \
    do {                                                                                                               \
        if (getenv("HISTORY") != NULL) {                                                                               \
            printf("%.2f wall %.2f event %llu: ", (double)(w->true_ns - 1000 * MS - (int64_t)EPOCH_MS * MS) / MS,      \
                   (double)(wall_ns() - (int64_t)EPOCH_MS * MS) / MS, (unsigned long long)w->event);                   \
            printf(__VA_ARGS__);                                                                                       \
            printf("\n");                                                                                              \
        }                                                                                                              \
    } while (0)

/* --- the world's clocks and what a history broke */

static void broke(const char *what) {
    if (w->broken == NULL) {
        w->broken = what;
    }
}

static int64_t wall_ns(void) { return w->true_ns + w->offset_ns; }

static void read_clocks(void *context, int64_t *realtime_ns, int64_t *boottime_ns) {
    (void)context;
    *realtime_ns = wall_ns();
    *boottime_ns = w->true_ns - w->boot_ns;
}

static int chance(uint64_t per_cent) { return random_below(&w->random, 100) < per_cent; }
static uint64_t pick(uint64_t end) { return random_below(&w->random, end); }

/* What host time may be at most: the highest wall reading that was followed, carried on. */
static void follow(int force) {
    int64_t carried = w->followed_ns + (w->true_ns - w->followed_at_ns);
    if (wall_ns() <= carried + JUMP_NS || force) {
        carried = carried > wall_ns() ? carried : wall_ns();
    }
    w->followed_ns = carried;
    w->followed_at_ns = w->true_ns;
}

static void check_time(int64_t host_ns) {
    if (host_ns > w->followed_ns) {
        broke("A: host time is ahead of every wall reading that was followed");
    }
    if (!w->jumped && host_ns < wall_ns()) {
        broke("host time is behind the wall clock, which did not jump");
    }
}

static void read_time(struct worker *worker) {
    follow(worker->mint.clock.page->accept_jump != 0);
    ph_mint_read(&worker->mint);
    worker->mint.monotonic_ns = (uint64_t)w->true_ns; /* not the machine's */
    check_time(worker->mint.host_ns);
}

/* --- what left */

static void leave_one(uint32_t coordinator, uint64_t tick) {
    uint64_t key = (tick >> 6) << 2 | coordinator | UINT64_C(1) << 63;
    uint64_t at = key * UINT64_C(0x9e3779b97f4a7c15) >> (64 - TABLE_BITS);
    while (w->table_key[at] != 0 && w->table_key[at] != key) {
        at = (at + 1) & ((1 << TABLE_BITS) - 1);
    }
    if (w->table_key[at] == 0) {
        REQUIRE(++w->table_count < (1 << TABLE_BITS) / 2);
        w->table_key[at] = key;
        w->table_bits[at] = 0;
    }
    uint64_t bit = UINT64_C(1) << (tick & 63);
    if (w->table_bits[at] & bit) {
        broke("U: a tick left twice");
    }
    w->table_bits[at] |= bit;
}

static void leave(uint32_t coordinator, uint64_t first, uint64_t count) {
    struct ph_moment moment;
    for (uint64_t i = 0; i < count; i++) {
        leave_one(coordinator, first + i);
    }
    uint64_t ms = ph_ms_of_tick(&layout, first + count - 1);
    ph_host_page_moment(w->page, &moment);
    if ((int64_t)(ms + EPOCH_MS) > moment.host_ns / MS) {
        broke("A: an id is ahead of host time");
    }
    w->highest_ms = w->highest_ms > ms ? w->highest_ms : ms;
}

/* --- records */

static void note_record(uint32_t coordinator, uint64_t start_id, uint64_t number, uint64_t event) {
    REQUIRE(w->record_count < EVENTS_MAX);
    w->records[w->record_count++] = (struct event_of_record){start_id, number, event, coordinator};
}

static uint64_t event_of(uint32_t coordinator, const struct ph_record *record) {
    for (uint32_t i = w->record_count; i-- > 0;) {
        const struct event_of_record *one = &w->records[i];
        if (one->coordinator == coordinator && one->start_id == record->start_id && one->number == record->number) {
            return one->event;
        }
    }
    return 0;
}

static void read_file(uint32_t c, uint8_t *bytes) {
    int fd = open(w->path[c], O_RDONLY | O_CLOEXEC);
    REQUIRE(fd >= 0 && pread(fd, bytes, PH_OBELISK_BYTES, 0) == PH_OBELISK_BYTES);
    close(fd);
}

/* As a restore does: another file under the name. */
static void write_file(uint32_t c, const uint8_t *bytes) {
    unlink(w->path[c]);
    int fd = open(w->path[c], O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    REQUIRE(fd >= 0 && pwrite(fd, bytes, PH_OBELISK_BYTES, 0) == PH_OBELISK_BYTES);
    close(fd);
}

static int newest_record(uint32_t c, struct ph_record *newest) {
    struct ph_fault fault;
    struct ph_obelisk obelisk;
    if (w->files[c].lost || ph_obelisk_open(&obelisk, w->path[c], PH_OBELISK_READ, &fault) != 0) {
        return 0;
    }
    *newest = obelisk.newest;
    ph_obelisk_close(&obelisk);
    return 1;
}

/* The disk as the product's own calls find it: the file is the cache. */
static struct worker *syncing; /* whose write comes next */
static int sync_fails;         /* the n-th sync from now; 0: none */

static struct file *synced_file(void) { return &w->files[syncing - w->workers]; }

static ssize_t disk_write(int fd, const void *data, size_t length, off_t offset) {
    synced_file()->dirty[offset / PH_OBELISK_PAGE] = 1;
    return pwrite(fd, data, length, offset);
}

/* One that fails leaves the pages clean, and what they hold is lost: a later sync says nothing about them. */
static int disk_sync(int fd) {
    struct file *file = synced_file();
    int fails = sync_fails > 0 && --sync_fails == 0;
    for (int page = 1; page < 3; page++) {
        size_t at = (size_t)page * PH_OBELISK_PAGE;
        size_t kept = !fails || chance(20) ? PH_OBELISK_SECTOR : chance(60) ? 0 : (size_t)pick(PH_OBELISK_SECTOR);
        if (file->dirty[page] && kept > 0) {
            REQUIRE(pread(fd, file->medium + at, kept, (off_t)at) == (ssize_t)kept);
        }
        file->dirty[page] = 0;
    }
    errno = EIO;
    return fails ? -1 : 0;
}

/* Another file has the name, and it is durable. */
static void settle_medium(uint32_t c) {
    read_file(c, w->files[c].medium);
    memset(w->files[c].dirty, 0, sizeof w->files[c].dirty);
}

static void on_failure(const struct ph_fault *fault) { (void)fault; }

/* --- workers */

static void drop_requests_of(int by) {
    for (int i = 0; i < REQUESTS_MAX; i++) {
        if (w->requests[i].by == by) {
            w->requests[i].used = 0;
        }
    }
}

static void kill_worker(uint32_t c) {
    struct worker *worker = &w->workers[c];
    if (worker->runs) {
        ph_obelisk_close(&worker->obelisk);
        worker->runs = 0;
        drop_requests_of((int)c);
    }
}

static void kill_host(void) {
    LOG("kill host");
    for (uint32_t c = 0; c < w->count; c++) {
        kill_worker(c);
    }
    w->host_runs = 0;
}

/* The sync thread takes up what is asked for. */
static void begin_sync(struct worker *worker) {
    if (worker->syncer.pending && !worker->flies) {
        worker->flies = 1;
        worker->syncer.pending = 0;
        worker->flying_ceiling = worker->syncer.ceiling;
        worker->flying_sample = worker->syncer.sample;
        worker->flying_event = worker->asked_event;
        worker->flies_since_ns = w->true_ns;
    }
}

/* After whatever may have asked for a ceiling. */
static void note_asked(struct worker *worker, const struct ph_syncer *before) {
    if (worker->syncer.pending &&
        (!before->pending || memcmp(&worker->syncer.sample, &before->sample, sizeof before->sample) != 0)) {
        worker->asked_event = w->event;
    }
    begin_sync(worker);
}

static int may_act(const struct worker *worker) { return worker->runs && !worker->hangs && worker->busy == 0; }

/* An id of the lender's from each of its siblings, in their order. */
static void lend(uint32_t lender) {
    for (uint32_t by = 0; by < w->count; by++) {
        struct ph_strict strict;
        int64_t due_ns;
        if (by == lender || !may_act(&w->workers[by])) {
            continue;
        }
        read_time(&w->workers[by]);
        if (ph_strict_begin(&w->workers[by].mint, &strict, lender, 0, 0) == 0 &&
            ph_strict_pursue(&w->workers[by].mint, &strict, &due_ns)) {
            leave(lender, strict.tick, 1);
        }
    }
}

/* Its first record; a sync may fail, and the worker may die, at each of its two writes. */
static void spawn(uint32_t c, int fails_at) {
    struct worker *worker = &w->workers[c];
    struct ph_fault fault;
    struct ph_clock_source source = {read_clocks, NULL};
    if (worker->runs || w->files[c].lost || w->page->positions[c].start_id != w->page->start_id) {
        return;
    }
    memset(worker, 0, sizeof *worker);
    if (ph_obelisk_open(&worker->obelisk, w->path[c], PH_OBELISK_OWN, &fault) != 0) {
        return;
    }
    worker->obelisk.io = (struct ph_obelisk_io){disk_write, disk_sync};
    ph_mint_init(&worker->mint, w->page, &worker->syncer, &layout, c, WINDOW_MS, 1000);
    ph_host_clock_init(&worker->mint.clock, w->page, c, source, JUMP_NS, SLEW);
    memcpy(worker->mint.boot_id, w->boot_id, 16);
    worker->mint.tend_ms = TEND_MS;
    syncing = worker;
    sync_fails = fails_at;
    follow(w->page->accept_jump != 0);
    int code = ph_mint_take_over(&worker->mint, &worker->obelisk, &fault);
    note_record(c, worker->obelisk.newest.start_id, worker->obelisk.newest.number, w->event);
    sync_fails = 0;
    if (code != 0) {
        ph_obelisk_close(&worker->obelisk);
        return;
    }
    lend(c); /* by the ceiling of its predecessor */
    ph_syncer_init(&worker->syncer, &worker->obelisk, &w->page->positions[c], -1);
    worker->syncer.on_failure = on_failure;
    worker->runs = 1;
    w->files[c].tampered = w->files[c].needs_repair = 0;
}

static void finish_sync(uint32_t c, int fails) {
    struct worker *worker = &w->workers[c];
    if (!worker->runs || !worker->flies) {
        return;
    }
    syncing = worker;
    sync_fails = fails;
    worker->flies = 0;
    int failed = ph_syncer_sync(&worker->syncer, worker->flying_ceiling, &worker->flying_sample);
    sync_fails = 0;
    note_record(c, worker->obelisk.start_id, worker->obelisk.newest.number + (failed != 0), worker->flying_event);
    int64_t took_ns = w->true_ns - worker->flies_since_ns;
    worker->syncer.sync_ns_last = (uint64_t)took_ns;
    w->slowest_ns = w->slowest_ns > took_ns ? w->slowest_ns : took_ns;
    begin_sync(worker);
    if (failed) {
        kill_worker(c);
    }
}

static int issue(uint32_t c, uint64_t count) {
    struct worker *worker = &w->workers[c];
    struct ph_syncer before = worker->syncer;
    read_time(worker);
    uint64_t lookback = pick(3);
    uint64_t floor = ph_tick_of_ms(&layout, worker->mint.now_ms > lookback ? worker->mint.now_ms - lookback : 0);
    struct ph_run run = chance(70) ? ph_mint_take(&worker->mint, 0, 1, count, 0)
                                   : ph_issuer_take(&worker->mint.issuer, floor, /* as rings are fed */
                                                    ph_tick_of_ms(&layout, worker->mint.now_ms + 1),
                                                    ph_syncer_durable(&worker->syncer), count);
    ph_mint_renew(&worker->mint);
    note_asked(worker, &before);
    if (run.count == 0) {
        return 0;
    }
    if (chance(2)) {
        kill_worker(c); /* between the position and the reply */
        return 1;
    }
    leave(c, run.first_tick, run.count);
    return 1;
}

static void tend(uint32_t c) {
    struct worker *worker = &w->workers[c];
    struct ph_syncer before = worker->syncer;
    read_time(worker);
    ph_mint_tend(&worker->mint);
    note_asked(worker, &before);
}

/* --- strict requests */

static void begin_own(struct request *request, const struct worker *worker) {
    ph_strict_begin(&worker->mint, &request->strict, (uint32_t)request->by, 0,
                    request->stands_in ? worker->mint.host_ns : 0);
}

static void arrive(int key) {
    int slot = -1;
    for (int i = 0; i < REQUESTS_MAX; i++) {
        slot = w->requests[i].used ? slot : i;
    }
    uint32_t owner = key == KEYLESS ? w->keyless_owner : (uint32_t)key;
    uint32_t by = chance(65) && w->workers[owner].runs ? owner : (uint32_t)pick(w->count);
    if (slot < 0 || !may_act(&w->workers[by])) {
        return;
    }
    struct request *request = &w->requests[slot];
    *request =
        (struct request){.used = 1, .key = key, .by = (int)by, .stands_in = by != owner, .base = w->answered[key]};
    struct worker *worker = &w->workers[by];
    read_time(worker);                      /* after it was taken */
    if (request->stands_in && chance(60)) { /* from the owner's position, whether it runs or not */
        request->stands_in = 0;
        ph_strict_begin(&worker->mint, &request->strict, owner, 0, 0);
    } else {
        begin_own(request, worker);
    }
    worker->busy = slot + 1; /* it may pause here, between reading host time and picking */
    if (chance(70)) {
        worker->busy = 0;
    }
}

static void answer(struct request *request) {
    uint64_t id = ph_id_of_tick(&layout, request->strict.coordinator, request->strict.tick);
    leave(request->strict.coordinator, request->strict.tick, 1);
    if (id <= request->base) {
        broke("M: a strict id is not above one that had been answered before");
    }
    w->answered[request->key] = w->answered[request->key] > id ? w->answered[request->key] : id;
    request->used = 0;
}

static void progress(int slot) {
    struct request *request = &w->requests[slot];
    struct worker *worker = &w->workers[request->by];
    if (!request->used || !worker->runs || worker->hangs || (worker->busy != 0 && worker->busy != slot + 1)) {
        return;
    }
    int resumes = worker->busy == slot + 1; /* goes on with the reading that it had */
    worker->busy = 0;
    if (request->picked) {
        answer(request);
        return;
    }
    if (!resumes) {
        read_time(worker);
    }
    struct ph_syncer before = worker->syncer;
    int64_t due_ns;
    int ready = ph_strict_pursue(&worker->mint, &request->strict, &due_ns);
    ph_mint_renew(&worker->mint);
    note_asked(worker, &before);
    if (!ready && request->strict.coordinator != (uint32_t)request->by) { /* the client asks again, by socket */
        request->stands_in = 1;
        begin_own(request, worker);
    }
    if (ready) {
        request->picked = 1;
        if (chance(60)) {
            answer(request);
        } else {
            worker->busy = slot + 1; /* it pauses before the reply leaves */
        }
    }
}

/* --- starts, stops, cuts */

static uint32_t gather(struct ph_evidence *evidence, struct ph_known *known) {
    uint32_t count = 0;
    for (uint32_t c = 0; c < w->count; c++) {
        struct ph_record newest;
        if (newest_record(c, &newest)) {
            evidence[count++] = (struct ph_evidence){c, newest.ceiling, newest.start_id, newest.sample};
        }
    }
    *known = (struct ph_known){.records = evidence,
                               .count = count,
                               .page = w->page_named ? w->page : NULL,
                               .page_is_own = w->page_is_own,
                               .realtime_ns = wall_ns(),
                               .boottime_ns = w->true_ns - w->boot_ns,
                               .layout = layout,
                               .jump_ns_max = JUMP_NS,
                               .slew_per_mille = SLEW};
    memcpy(known->boot_id, w->boot_id, 16);
    return count;
}

static int must_be_repaired(uint32_t c) {
    struct ph_record newest;
    return w->files[c].needs_repair || !newest_record(c, &newest);
}

/* This start cannot have the page of the last one: /dev/shm was full, or it was another. */
static void take_other_page(void) {
    struct ph_host_page *page = w->page;
    int named = w->page_named, is_own = w->page_is_own;
    w->page = w->other_page;
    w->page_named = w->other_named;
    w->page_is_own = w->other_is_own;
    w->other_page = page;
    w->other_named = named;
    w->other_is_own = is_own;
    w->page_is_real = 0;
}

static void start_host(void) {
    struct ph_evidence evidence[COORDINATORS_MAX];
    struct ph_known known;
    struct ph_started started;
    uint32_t untouched = 0;
    if (w->faults[PAGE] && chance(20)) {
        take_other_page();
    }
    if (gather(evidence, &known) < w->count) {
        return; /* refused: one is missing */
    }
    for (uint32_t c = 0; c < w->count; c++) {
        if (must_be_repaired(c)) {
            return;
        }
        untouched += !w->files[c].tampered;
    }
    int same_boot = 0;
    ph_host_estimate(&known, &same_boot);
    follow(!same_boot);
    if (!w->page_named || !w->page_is_own) { /* a new one; what it was a copy of is evidence */
        struct ph_host_page *fresh = w->page_named ? w->older_page + BACKUPS_MAX : w->page;
        memset(fresh, 0, sizeof *fresh);
        ph_host_start(&known, fresh, random_u64(&w->random) | 1, &started);
        memcpy(w->page, fresh, sizeof *fresh);
    } else {
        ph_host_start(&known, w->page, random_u64(&w->random) | 1, &started);
        if (w->page_is_real && started.exact < untouched) {
            broke("K: the page stands and was not believed");
        }
    }
    w->page_named = w->page_is_own = w->page_is_real = w->host_runs = 1;
    for (uint32_t i = 0; i < known.count; i++) {
        LOG("  record c%u ceiling %llu host %.2f wall %.2f", known.records[i].coordinator,
            (unsigned long long)(known.records[i].ceiling >> 10),
            (double)(known.records[i].sample.host_ns - (int64_t)EPOCH_MS * MS) / MS,
            (double)(known.records[i].sample.realtime_ns - (int64_t)EPOCH_MS * MS) / MS);
    }
    LOG("start: host %.2f jump %.2f floor %llu exact %u", (double)(started.host_ns - (int64_t)EPOCH_MS * MS) / MS,
        (double)started.jump_ns / MS, (unsigned long long)started.floor_ms, started.exact);
    w->keyless_owner = (uint32_t)pick(w->count);
    check_time(started.host_ns);
}

/* Its last acts; unless it is killed in the middle of them. */
static void stop_worker(uint32_t c) {
    struct worker *worker = &w->workers[c];
    struct ph_fault fault;
    finish_sync(c, 0);
    finish_sync(c, 0);
    if (worker->runs && !worker->flies && chance(90)) {
        syncing = worker;
        follow(w->page->accept_jump != 0);
        if (ph_mint_hand_over(&worker->mint, &worker->obelisk, &fault) == 0) {
            note_record(c, worker->obelisk.start_id, worker->obelisk.newest.number, w->event);
        }
    }
    kill_worker(c);
}

static void stop_cleanly(void) {
    for (uint32_t c = 0; c < w->count; c++) {
        stop_worker(c);
        lend(c);
    }
    kill_host();
}

static void step_clock(int64_t quanta) {
    LOG("step %d", (int)quanta);
    w->offset_ns += quanta * QUANTUM;
    w->event++;
    if (quanta < 0) {
        w->set_back_event = w->event;
    }
    w->jumped |= quanta * QUANTUM > JUMP_NS / 4;
}

/* Of what is not synced any part may stand, torn sectors too. */
static void cut_power(void) {
    LOG("power cut");
    for (uint32_t c = 0; c < w->count; c++) {
        finish_sync(c, chance(50)); /* what was under way may have come any part of its way */
    }
    kill_host();
    for (uint32_t c = 0; c < w->count; c++) {
        if (w->files[c].lost) {
            continue;
        }
        uint8_t cache[PH_OBELISK_BYTES];
        read_file(c, cache);
        for (int slot = 1; slot <= 2; slot++) {
            size_t at = (size_t)slot * PH_OBELISK_PAGE;
            if (!w->files[c].dirty[slot]) {
                continue;
            }
            w->files[c].dirty[slot] = 0;
            uint64_t kept = chance(35) ? PH_OBELISK_SECTOR : chance(50) ? 0 : pick(PH_OBELISK_SECTOR);
            memcpy(w->files[c].medium + at, cache + at, kept);
        }
        write_file(c, w->files[c].medium);
    }
    static const int64_t steps[] = {0, 0, 0, -3, -10, -40, -300, 5, 60, 300};
    static const int64_t pauses[] = {0, 1, 4, 10, 60}, ages[] = {0, 3, 50};
    w->true_ns += pauses[pick(5)] * QUANTUM;
    w->boot_ns = w->true_ns - ages[pick(3)] * QUANTUM;
    w->boot_id[0]++;
    w->page_named = w->page_is_real = w->other_named = w->older_page_count = w->jumped = 0;
    step_clock(w->faults[BOOT_STEP] ? steps[pick(10)] : 0);
    w->jumped = 0;
}

/* --- files lost and restored, repairs */

static void lose(uint32_t c) {
    LOG("lose c%u", c);
    unlink(w->path[c]);
    w->files[c].lost = w->files[c].needs_repair = w->files[c].tampered = 1;
}

static void back_up(void) {
    int at = w->backup_count < BACKUPS_MAX ? w->backup_count++ : (int)pick(BACKUPS_MAX);
    for (uint32_t c = 0; c < w->count; c++) {
        memset(w->backups[at][c], 0, PH_OBELISK_BYTES);
        if (!w->files[c].lost) {
            read_file(c, w->backups[at][c]);
        }
    }
}

static void restore(int64_t only) {
    if (w->backup_count == 0) {
        return;
    }
    int at = (int)pick((uint64_t)w->backup_count);
    LOG("restore %d", (int)only);
    for (uint32_t c = 0; c < w->count; c++) {
        uint64_t magic;
        memcpy(&magic, w->backups[at][c], sizeof magic);
        if (magic != 0 && (only < 0 || only == (int64_t)c)) {
            write_file(c, w->backups[at][c]);
            settle_medium(c);
            w->files[c].lost = 0;
            w->files[c].needs_repair = !w->forgets;
            w->files[c].tampered = 1;
        }
    }
}

/* The operator answers what is true: the clock was set back, or not, since the record that the repair shows. */
static enum ph_repair_way operator_says(const struct ph_known *known, uint64_t *above_ms) {
    int32_t newest = ph_newest_evidence(known);
    struct ph_record record;
    *above_ms = w->highest_ms;
    if (newest < 0 || !newest_record(known->records[newest].coordinator, &record)) {
        return PH_REPAIR_ABOVE;
    }
    int set_back = w->set_back_event >= event_of(known->records[newest].coordinator, &record) ||
                   known->records[newest].sample.realtime_ns > known->realtime_ns;
    return set_back ? PH_REPAIR_ABOVE : PH_REPAIR_CLOCK_OK;
}

static void repair(uint32_t c) {
    struct ph_evidence evidence[COORDINATORS_MAX];
    struct ph_known known;
    struct ph_repaired repaired;
    struct ph_record own = {.ceiling = 0};
    struct ph_fault fault;
    uint64_t above_ms = 0;
    if (w->workers[c].runs) {
        return;
    }
    newest_record(c, &own);
    gather(evidence, &known);
    enum ph_repair_way way = PH_REPAIR_LIVE;
    if (!w->host_runs || w->page->positions[c].start_id != w->page->start_id) {
        way = operator_says(&known, &above_ms);
    }
    ph_repair(&known, c, way, above_ms, own.ceiling, &repaired);
    struct ph_record first = {.ceiling = repaired.ceiling, .clean = 1, .sample = repaired.sample};
    struct ph_identity identity = {.coordinator = c, .modulus = 4, .layout = layout};
    first.start_id = repaired.start_id != 0 ? repaired.start_id : random_u64(&w->random) | 1;
    follow(way != PH_REPAIR_LIVE);
    if (way != PH_REPAIR_LIVE) {
        if (repaired.sample.host_ns > w->followed_ns) { /* the operator's word counts as a reading */
            w->followed_ns = repaired.sample.host_ns;
        }
        w->set_back_event = ++w->event;
        w->event++;
    }
    LOG("repair c%u way %d above %llu own %llu: ceiling ms %llu host %.2f", c, way, (unsigned long long)above_ms,
        (unsigned long long)(own.ceiling >> 10), (unsigned long long)(repaired.ceiling >> 10),
        (double)(repaired.sample.host_ns - (int64_t)EPOCH_MS * MS) / MS);
    REQUIRE(ph_obelisk_create(w->path[c], &identity, &first, &fault) == 0);
    note_record(c, first.start_id, 1, w->event);
    settle_medium(c);
    w->files[c].lost = w->files[c].needs_repair = 0;
    w->files[c].tampered = way != PH_REPAIR_LIVE;
}

static void repair_all(void) {
    for (uint32_t c = 0; c < w->count; c++) {
        if (must_be_repaired(c)) {
            repair(c);
        }
    }
}

static void copy_page(void) {
    if (w->page_named && w->older_page_count < BACKUPS_MAX) {
        memcpy(w->older_page + w->older_page_count++, w->page, sizeof *w->page);
    }
}

/* Deleted, or an older copy of it put in its place; only while no daemon runs. */
static void tamper_with_page(void) {
    LOG("tamper with page");
    if (chance(40)) {
        w->page_named = w->page_is_real = 0;
    } else if (w->older_page_count > 0) {
        memcpy(w->page, w->older_page + pick((uint64_t)w->older_page_count), sizeof *w->page);
        w->page_named = 1;
        w->page_is_own = w->page_is_real = 0;
    }
}

/* --- a history */

static void pass(int64_t quanta) { w->true_ns += quanta * QUANTUM; }

static int64_t a_step(void) {
    static const int64_t small[] = {-200, -30, -8, -2, 2, 8, 20}, big[] = {-200, -30, -8, -2, 2, 8, 30, 100, 400};
    return w->faults[BIG_STEP] ? big[pick(9)] : small[pick(7)];
}

static void burst(void) {
    for (uint32_t c = 0; c < w->count; c++) {
        spawn(c, 0);
    }
    for (uint64_t left = 4 << pick(3); left > 0 && w->host_runs; left--) {
        uint64_t what = pick(100);
        uint32_t c = (uint32_t)pick(w->count);
        if (what < 40) {
            arrive((int)pick(w->count + 1) == (int)w->count ? KEYLESS : (int)c);
        } else if (what < 70) {
            progress((int)pick(REQUESTS_MAX));
        } else if (what < 85) {
            if (may_act(&w->workers[c])) {
                issue(c, 1 + pick(2));
            }
        } else {
            pass(1);
        }
        if (chance(30)) {
            finish_sync(c, 0);
        }
    }
}

static void start_anew(void) {
    repair_all();
    start_host();
}

/* A daemon that dies again and again. */
static void crash_loop(void) {
    for (uint64_t left = 3 + pick(12); left > 0; left--) {
        start_anew();
        for (uint32_t c = 0; c < w->count && w->host_runs; c++) {
            spawn(c, 0);
        }
        pass((int64_t)pick(2));
        if (w->faults[CUT] && chance(30)) {
            cut_power();
        } else {
            kill_host();
            w->page_named &= !w->faults[PAGE];
        }
    }
}

/* Everything at once between two bursts, so that little time passes between what was issued and what is. */
static void dance(void) {
    static const int64_t steps[] = {-100, -20, -6, 6, 20};
    if (w->host_runs) {
        for (int i = 0; i < 2; i++) {
            if (chance(50)) {
                copy_page();
            }
            if (chance(50)) {
                back_up();
            }
            if (chance(70)) {
                burst();
            }
        }
        kill_host();
    }
    if (w->faults[PAGE] && chance(40)) {
        tamper_with_page();
    }
    if (w->faults[RESTORE] && chance(40)) {
        restore(chance(50) ? (int64_t)pick(w->count) : -1);
    }
    if (w->faults[LOSE] && chance(30)) {
        lose((uint32_t)pick(w->count));
    }
    if (w->faults[RUN_STEP] && chance(50)) {
        step_clock(steps[pick(5)]);
    }
    start_anew();
    burst();
}

/* Power cuts, or kills that leave no page, with the clock set back after them. */
static void cuts(void) {
    static const int64_t pauses[] = {0, 1, 5, 20}, steps[] = {2, 6, 20, 80};
    burst();
    pass(pauses[pick(4)]);
    burst();
    for (uint64_t left = pick(5); left > 0; left--) { /* time passes, and most syncs do not end */
        pass(5 + (int64_t)pick(30));
        for (uint32_t c = 0; c < w->count; c++) {
            if (may_act(&w->workers[c])) {
                issue(c, 1 + pick(2));
            }
            if (chance(30)) {
                finish_sync(c, 0);
            }
        }
    }
    if (w->faults[EIO_] && chance(50)) { /* a sync fails, and the next owner's first ones may too */
        for (uint32_t c = 0; c < w->count; c++) {
            finish_sync(c, 1);
            spawn(c, (int)pick(3));
        }
    }
    if (chance(70)) {
        cut_power();
        if (chance(60)) {
            step_clock(-steps[pick(4)]);
        }
    } else {
        kill_host();
        w->page_named = 0;
        step_clock(-steps[pick(3)]);
    }
    start_anew();
    burst();
}

/* Files are lost while host time leads the wall clock and siblings are idle. */
static void losses(void) {
    uint32_t active = (uint32_t)pick(w->count);
    if (!w->host_runs) {
        start_anew();
    }
    for (uint32_t c = 0; c < w->count; c++) {
        spawn(c, 0);
    }
    if (!may_act(&w->workers[active])) {
        kill_host();
        return;
    }
    issue(active, 1);
    step_clock(chance(60) ? -(int64_t)(2 + pick(80)) : (int64_t)pick(20));
    for (uint64_t left = 1 + pick(4); left > 0; left--) {
        for (uint32_t c = 0; c < w->count; c++) {
            if (may_act(&w->workers[c]) && chance(80)) {
                tend(c);
                finish_sync(c, 0);
            }
        }
        pass(1 + (int64_t)pick(60));
        if (may_act(&w->workers[active])) {
            issue(active, 1 + pick(2));
        }
        finish_sync(active, 0);
    }
    uint32_t lost = chance(80) ? active : (uint32_t)pick(w->count);
    if (chance(30)) {
        kill_worker(lost);
        lose(lost);
        repair(lost);
    }
    if (may_act(&w->workers[active])) {
        issue(active, 1);
    }
    if (chance(50)) {
        cut_power();
    } else {
        kill_host();
        w->page_named &= chance(30);
    }
    if (chance(70)) {
        lose(lost);
    }
    start_anew();
    burst();
}

/* One coordinator's ids are asked of its siblings, while it idles, ends, is succeeded, and its file is lost and repaired;
 * then the power is cut, or the page is lost, and the clock is set back. */
static void lending(void) {
    static const int64_t steps[] = {2, 6, 20, 80};
    uint32_t lender = (uint32_t)pick(w->count);
    if (!w->host_runs) {
        start_anew();
    }
    for (uint32_t c = 0; c < w->count; c++) {
        if (c != lender || chance(70)) {
            spawn(c, 0);
        }
    }
    for (uint64_t left = 3 + pick(12); left > 0; left--) {
        uint64_t what = pick(100);
        if (what < 30 && may_act(&w->workers[lender])) {
            chance(50) ? (void)issue(lender, 1) : tend(lender);
            pass(chance(30) ? (int64_t)pick(40) : 0); /* a slow sync makes the next ceiling a far one */
            finish_sync(lender, 0);
        } else if (what < 40) {
            chance(50) ? stop_worker(lender) : kill_worker(lender);
        } else if (what < 50) {
            spawn(lender, 0);
        } else if (what < 60 && w->faults[LOSE]) {
            kill_worker(lender);
            lose(lender);
            lend(lender);
            repair(lender);
        } else {
            pass((int64_t)pick(chance(20) ? 80 : 8));
        }
        lend(lender);
    }
    if (chance(30)) {
        stop_cleanly();
    } else if (chance(70)) {
        cut_power();
    } else {
        kill_host();
        w->page_named &= chance(50);
    }
    if (chance(60)) {
        step_clock(-steps[pick(4)]);
    }
    start_anew();
    lend(lender);
}

static void act_stopped(void) {
    uint64_t what = pick(100);
    if (what < 45) {
        repair_all();
        pass((int64_t)pick(3));
        start_host();
    } else if (what < 60) {
        pass(1 << pick(7));
    } else if (what < 68 && w->faults[RUN_STEP]) {
        step_clock(a_step());
    } else if (what < 74 && w->faults[LOSE]) {
        lose((uint32_t)pick(w->count));
    } else if (what < 84 && w->faults[RESTORE]) {
        restore(chance(40) ? (int64_t)pick(w->count) : -1);
    } else if (what < 88 && w->faults[PAGE]) {
        tamper_with_page();
    } else if (what < 92 && w->faults[CUT]) {
        cut_power();
    } else if (what < 94) {
        back_up();
    }
}

static void act_running(void) {
    uint64_t what = pick(1000);
    uint32_t c = (uint32_t)pick(w->count);
    struct worker *worker = &w->workers[c];
    if (what < 250) {
        pass(1 + (int64_t)(chance(10) ? pick(30) : pick(4)));
        finish_sync((uint32_t)pick(w->count), 0);
    } else if (what < 320) {
        spawn(c, w->faults[EIO_] && chance(10) ? 1 + (int)pick(2) : 0);
    } else if (what < 400) {
        finish_sync(c, w->faults[EIO_] && chance(15));
    } else if (what < 540) {
        if (may_act(worker)) {
            issue(c, chance(5) ? 700 : 1 + pick(3));
        }
    } else if (what < 660) {
        arrive((int)pick(w->count + 1) == (int)w->count ? KEYLESS : (int)c);
    } else if (what < 800) {
        progress((int)pick(REQUESTS_MAX));
    } else if (what < 850) {
        burst();
    } else if (what < 870) {
        worker->hangs = w->faults[HANG] ? !worker->hangs : 0;
    } else if (what < 895 && w->faults[RUN_STEP]) {
        step_clock(a_step());
    } else if (what < 915) {
        chance(50) ? stop_worker(c) : kill_worker(c);
    } else if (what < 930 && w->faults[KILL_HOST]) {
        kill_host();
    } else if (what < 940 && w->faults[CUT]) {
        cut_power();
    } else if (what < 950 && w->faults[CLEAN]) {
        stop_cleanly();
    } else if (what < 957 && w->faults[PAGE]) {
        copy_page();
    } else if (what < 965) {
        back_up();
    } else if (what < 970 && w->faults[LOSE]) {
        kill_worker(c);
        lose(c);
    } else if (what < 975 && w->faults[ACCEPT]) {
        ph_host_clock_accept(w->page);
    } else if (what < 985) {
        repair_all();
    } else if (may_act(worker)) {
        tend(c);
    }
}

/* The faults end; every coordinator issues within a bound, and goes on with syncs that take long. */
static void end_of_faults(void) {
    int all = w->host_runs;
    for (uint32_t c = 0; c < w->count; c++) {
        all &= !must_be_repaired(c);
        w->workers[c].hangs = w->workers[c].busy = 0;
        drop_requests_of((int)c);
    }
    if (!all) {
        kill_host();
        repair_all();
        start_host();
    }
    int issued[COORDINATORS_MAX] = {0};
    int64_t reach_ns = 2 * TEND_MS * MS + (4 * w->slowest_ns > WINDOW_MS * MS ? 4 * w->slowest_ns : WINDOW_MS * MS);
    int64_t give_up_ns = w->true_ns + 2 * reach_ns + 8 * MS; /* host time runs at half speed while it leads */
    for (uint32_t done = 0; done < w->count; pass(1)) {
        if (w->true_ns > give_up_ns) {
            broke("L: a coordinator is silent after the faults");
            for (uint32_t c = 0; getenv("HISTORY") && c < w->count; c++) {
                struct worker *x = &w->workers[c];
                fprintf(
                    stderr,
                    "c%u runs %d issued %d pos ms %lld durable ms %lld now ms %lld host-wall %lld q jump %lld pending %d host_runs %d lost %d rep %d parts %d\n",
                    c, x->runs, issued[c], (long long)ph_ms_of_tick(&layout, w->page->positions[c].next_tick),
                    (long long)ph_ms_of_tick(&layout, ph_syncer_durable(&x->syncer)), (long long)x->mint.now_ms,
                    (long long)((x->mint.host_ns - wall_ns()) / QUANTUM), (long long)x->mint.clock.jump_ns,
                    x->syncer.pending, w->host_runs, w->files[c].lost, w->files[c].needs_repair,
                    w->page->positions[c].start_id == w->page->start_id);
            }
            return;
        }
        for (uint32_t c = 0; c < w->count; c++) {
            repair_all();
            spawn(c, 0);
            finish_sync(c, 0);
            if (w->workers[c].runs && !issued[c] && issue(c, 1)) {
                issued[c] = 1;
                done++;
            }
        }
    }
}

static void slow_disk(void) {
    static const int64_t durations[] = {12, 22, 90, 150};
    int64_t takes_ns = durations[pick(4)] * QUANTUM, last_ns[COORDINATORS_MAX];
    int64_t end_ns = w->true_ns + 8 * takes_ns + 4 * WINDOW_MS * MS;
    for (uint32_t c = 0; c < w->count; c++) {
        last_ns[c] = w->true_ns;
    }
    for (; w->true_ns < end_ns; pass(1)) {
        for (uint32_t c = 0; c < w->count; c++) {
            struct worker *worker = &w->workers[c];
            spawn(c, 0);
            if (worker->runs && worker->flies && w->true_ns >= worker->flies_since_ns + takes_ns) {
                finish_sync(c, 0);
            }
            if (worker->runs && issue(c, 1)) {
                last_ns[c] = w->true_ns;
            }
            if (w->true_ns - last_ns[c] > 2 * takes_ns + 2 * WINDOW_MS * MS) {
                broke("L: a slow disk silences a coordinator");
            }
        }
    }
}

static void make_host(void) {
    struct ph_fault fault;
    w->count = 2 + (uint32_t)chance(33);
    w->true_ns = (int64_t)(EPOCH_MS + 1000) * MS;
    w->boot_ns = w->true_ns - 5 * QUANTUM;
    w->boot_id[0] = 1;
    w->event = 1;
    for (int i = 0; i < FAULTS; i++) {
        w->faults[i] = chance(60);
    }
    w->forgets = chance(15);
    if (w->forgets) {
        w->faults[RESTORE] = 1;
        w->faults[CUT] = w->faults[PAGE] = w->faults[LOSE] = w->faults[BOOT_STEP] = 0;
    }
    w->faults[ACCEPT] &= chance(30);
    for (uint32_t c = 0; c < w->count; c++) {
        struct ph_identity identity = {.coordinator = c, .modulus = 4, .layout = layout};
        struct ph_record first = {.clean = 1, .start_id = random_u64(&w->random) | 1};
        first.sample = (struct ph_clock_sample){.realtime_ns = wall_ns(), .boottime_ns = 5 * QUANTUM};
        snprintf(w->path[c], sizeof w->path[c], "/dev/shm/histories-%d-%u", (int)getpid(), c);
        REQUIRE(ph_obelisk_create(w->path[c], &identity, &first, &fault) == 0);
        note_record(c, first.start_id, 1, w->event);
        settle_medium(c);
    }
    w->followed_ns = wall_ns();
    w->followed_at_ns = w->true_ns;
}

static const char *history(uint64_t seed) {
    struct ph_host_page *page = w->page, *older = w->older_page, *other = w->other_page;
    memset(w, 0, sizeof *w);
    w->page = page;
    w->other_page = other;
    w->older_page = older;
    w->random = (struct random){seed};
    make_host();
    start_host();
    uint64_t style = pick(5);
    for (uint64_t left = style == 0 ? 20 + pick(100) : 1 + pick(8); left > 0 && w->broken == NULL; left--) {
        if (style == 1 && !w->forgets) {
            cuts();
        } else if (style == 2 && w->faults[KILL_HOST]) {
            chance(90) ? dance() : crash_loop();
        } else if (style == 3 && !w->forgets) {
            losses();
        } else if (style == 4 && !w->forgets) {
            lending();
        } else if (w->host_runs) {
            act_running();
        } else {
            act_stopped();
        }
    }
    if (w->broken == NULL) {
        end_of_faults();
    }
    if (w->broken == NULL && chance(30)) {
        slow_disk();
    }
    kill_host();
    for (uint32_t c = 0; c < w->count; c++) {
        unlink(w->path[c]);
    }
    return w->broken;
}

static void test_random_histories(void) {
    struct random random = random_start();
    w = calloc(1, sizeof *w);
    REQUIRE(w != NULL);
    w->page = calloc(1, sizeof *w->page);
    w->other_page = calloc(1, sizeof *w->page);
    w->older_page = calloc(BACKUPS_MAX + 1, sizeof *w->page);
    REQUIRE(w->page != NULL && w->older_page != NULL && w->other_page != NULL);
    uint64_t rounds = random_rounds(5000);
    for (uint64_t i = 0; i < rounds; i++) {
        uint64_t seed = getenv("HISTORY") != NULL ? strtoull(getenv("HISTORY"), NULL, 10) : random_u64(&random);
        const char *broken = history(seed);
        if (broken != NULL) {
            fprintf(stderr, "%s (history %llu; repeat with HISTORY=)\n", broken, (unsigned long long)seed);
            CHECK(broken == NULL);
            break;
        }
    }
    free(w->page);
    free(w->other_page);
    free(w->older_page);
    free(w);
}

int main(void) {
    RUN(test_random_histories);
    return check_report();
}
