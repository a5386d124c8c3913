/*
 * Both sides of a ring in one process (F10, F11, F15, F38).
 *
 * Invariants
 * - With grants that do not expire, every tick given to a ring comes out of it exactly once, whatever threads take it.
 * - What one thread receives of prefetched ids is increasing, and of strict ids too; a strict id burns nothing.
 * - Whoever sleeps is woken: no wait ends by its timeout while there is something to be had. The alarm() is against
 *   hanging only.
 * - Counters may wrap: rings begin a little before 2^32 and 2^64 grants.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "check.h"
#include "ph_ring.h"
#include "random.h"
#include "service/producer.h"

#define MS UINT64_C(1000000)
#define SECOND (1000 * MS)
#define LONG_NS (600 * SECOND) /* for grants */
#define WAIT_NS (20 * SECOND)  /* against hanging */
#define EVER (UINT64_C(1) << 50)
#define START_TICK (UINT64_C(100) << 13)
#define COORDINATOR 3

static const struct ph_layout layout = {41, 10, 13, 0};

struct rig {
    uint64_t position;
    struct ph_issuer issuer;
    struct ph_producer producer;
    struct ph_client_segment *client;
    struct ph_ring *ring;
    int doorbell; /* the client's own descriptor of it */
};

static uint64_t monotonic_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * SECOND + (uint64_t)now.tv_nsec;
}

static void rig_open(struct rig *rig, uint64_t begin_at, uint64_t max_age_ns, int64_t skew_ns) {
    memset(rig, 0, sizeof *rig);
    rig->position = START_TICK;
    rig->issuer = (struct ph_issuer){layout, COORDINATOR, &rig->position};
    REQUIRE(ph_producer_open(&rig->producer, &rig->issuer, max_age_ns) == 0);
    rig->client = mmap(NULL, PH_RING_SEGMENT_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, rig->producer.client_fd, 0);
    REQUIRE(rig->client != MAP_FAILED);
    rig->producer.head = rig->producer.cursor = begin_at;
    ph_store_relaxed(&rig->producer.grants->head, begin_at);
    ph_store_relaxed(&rig->client->cursor, begin_at);
    rig->producer.answered = begin_at;
    ph_store_relaxed(&rig->producer.grants->answer_number, begin_at);
    ph_store_relaxed(&rig->client->request_number, begin_at);
    rig->doorbell = dup(rig->producer.doorbell_fd);
    rig->ring = ph_ring_open(rig->producer.grants_fd, rig->producer.client_fd, rig->doorbell, skew_ns, max_age_ns);
    REQUIRE(rig->ring != NULL);
}

static void rig_close(struct rig *rig) {
    ph_producer_close(&rig->producer);
    ph_ring_close(rig->ring);
    munmap(rig->client, PH_RING_SEGMENT_BYTES);
    close(rig->doorbell);
}

static uint64_t refill(struct rig *rig, uint64_t count) {
    struct ph_supply supply = {&rig->issuer, 0, EVER, EVER, 100, 0, monotonic_ns()};
    return ph_producer_refill(&rig->producer, &supply, count);
}

static uint64_t id_of(uint64_t tick) { return ph_id_of_tick(&layout, COORDINATOR, tick); }

/* ---- two sides at once ---- */

#define THREADS 4
#define IDS_PER_THREAD 60000

struct stress {
    struct rig rig;
    uint64_t stop; /* no more grants */
    uint64_t granted;
    uint64_t strict_granted;
    int with_strict;
    struct random random;
};

struct taker {
    struct stress *stress;
    int number;
    size_t count;
    struct random random;
    uint64_t ids[2 * IDS_PER_THREAD];
};

static int answer(struct stress *stress) {
    struct ph_strict_request request;
    if (!ph_producer_request(&stress->rig.producer, &request)) {
        return 0;
    }
    uint64_t floor = ph_floor_after(&stress->rig.issuer.layout, stress->rig.issuer.coordinator, request.after);
    struct ph_run run = ph_issuer_take(&stress->rig.issuer, request.after != 0 ? floor : 0, EVER, EVER, 1);
    CHECK_EQ_U64(run.count, 1);
    stress->strict_granted++;
    ph_producer_answer(&stress->rig.producer, &request, PH_STRICT_OK, id_of(run.first_tick));
    return 1;
}

