/*
 * The worker's side of a ring alone: what it believes, what it writes, how far it goes (F11, F17, F38).
 *
 * Invariants
 * - A cursor is believed only within [the last one believed, head]; anything else is damage or is taken for no news.
 * - No slot is written that the cursor has not passed; at most PH_RING_SLOTS grants lie in a ring.
 * - Every grant is of one millisecond, below limit and ceiling, and its deadline shrinks with its age.
 * - `want` stays within its bounds, whatever the client says it took, and changes once per refill at most.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "check.h"
#include "random.h"
#include "service/producer.h"

#define MS UINT64_C(1000000)
#define AGE_NS (10 * MS)
#define EVER (UINT64_C(1) << 50)

static const struct ph_layout layout = {41, 10, 13, 1000};

struct rig {
    uint64_t position;
    struct ph_issuer issuer;
    struct ph_producer producer;
    struct ph_client_segment *client; /* as the client sees it */
    struct ph_supply supply;
};

static void rig_open(struct rig *rig) {
    memset(rig, 0, sizeof *rig);
    rig->position = ph_tick_of_ms(&layout, 100);
    rig->issuer = (struct ph_issuer){layout, 3, &rig->position};
    REQUIRE(ph_producer_open(&rig->producer, &rig->issuer, AGE_NS) == 0);
    rig->client = mmap(NULL, PH_RING_SEGMENT_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, rig->producer.client_fd, 0);
    REQUIRE(rig->client != MAP_FAILED);
    rig->supply = (struct ph_supply){&rig->issuer, 0, EVER, EVER, 100, 0, 1000 * MS};
}

static void rig_close(struct rig *rig) {
    munmap(rig->client, PH_RING_SEGMENT_BYTES);
    ph_producer_close(&rig->producer);
}

/* Lets head and cursor begin at `at`, as though so many grants had gone through. */
static void rig_begin_at(struct rig *rig, uint64_t at) {
    rig->producer.head = rig->producer.cursor = at;
    ph_store_relaxed(&rig->producer.grants->head, at);
    ph_store_relaxed(&rig->client->cursor, at);
}

static void test_segments(void) {
    struct rig rig;
    rig_open(&rig);
    CHECK_EQ_U64(rig.producer.grants->magic, PH_RING_MAGIC);
    CHECK_EQ_U64(rig.producer.grants->coordinator, 3);
    CHECK_EQ_U64(rig.producer.grants->epoch_ms, 1000);
    int fixed = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
    CHECK((fcntl(rig.producer.grants_fd, F_GET_SEALS) & (fixed | F_SEAL_FUTURE_WRITE)) ==
          (fixed | F_SEAL_FUTURE_WRITE));
    CHECK((fcntl(rig.producer.client_fd, F_GET_SEALS) & fixed) == fixed);
    /* F38: whoever has the descriptors can neither write grants nor shrink anything */
    void *writable = mmap(NULL, PH_RING_SEGMENT_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, rig.producer.grants_fd, 0);
    CHECK(writable == MAP_FAILED && errno == EPERM);
    CHECK(ftruncate(rig.producer.client_fd, 0) == -1 && errno == EPERM);
    CHECK(ftruncate(rig.producer.grants_fd, 0) == -1 && errno == EPERM);
    CHECK(write(rig.producer.grants_fd, "x", 1) == -1 && errno == EPERM);
    void *readable = mmap(NULL, PH_RING_SEGMENT_BYTES, PROT_READ, MAP_SHARED, rig.producer.grants_fd, 0);
    REQUIRE(readable != MAP_FAILED);
    CHECK(mprotect(readable, PH_RING_SEGMENT_BYTES, PROT_READ | PROT_WRITE) == -1);
    munmap(readable, PH_RING_SEGMENT_BYTES);
    rig_close(&rig);
}