/* Gives in small pieces, and at times later than asked, so that clients fall asleep in between. */
static void feed(struct stress *stress) {
    struct random *random = &stress->random;
    for (;;) {
        int64_t lacking = ph_producer_demand(&stress->rig.producer, monotonic_ns());
        CHECK(lacking >= 0);
        if (lacking <= 0 || ph_load_relaxed(&stress->stop)) {
            return;
        }
        if (random_chance(random, 16)) {
            usleep((useconds_t)random_below(random, 200));
        }
        uint64_t most = random_chance(random, 8) ? 2000 : 1 + random_below(random, 30);
        stress->granted += refill(&stress->rig, (uint64_t)lacking < most ? (uint64_t)lacking : most);
    }
}

/* The worker: sleeps without a limit on the doorbell, so that a ring or a request that goes unheard hangs the test. */
static void *serve(void *argument) {
    struct stress *stress = argument;
    struct ph_producer *producer = &stress->rig.producer;
    while (!ph_load_relaxed(&stress->stop)) {
        struct pollfd doorbell = {producer->doorbell_fd, POLLIN, 0};
        uint64_t rings;
        poll(&doorbell, 1, -1);
        ssize_t got = read(producer->doorbell_fd, &rings, sizeof rings);
        (void)got;
        feed(stress);
        if (answer(stress) && random_chance(&stress->random, 2)) {
            ph_producer_set_polling(producer, 1);
            for (int looks = (int)random_below(&stress->random, 2000); looks > 0; looks--) {
                answer(stress);
            }
            ph_producer_set_polling(producer, 0);
            answer(stress); /* once more before it sleeps */
        }
        feed(stress);
    }
    return NULL;
}

static void keep(struct taker *taker, uint64_t id, uint64_t *last) {
    CHECK(id > *last);
    *last = id;
    if (taker->count < 2 * IDS_PER_THREAD) {
        taker->ids[taker->count++] = id;
    }
}

enum { PREFETCHED, STRICT, KINDS };

/* One call of one kind. Returns 0 when the ring is at its end. */
static int take_some(struct taker *taker, uint64_t last[KINDS]) {
    struct ph_ring *ring = taker->stress->rig.ring;
    uint64_t ids[100];
    size_t got = 0;
    if (taker->stress->with_strict && taker->number < 2 && !ph_load_relaxed(&taker->stress->stop) &&
        random_chance(&taker->random, 4)) {
        uint64_t after = random_chance(&taker->random, 2) ? last[PREFETCHED] : 0;
        ids[0] = ph_ring_strict_locked(ring, 0, after, WAIT_NS);
        CHECK(ids[0] > after);
        keep(taker, ids[0], &last[STRICT]);
        return 1;
    }
    if (taker->number % 2) {
        got = ph_ring_take_locked(ring, ids, 1 + random_below(&taker->random, 100));
    } else {
        ids[0] = ph_ring_next_locked(ring);
        got = ids[0] != 0;
    }
    for (size_t i = 0; i < got; i++) {
        keep(taker, ids[i], &last[PREFETCHED]);
    }
    if (got == 0) {
        int status = ph_ring_wait_locked(ring, WAIT_NS);
        CHECK(status == PH_RING_READY || status == PH_RING_REVOKED);
        return status == PH_RING_READY;
    }
    return 1;
}

static void *take(void *argument) {
    struct taker *taker = argument;
    uint64_t last[KINDS] = {0};
    while (taker->count < IDS_PER_THREAD && take_some(taker, last)) {
    }
    return NULL;
}

static int compare(const void *a, const void *b) {
    uint64_t left = *(const uint64_t *)a;
    uint64_t right = *(const uint64_t *)b;
    return left < right ? -1 : left > right;
}

/* Every tick that was given is one received id. */
static void check_all_received_once(struct stress *stress, const struct taker *takers, uint64_t left_over) {
    static uint64_t all[2 * THREADS * IDS_PER_THREAD];
    size_t count = 0;
    for (int i = 0; i < THREADS; i++) {
        memcpy(&all[count], takers[i].ids, takers[i].count * sizeof all[0]);
        count += takers[i].count;
    }
    qsort(all, count, sizeof all[0], compare);
    for (size_t i = 1; i < count; i++) {
        CHECK(all[i] > all[i - 1]);
    }
    CHECK(count >= THREADS * IDS_PER_THREAD);
    CHECK(stress->strict_granted > 1000 || !stress->with_strict);
    CHECK_EQ_U64(stress->granted + stress->strict_granted, count + left_over);
    CHECK(all[0] >= id_of(START_TICK) && all[count - 1] < id_of(stress->rig.position));
}