/* F17: too little of anything is an error, not a signal and not a ring in pieces. */
static void test_no_room_for_segments(void) {
    uint64_t position = 0;
    struct ph_issuer issuer = {layout, 3, &position};
    struct ph_producer producer;
    struct rlimit before;
    struct rlimit none;
    REQUIRE(getrlimit(RLIMIT_FSIZE, &before) == 0);
    none = (struct rlimit){4096, before.rlim_max};
    signal(SIGXFSZ, SIG_IGN);
    REQUIRE(setrlimit(RLIMIT_FSIZE, &none) == 0);
    errno = 0;
    CHECK_EQ_U64(ph_producer_open(&producer, &issuer, AGE_NS), EFBIG);
    REQUIRE(setrlimit(RLIMIT_FSIZE, &before) == 0);
    REQUIRE(getrlimit(RLIMIT_NOFILE, &before) == 0);
    int lowest = dup(0);
    for (int allowed = 0; allowed < 3; allowed++) {
        none = (struct rlimit){(rlim_t)(lowest + 1 + allowed), before.rlim_max};
        REQUIRE(setrlimit(RLIMIT_NOFILE, &none) == 0);
        CHECK_EQ_U64(ph_producer_open(&producer, &issuer, AGE_NS), EMFILE);
    }
    REQUIRE(setrlimit(RLIMIT_NOFILE, &before) == 0);
    close(lowest);
}

/* F38: one rig per lie. */
static void test_hostile_cursors(void) {
    static const struct {
        uint64_t cursor; /* the head is 10, the last cursor believed 4 */
        int64_t damaged;
        uint64_t believed;
    } lies[] = {
        {4, 0, 4},
        {10, 0, 10},
        {7, 0, 7},
        {3, 0, 4},
        {0, 0, 4},
        {11, 1, 4},
        {UINT64_MAX, 0, 4},
        {UINT64_MAX - 53, 0, 4},
        {UINT64_MAX - 54, 1, 4},
        {UINT64_MAX / 2, 1, 4},
        {UINT64_C(1) << 32, 1, 4},
        {10 + PH_RING_SLOTS, 1, 4},
    };
    for (size_t i = 0; i < sizeof lies / sizeof lies[0]; i++) {
        struct rig rig;
        rig_open(&rig);
        for (int grant = 0; grant < 10; grant++) {
            REQUIRE(ph_producer_refill(&rig.producer, &rig.supply, 5) == 5);
        }
        ph_store_relaxed(&rig.client->cursor, 4);
        REQUIRE(ph_producer_demand(&rig.producer, rig.supply.monotonic_ns) >= 0);
        ph_store_relaxed(&rig.client->cursor, lies[i].cursor);
        CHECK_EQ_U64(ph_producer_demand(&rig.producer, rig.supply.monotonic_ns) < 0, lies[i].damaged);
        CHECK_EQ_U64(rig.producer.cursor, lies[i].believed);
        rig_close(&rig);
    }
}

/* Hostile words at random, with the worker going on: what it believes stays in order, what it writes in its slots. */
static void check_state(const struct rig *rig, uint64_t cursor_before) {
    const struct ph_producer *producer = &rig->producer;
    CHECK(producer->head - producer->cursor <= PH_RING_SLOTS);
    CHECK(producer->cursor - cursor_before <= PH_RING_SLOTS);
    CHECK(producer->want >= PH_WANT_MIN && producer->want <= producer->want_max);
    CHECK_EQ_U64(ph_load_relaxed(&producer->grants->head), producer->head);
    for (uint64_t i = producer->cursor; i != producer->head; i++) {
        const struct ph_grant *slot = &producer->grants->slots[i % PH_RING_SLOTS];
        uint64_t first = ph_load_relaxed(&slot->first_tick);
        uint64_t count = ph_load_relaxed(&slot->count);
        CHECK(count > 0 && count == producer->counts[i % PH_RING_SLOTS]);
        CHECK_EQ_U64(ph_ms_of_tick(&layout, first), ph_ms_of_tick(&layout, first + count - 1));
        CHECK(first + count <= rig->position);
        if (i != producer->cursor) {
            const struct ph_grant *before = &producer->grants->slots[(i - 1) % PH_RING_SLOTS];
            CHECK(ph_load_relaxed(&before->first_tick) + ph_load_relaxed(&before->count) <= first);
        }
    }
}

static void test_random_client(void) {
    struct random random = random_start();
    static const uint64_t starts[] = {0, UINT32_MAX - 20, UINT64_MAX - 20, UINT64_C(1) << 63};
    for (size_t start = 0; start < 4; start++) {
        struct rig rig;
        rig_open(&rig);
        rig_begin_at(&rig, starts[start]);
        for (uint64_t round = 0; round < random_rounds(3000); round++) {
            uint64_t before = rig.producer.cursor;
            uint64_t span = rig.producer.head - before;
            ph_store_relaxed(&rig.client->cursor, random_chance(&random, 20)
                                                      ? random_u64(&random)
                                                      : before + random_below(&random, span + 2));
            ph_store_relaxed(&rig.client->waiting, random_u64(&random));
            ph_store_relaxed(&rig.client->taken, random_u64(&random));
            rig.supply.monotonic_ns += random_below(&random, 3 * MS);
            rig.supply.now_ms += random_below(&random, 2);
            rig.supply.limit_tick = ph_tick_of_ms(&layout, rig.supply.now_ms + 1);
            rig.supply.floor_tick = ph_tick_of_ms(&layout, rig.supply.now_ms - 3);
            int64_t lacking = ph_producer_demand(&rig.producer, rig.supply.monotonic_ns);
            if (lacking > 0) {
                uint64_t given = ph_producer_refill(&rig.producer, &rig.supply, (uint64_t)lacking);
                CHECK(given <= (uint64_t)lacking);
            }
            check_state(&rig, before);
        }
        rig_close(&rig);
    }
}

static void test_full_ring_gets_no_more(void) {
    struct rig rig;
    rig_open(&rig);
    for (int grant = 0; grant < PH_RING_SLOTS; grant++) {
        CHECK_EQ_U64(ph_producer_refill(&rig.producer, &rig.supply, 1), 1);
    }
    uint64_t next_tick = rig.position;
    CHECK_EQ_U64(ph_producer_refill(&rig.producer, &rig.supply, 1), 0);
    CHECK_EQ_U64(ph_producer_demand(&rig.producer, rig.supply.monotonic_ns), 0);
    CHECK_EQ_U64(rig.position, next_tick); /* nothing is taken that finds no place */
    ph_store_relaxed(&rig.client->cursor, 1);
    CHECK(ph_producer_demand(&rig.producer, rig.supply.monotonic_ns) >= 0);
    CHECK_EQ_U64(ph_producer_refill(&rig.producer, &rig.supply, 1), 1);
    rig_close(&rig);
}

/* An id may lie in the ring for as long as its age permits: what is older already has less time. */
static void test_deadlines(void) {
    struct rig rig;
    rig_open(&rig);
    rig.supply.now_ms = 103;
    rig.supply.ns_into_ms = 700000;
    rig.supply.limit_tick = ph_tick_of_ms(&layout, 104);
    CHECK_EQ_U64(ph_producer_refill(&rig.producer, &rig.supply, 4 * 8192), 4 * 8192);
    CHECK_EQ_U64(rig.producer.head, 4);
    for (uint64_t i = 0; i < 4; i++) {
        CHECK_EQ_U64(rig.producer.grants->slots[i].first_tick, ph_tick_of_ms(&layout, 100 + i));
        CHECK_EQ_U64(rig.producer.grants->slots[i].count, 8192);
        CHECK_EQ_U64(rig.producer.grants->slots[i].deadline_ns,
                     rig.supply.monotonic_ns + AGE_NS - (3 - i) * MS - 700000);
    }
    rig_close(&rig);
}