static void stress_from(uint64_t begin_at, int with_strict) {
    static struct stress stress;
    static struct taker takers[THREADS];
    static uint64_t rest[8192];
    pthread_t worker;
    pthread_t threads[THREADS];
    stress = (struct stress){.random = random_start(), .with_strict = with_strict};
    rig_open(&stress.rig, begin_at, LONG_NS, 0);
    for (int i = 0; i < THREADS; i++) {
        takers[i].stress = &stress;
        takers[i].number = i;
        takers[i].count = 0;
        takers[i].random = (struct random){random_u64(&stress.random)};
    }
    REQUIRE(pthread_create(&worker, NULL, serve, &stress) == 0);
    for (int i = 0; i < THREADS; i++) {
        REQUIRE(pthread_create(&threads[i], NULL, take, &takers[i]) == 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
    }
    ph_store_relaxed(&stress.stop, 1);
    eventfd_write(stress.rig.doorbell, 1);
    pthread_join(worker, NULL);
    uint64_t left_over = 0;
    for (size_t got; (got = ph_ring_take(stress.rig.ring, rest, 8192)) > 0;) {
        left_over += got;
    }
    CHECK_EQ_U64(ph_ring_status(stress.rig.ring), PH_RING_EMPTY);
    check_all_received_once(&stress, takers, left_over);
    rig_close(&stress.rig);
}

static void test_nothing_twice_nothing_lost(void) { stress_from(0, 0); }
static void test_nothing_twice_with_strict_requests(void) { stress_from(0, 1); }
static void test_counters_wrap_at_32_bits(void) { stress_from(UINT32_MAX - UINT64_C(300), 1); }
static void test_counters_wrap_at_64_bits(void) { stress_from(UINT64_MAX - 300, 0); }

/* ---- one step at a time ---- */

static void test_deadlines(void) {
    struct rig rig;
    rig_open(&rig, 0, 2 * MS, 0);
    REQUIRE(refill(&rig, 100) == 100);
    usleep(3000);
    CHECK_EQ_U64(ph_ring_next(rig.ring), 0);
    CHECK_EQ_U64(ph_ring_status(rig.ring), PH_RING_EMPTY);
    rig_close(&rig);

    rig_open(&rig, 0, 100 * MS, 0);
    REQUIRE(refill(&rig, 100) == 100);
    CHECK_EQ_U64(ph_ring_next(rig.ring), id_of(START_TICK)); /* opened, and then left lying */
    usleep(110000);
    CHECK_EQ_U64(ph_ring_next(rig.ring), 0);
    REQUIRE(refill(&rig, 1) == 1);
    CHECK_EQ_U64(ph_ring_next(rig.ring), id_of(START_TICK + 100));
    rig_close(&rig);
}

/* A client whose monotonic clock is another: skew_ns says by how much. */
static void test_skew(void) {
    struct rig rig;
    rig_open(&rig, 0, SECOND, -2 * (int64_t)SECOND);
    REQUIRE(refill(&rig, 10) == 10);
    CHECK_EQ_U64(ph_ring_next(rig.ring), 0);
    rig_close(&rig);
    rig_open(&rig, 0, 2 * MS, (int64_t)LONG_NS);
    REQUIRE(refill(&rig, 10) == 10);
    usleep(3000);
    CHECK_EQ_U64(ph_ring_next(rig.ring), id_of(START_TICK));
    rig_close(&rig);
}

static uint64_t doorbell_rings(const struct rig *rig) {
    uint64_t rings = 0;
    return read(rig->producer.doorbell_fd, &rings, sizeof rings) == sizeof rings ? rings : 0;
}

static void test_half_empty_rings_for_more(void) {
    struct rig rig;
    rig_open(&rig, 0, LONG_NS, 0);
    REQUIRE(refill(&rig, 10) == 10);
    for (int i = 0; i < 5; i++) {
        CHECK_EQ_U64(ph_ring_next(rig.ring), id_of(START_TICK + (uint64_t)i));
    }
    CHECK_EQ_U64(doorbell_rings(&rig), 0);
    CHECK_EQ_U64(ph_ring_next(rig.ring), id_of(START_TICK + 5));
    CHECK_EQ_U64(doorbell_rings(&rig), 1);
    for (int i = 6; i < 10; i++) {
        CHECK_EQ_U64(ph_ring_next(rig.ring), id_of(START_TICK + (uint64_t)i));
    }
    CHECK_EQ_U64(ph_ring_next(rig.ring), 0);
    rig_close(&rig);
}

static void test_floor_burns_what_lies_below(void) {
    struct rig rig;
    rig_open(&rig, 0, LONG_NS, 0);
    REQUIRE(refill(&rig, 100) == 100 && refill(&rig, 100) == 100 && refill(&rig, 100) == 100);
    CHECK_EQ_U64(ph_ring_next(rig.ring), id_of(START_TICK));
    ph_ring_raise_floor_locked(rig.ring, id_of(START_TICK + 40)); /* in the grant that is open */
    CHECK_EQ_U64(ph_ring_next(rig.ring), id_of(START_TICK + 41));
    ph_ring_raise_floor_locked(rig.ring, id_of(START_TICK + 7)); /* never down */
    CHECK_EQ_U64(ph_ring_next(rig.ring), id_of(START_TICK + 42));
    ph_ring_raise_floor_locked(rig.ring, id_of(START_TICK + 249)); /* over a whole one */
    CHECK_EQ_U64(ph_ring_next(rig.ring), id_of(START_TICK + 250));
    ph_ring_raise_floor_locked(rig.ring, id_of(START_TICK + 299)); /* to the very end */
    CHECK_EQ_U64(ph_ring_next(rig.ring), 0);
    CHECK_EQ_U64(ph_ring_status(rig.ring), PH_RING_EMPTY);
    rig_close(&rig);
}

/* A worker that is none: the client stops believing it, and does not crash. */
static void test_damaged_segments(void) {
    static const struct {
        uint64_t first_tick, count, head;
    } table[] = {{START_TICK, 0, 1},          {START_TICK, 8193, 1}, {START_TICK + 1, 8192, 1},
                 {START_TICK, UINT64_MAX, 1}, {START_TICK, 1, 65},   {START_TICK, 1, UINT64_MAX}};
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        struct rig rig;
        rig_open(&rig, 0, LONG_NS, 0);
        rig.producer.grants->slots[0] = (struct ph_grant){table[i].first_tick, table[i].count, UINT64_MAX / 2, 0};
        ph_store_release(&rig.producer.grants->head, table[i].head);
        CHECK_EQ_U64(ph_ring_next(rig.ring), 0);
        CHECK_EQ_U64(ph_ring_status(rig.ring), PH_RING_DAMAGED);
        CHECK_EQ_U64(ph_ring_wait_locked(rig.ring, WAIT_NS), PH_RING_DAMAGED);
        CHECK_EQ_U64(ph_ring_strict_locked(rig.ring, 0, 0, WAIT_NS), 0);
        rig_close(&rig);
    }
}