/* A client opens all that it was given, says how many of them it took, and `want` follows. */
static void take_all(struct rig *rig, uint64_t taken, uint64_t want) {
    ph_store_relaxed(&rig->client->taken, ph_load_relaxed(&rig->client->taken) + taken);
    ph_store_relaxed(&rig->client->cursor, rig->producer.head);
    CHECK_EQ_U64(ph_producer_demand(&rig->producer, rig->supply.monotonic_ns), want);
    CHECK_EQ_U64(rig->producer.want, want);
    CHECK_EQ_U64(ph_producer_demand(&rig->producer, rig->supply.monotonic_ns), want); /* once per refill */
}

static void test_appetite(void) {
    struct rig rig;
    rig_open(&rig);
    CHECK_EQ_U64(ph_producer_demand(&rig.producer, rig.supply.monotonic_ns), PH_WANT_MIN);
    uint64_t want = PH_WANT_MIN;
    for (int i = 0; i < 20; i++) { /* taken at once, again and again: more each time, up to the most */
        ph_producer_refill(&rig.producer, &rig.supply, 100);
        want = want * 2 < rig.producer.want_max ? want * 2 : rig.producer.want_max;
        take_all(&rig, 100, want);
    }
    CHECK_EQ_U64(want, 4 * 8192);
    ph_producer_refill(&rig.producer, &rig.supply, 100);
    rig.supply.monotonic_ns += AGE_NS / 2; /* taken in its own time: as much */
    take_all(&rig, 100, want);
    for (int i = 0; i < 20; i++) { /* left lying till it was too old: less each time */
        ph_producer_refill(&rig.producer, &rig.supply, 100);
        rig.supply.monotonic_ns += 2 * AGE_NS;
        want = want / 2 > PH_WANT_MIN ? want / 2 : PH_WANT_MIN;
        take_all(&rig, 10, want);
    }
    CHECK_EQ_U64(want, PH_WANT_MIN);
    rig_close(&rig);
}

static void test_requests(void) {
    struct rig rig;
    struct ph_strict_request request;
    rig_open(&rig);
    CHECK(!ph_producer_request(&rig.producer, &request));
    rig.client->request_after = 77;
    rig.client->request_flags = PH_STRICT_KEYLESS;
    rig.client->request_coordinator = 9;
    rig.client->request_number = 1;
    CHECK(ph_producer_request(&rig.producer, &request));
    CHECK(request.number == 1 && request.after == 77 && request.flags == PH_STRICT_KEYLESS && request.coordinator == 9);
    CHECK(ph_producer_request(&rig.producer, &request));
    ph_producer_answer(&rig.producer, &request, PH_STRICT_REFUSED, 4005);
    CHECK_EQ_U64(rig.producer.grants->answer_number, 1);
    CHECK_EQ_U64(rig.producer.grants->answer_status, PH_STRICT_REFUSED);
    CHECK_EQ_U64(rig.producer.grants->answer_value, 4005);
    CHECK(!ph_producer_request(&rig.producer, &request));
    rig.client->request_number = 0; /* a liar asks what it asked before: it gets another answer, and that is all */
    CHECK(ph_producer_request(&rig.producer, &request));
    ph_producer_answer(&rig.producer, &request, PH_STRICT_OK, 5);
    CHECK(!ph_producer_request(&rig.producer, &request));
    ph_producer_set_polling(&rig.producer, 1);
    CHECK_EQ_U64(rig.producer.grants->polling, 1);
    rig_close(&rig);
}

int main(void) {
    RUN(test_segments);
    RUN(test_no_room_for_segments);
    RUN(test_hostile_cursors);
    RUN(test_random_client);
    RUN(test_full_ring_gets_no_more);
    RUN(test_deadlines);
    RUN(test_appetite);
    RUN(test_requests);
    return check_report();
}