static void test_open_refuses_what_is_no_ring(void) {
    struct rig rig;
    rig_open(&rig, 0, LONG_NS, 0);
    int grants = rig.producer.grants_fd;
    int client = rig.producer.client_fd;
    int unsealed = memfd_create("unsealed", MFD_CLOEXEC);
    REQUIRE(unsealed >= 0 && ftruncate(unsealed, PH_RING_SEGMENT_BYTES) == 0);
    int empty = memfd_create("short", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    REQUIRE(empty >= 0 && fcntl(empty, F_ADD_SEALS, F_SEAL_SHRINK) == 0);
    const int pairs[][2] = {
        {unsealed, client}, {grants, unsealed}, {empty, client}, {client, grants}, {client, client}};
    for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++) {
        CHECK(ph_ring_open(pairs[i][0], pairs[i][1], rig.doorbell, 0, LONG_NS) == NULL);
        CHECK(errno == EPROTO || errno == EPERM);
    }
    CHECK(ph_ring_open(-1, client, rig.doorbell, 0, LONG_NS) == NULL && errno == EBADF);
    uint64_t *const words[] = {&rig.producer.grants->magic, &rig.producer.grants->slot_count,
                               &rig.producer.grants->coordinator, &rig.producer.grants->ms_bits};
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) {
        uint64_t was = *words[i];
        *words[i] = 1234;
        CHECK(ph_ring_open(grants, client, rig.doorbell, 0, LONG_NS) == NULL && errno == EPROTO);
        *words[i] = was;
    }
    close(unsealed);
    close(empty);
    rig_close(&rig);
}

static void test_revoked_ring_still_gives_what_it_holds(void) {
    struct rig rig;
    rig_open(&rig, 0, LONG_NS, 0);
    REQUIRE(refill(&rig, 3) == 3);
    ph_store_release(&rig.producer.grants->state, PH_RING_CLOSED);
    uint64_t ids[8];
    CHECK_EQ_U64(ph_ring_take(rig.ring, ids, 8), 3);
    CHECK_EQ_U64(ph_ring_status(rig.ring), PH_RING_REVOKED);
    CHECK_EQ_U64(ph_ring_wait_locked(rig.ring, WAIT_NS), PH_RING_REVOKED);
    CHECK_EQ_U64(ph_ring_strict_locked(rig.ring, 0, 0, WAIT_NS), 0);
    CHECK_EQ_U64(ph_ring_strict_status(rig.ring), PH_RING_REVOKED);
    rig_close(&rig);
}

/* ---- sleeping and waking, on a side that is played by hand ---- */

struct sleeper {
    struct ph_ring *ring;
    uint64_t after, result;
    uint32_t coordinator;
    pthread_t thread;
};

static void *sleep_for_grant(void *argument) {
    struct sleeper *sleeper = argument;
    sleeper->result = (uint64_t)ph_ring_wait_locked(sleeper->ring, WAIT_NS);
    return NULL;
}

static void *ask_strictly(void *argument) {
    struct sleeper *sleeper = argument;
    sleeper->result = ph_ring_strict_locked(sleeper->ring, sleeper->coordinator, sleeper->after, WAIT_NS);
    return NULL;
}

static void await_word(const uint64_t *word, uint64_t value, const char *what) {
    for (int i = 0; ph_load_seq_cst(word) != value; i++) {
        if (i == 10000) {
            fprintf(stderr, "in vain: %s\n", what);
            exit(EXIT_FAILURE);
        }
        usleep(1000);
    }
}

static void test_sleeper_is_woken(void) {
    struct rig rig;
    rig_open(&rig, 0, LONG_NS, 0);
    struct sleeper sleeper = {.ring = rig.ring};
    for (uint64_t round = 0; round < 3; round++) {
        REQUIRE(pthread_create(&sleeper.thread, NULL, sleep_for_grant, &sleeper) == 0);
        await_word(&rig.client->waiting, round + 1, "a client that says that it waits");
        usleep(20000); /* most likely it sleeps by now */
        if (round < 2) {
            REQUIRE(refill(&rig, 1) == 1);
        } else {
            ph_producer_close(&rig.producer);
        }
        pthread_join(sleeper.thread, NULL);
        CHECK_EQ_U64(sleeper.result, round < 2 ? PH_RING_READY : PH_RING_REVOKED);
        CHECK((ph_ring_next(rig.ring) != 0) == (round < 2));
    }
    ph_ring_close(rig.ring);
    munmap(rig.client, PH_RING_SEGMENT_BYTES);
    close(rig.doorbell);
}

static void check_strict(struct rig *rig, enum ph_strict_status status, uint64_t value, uint64_t after,
                         uint64_t expected, enum ph_ring_status strict, enum ph_ring_status ring) {
    uint32_t coordinator = value % 2 ? 17 : PH_RING_KEYLESS;
    struct sleeper sleeper = {.ring = rig->ring, .after = after, .coordinator = coordinator};
    struct ph_strict_request request;
    uint64_t number = ph_load_relaxed(&rig->client->request_number) + 1;
    REQUIRE(pthread_create(&sleeper.thread, NULL, ask_strictly, &sleeper) == 0);
    await_word(&rig->client->request_waiting, number, "a client that waits for its answer");
    usleep(10000);
    CHECK_EQ_U64(doorbell_rings(rig), 1);
    REQUIRE(ph_producer_request(&rig->producer, &request));
    CHECK(request.number == number && request.after == after && request.coordinator == coordinator);
    CHECK_EQ_U64(request.flags, coordinator == PH_RING_KEYLESS ? PH_STRICT_KEYLESS : 0);
    ph_producer_answer(&rig->producer, &request, status, value);
    pthread_join(sleeper.thread, NULL);
    CHECK_EQ_U64(sleeper.result, expected);
    CHECK_EQ_U64(ph_ring_status(rig->ring), ring);
    if (ring == PH_RING_EMPTY) {
        CHECK_EQ_U64(ph_ring_strict_status(rig->ring), strict);
    }
    if (expected == 0 && ring == PH_RING_EMPTY) {
        CHECK_EQ_U64(ph_ring_strict_detail(rig->ring), value);
    }
}

static void test_strict_answers(void) {
    struct rig rig;
    rig_open(&rig, 0, LONG_NS, 0);
    check_strict(&rig, PH_STRICT_OK, 1000, 999, 1000, PH_RING_READY, PH_RING_EMPTY);
    check_strict(&rig, PH_STRICT_ELSEWHERE, 0, 0, 0, PH_RING_ELSEWHERE, PH_RING_EMPTY);
    check_strict(&rig, PH_STRICT_REFUSED, 4005, 0, 0, PH_RING_REFUSED, PH_RING_EMPTY);
    check_strict(&rig, PH_STRICT_OK, 2000, 2000, 0, PH_RING_READY, PH_RING_DAMAGED);
    rig_close(&rig);
}

/* What was prefetched is handed out all the same, although it is lower. */
static void test_a_strict_id_leaves_the_floor(void) {
    struct rig rig;
    rig_open(&rig, 0, LONG_NS, 0);
    REQUIRE(refill(&rig, 10) == 10);
    CHECK_EQ_U64(ph_ring_next(rig.ring), id_of(START_TICK));
    struct sleeper sleeper = {.ring = rig.ring, .after = 0};
    struct ph_strict_request request;
    REQUIRE(pthread_create(&sleeper.thread, NULL, ask_strictly, &sleeper) == 0);
    await_word(&rig.client->request_waiting, 1, "a client that waits for its answer");
    REQUIRE(ph_producer_request(&rig.producer, &request));
    ph_producer_answer(&rig.producer, &request, PH_STRICT_OK, id_of(START_TICK + 10));
    pthread_join(sleeper.thread, NULL);
    CHECK_EQ_U64(sleeper.result, id_of(START_TICK + 10));
    CHECK_EQ_U64(ph_ring_next(rig.ring), id_of(START_TICK + 1));
    rig_close(&rig);
}

/* F35: an answer that nobody waits for any more is nobody's answer. */
static void test_late_answer_is_not_the_next_ones(void) {
    struct rig rig;
    struct ph_strict_request request;
    rig_open(&rig, 0, LONG_NS, 0);
    CHECK_EQ_U64(ph_ring_strict_locked(rig.ring, 0, 0, MS), 0);
    CHECK_EQ_U64(ph_ring_strict_status(rig.ring), PH_RING_TIMED_OUT);
    REQUIRE(ph_producer_request(&rig.producer, &request));
    ph_producer_answer(&rig.producer, &request, PH_STRICT_OK, 1000);
    CHECK_EQ_U64(ph_ring_strict_locked(rig.ring, 0, 0, MS), 0);
    CHECK_EQ_U64(ph_ring_strict_status(rig.ring), PH_RING_TIMED_OUT);
    rig_close(&rig);
}

static void test_no_doorbell_while_the_worker_looks(void) {
    struct rig rig;
    rig_open(&rig, 0, LONG_NS, 0);
    ph_producer_set_polling(&rig.producer, 1);
    CHECK_EQ_U64(ph_ring_strict_locked(rig.ring, 0, 0, MS), 0);
    CHECK_EQ_U64(doorbell_rings(&rig), 0);
    ph_producer_set_polling(&rig.producer, 0);
    CHECK_EQ_U64(ph_ring_strict_locked(rig.ring, 0, 0, MS), 0);
    CHECK_EQ_U64(doorbell_rings(&rig), 1);
    rig_close(&rig);
}

/* ---- the order of stores, made visible by page protection ---- */

static struct {
    struct rig *rig;
    void *page;
    uintptr_t first_store;
} trap;

static void on_store(int signal_number, siginfo_t *info, void *context) {
    (void)signal_number;
    (void)context;
    trap.first_store = (uintptr_t)info->si_addr;
    mprotect(trap.page, PH_RING_SEGMENT_BYTES, PROT_READ | PROT_WRITE);
    if (trap.rig != NULL) { /* what a worker might do as soon as the cursor is past the slot */
        trap.rig->producer.grants->slots[0] = (struct ph_grant){START_TICK + 5000, 1, UINT64_MAX / 2, 0};
    }
}

static void trap_first_store(void *page, struct rig *rig) {
    struct sigaction action = {.sa_sigaction = on_store, .sa_flags = SA_SIGINFO | SA_NODEFER};
    trap.rig = rig;
    trap.page = page;
    trap.first_store = 0;
    REQUIRE(sigaction(SIGSEGV, &action, NULL) == 0);
    REQUIRE(mprotect(page, PH_RING_SEGMENT_BYTES, PROT_READ) == 0);
}

/* Where the handle has mapped the client's segment: the mapping of it that is not the test's own. */
static void *mapping_of_client(const struct rig *rig) {
    char line[512];
    void *found = NULL;
    FILE *maps = fopen("/proc/self/maps", "r");
    REQUIRE(maps != NULL);
    while (fgets(line, sizeof line, maps) != NULL) {
        void *start = (void *)(uintptr_t)strtoull(line, NULL, 16);
        if (strstr(line, " rw-s ") != NULL && strstr(line, "pharaoh-client") != NULL && start != (void *)rig->client) {
            found = start;
        }
    }
    fclose(maps);
    REQUIRE(found != NULL);
    return found;
}

static void test_slot_is_copied_before_the_cursor_moves(void) {
    struct rig rig;
    rig_open(&rig, 0, LONG_NS, 0);
    REQUIRE(refill(&rig, 10) == 10);
    trap_first_store(mapping_of_client(&rig), &rig);
    CHECK_EQ_U64(ph_ring_next(rig.ring), id_of(START_TICK));
    CHECK(trap.first_store != 0);
    rig_close(&rig);
}

static void test_published_last(void) {
    struct rig rig;
    struct ph_strict_request request = {.number = 1};
    rig_open(&rig, 0, LONG_NS, 0);
    const struct ph_grants_segment *grants = rig.producer.grants;
    trap_first_store(rig.producer.grants, NULL);
    REQUIRE(refill(&rig, 10) == 10);
    CHECK(trap.first_store >= (uintptr_t)&grants->slots[0] && trap.first_store < (uintptr_t)&grants->slots[1]);
    trap_first_store(rig.producer.grants, NULL);
    ph_producer_answer(&rig.producer, &request, PH_STRICT_OK, 7);
    CHECK(trap.first_store == (uintptr_t)&grants->answer_status ||
          trap.first_store == (uintptr_t)&grants->answer_value);
    rig_close(&rig);
}

int main(void) {
    alarm(250);
    RUN(test_deadlines);
    RUN(test_skew);
    RUN(test_half_empty_rings_for_more);
    RUN(test_floor_burns_what_lies_below);
    RUN(test_damaged_segments);
    RUN(test_open_refuses_what_is_no_ring);
    RUN(test_revoked_ring_still_gives_what_it_holds);
    RUN(test_sleeper_is_woken);
    RUN(test_strict_answers);
    RUN(test_a_strict_id_leaves_the_floor);
    RUN(test_late_answer_is_not_the_next_ones);
    RUN(test_no_doorbell_while_the_worker_looks);
    RUN(test_slot_is_copied_before_the_cursor_moves);
    RUN(test_published_last);
    if (check_tests_failed > 0) {
        return check_report(); /* what follows would mostly wait in vain */
    }
    RUN(test_nothing_twice_nothing_lost);
    RUN(test_nothing_twice_with_strict_requests);
    RUN(test_counters_wrap_at_32_bits);
    RUN(test_counters_wrap_at_64_bits);
    return check_report();
}
