/*
 * Dense counters in memory, and their records. F2, F35.
 *
 * Invariants
 * - A counter is found by its kind and name, whatever the name, and nothing else is.
 * - A request that was counted and is among the 64 sessions used last is never counted again; one that is not known any
 *   more is not taken for new; a session that a newer one of its client has overtaken gets nothing.
 * - The records of a life, applied to an empty table, give the same table; also when counters were copied in between, and
 *   when only the copies and what came after them are left.
 * - Bytes that are not records of this version are refused, or make a table; never anything worse.
 */
#define _GNU_SOURCE
#include "engine/counters.h"

#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "check.h"
#include "random.h"

static struct random random_state;

static uint64_t below(uint64_t end) { return random_below(&random_state, end); }

/* --- names */

/* The name of a number, in one of many shapes; every number another one. */
static struct ph_bytes name_of(uint32_t number, uint8_t *text) {
    static const char prefix[] = "a long beginning that all of these names have in common, as topics do: ";
    uint32_t length;
    if (number == 0) {
        return (struct ph_bytes){text, 0};
    }
    if (number % 1000 == 1) { /* as long as may be; they differ in the last bytes only */
        memset(text, 'x', PH_NAME_BYTES_MAX);
        memcpy(text + PH_NAME_BYTES_MAX - sizeof number, &number, sizeof number);
        return (struct ph_bytes){text, PH_NAME_BYTES_MAX};
    }
    switch (number % 4) {
    case 0: /* binary, with zeros in it */
        memcpy(text, &number, sizeof number);
        return (struct ph_bytes){text, sizeof number};
    case 1: /* prefixes of each other */
        length = 5 + number / 4 % 3000;
        memset(text, 'y', length);
        memcpy(text, &(uint32_t){number / 4 / 3000}, 4);
        return (struct ph_bytes){text, length};
    case 2:
        memcpy(text, prefix, sizeof prefix - 1);
        length = sizeof prefix - 1;
        return (struct ph_bytes){text, length + (uint32_t)sprintf((char *)text + length, "%u", number)};
    default:
        return (struct ph_bytes){text, (uint32_t)sprintf((char *)text, "%u", number)};
    }
}

static void test_index(void) {
    uint8_t text[PH_NAME_BYTES_MAX];
    struct ph_counters counters;
    struct ph_counter *early[2000];
    uint32_t count = (uint32_t)random_rounds(300000);
    ph_counters_init(&counters);
    for (uint32_t i = 0; i < count; i++) {
        struct ph_counter *counter = ph_counters_add(&counters, PH_KIND_OFFSET, name_of(i, text), i);
        REQUIRE(counter != NULL && counter->number == i);
        if (i < 2000) {
            early[i] = counter;
        }
    }
    for (uint32_t i = 0; i < count; i++) {
        struct ph_bytes name = name_of(i, text);
        const struct ph_counter *counter = ph_counters_find(&counters, PH_KIND_OFFSET, name);
        REQUIRE(counter != NULL && counter->number == i);
        REQUIRE(counter->next == i && counter->bound == i && counter->kind == PH_KIND_OFFSET);
        REQUIRE(counter->name_length == name.length && memcmp(counter->name, text, name.length) == 0);
        REQUIRE(ph_counters_at(&counters, i) == counter && (i >= 2000 || early[i] == counter));
        CHECK(ph_counters_find(&counters, PH_KIND_GROUP, name) == NULL);
        CHECK(ph_counters_find(&counters, PH_KIND_OFFSET, name_of(count + i, text)) == NULL);
    }
    CHECK_EQ_U64(counters.size, count);
    CHECK_EQ_U64(counters.defined, count);
    CHECK(ph_counters_complete(&counters));
    CHECK(ph_counters_at(&counters, count) == NULL);
    CHECK(ph_counters_at(&counters, UINT32_MAX) == NULL);
    ph_counters_free(&counters);
    CHECK(ph_counters_find(&counters, PH_KIND_OFFSET, name_of(0, text)) == NULL);
}

/* Many enough that some have the same hash; they are of one length and begin alike. */
static void test_names_of_the_same_hash(void) {
    struct ph_counters counters;
    uint8_t text[8] = "name";
    ph_counters_init(&counters);
    for (uint32_t i = 0; i < 300000; i++) {
        memcpy(text + 4, &i, sizeof i);
        struct ph_bytes name = {text, sizeof text};
        CHECK(ph_counters_find(&counters, PH_KIND_OFFSET, name) == NULL);
        REQUIRE(ph_counters_add(&counters, PH_KIND_OFFSET, name, i) != NULL);
    }
    ph_counters_free(&counters);
}

/* The same name in each kind is another counter. */
static void test_kinds(void) {
    struct ph_counters counters;
    ph_counters_init(&counters);
    struct ph_bytes name = {(const uint8_t *)"orders", 6};
    for (uint32_t kind = PH_KIND_GROUP; kind < PH_KIND_END; kind++) {
        CHECK(ph_counters_find(&counters, kind, name) == NULL);
        REQUIRE(ph_counters_add(&counters, kind, name, 10 * kind) != NULL);
    }
    for (uint32_t kind = PH_KIND_GROUP; kind < PH_KIND_END; kind++) {
        const struct ph_counter *counter = ph_counters_find(&counters, kind, name);
        REQUIRE(counter != NULL);
        CHECK_EQ_U64(counter->next, 10 * kind);
    }
    ph_counters_free(&counters);
}

/* These outlive the process: by SipHash-1-3 as written down in another language, which agrees with its authors' vector. */
static void test_hashes_of_clients(void) {
    static const struct {
        const char *client;
        uint64_t hash;
    } known[] = {
        {"", UINT64_C(0x77c76168f4707389)},
        {"a", UINT64_C(0x39a681a015bb5675)},
        {"1234567", UINT64_C(0xadb86502f912ea9d)},
        {"12345678", UINT64_C(0xc4b260e85e1f51fe)},
        {"consumer-17/partition-3", UINT64_C(0xce68c45c25a85e5d)},
    };
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        struct ph_bytes client = {(const uint8_t *)known[i].client, (uint32_t)strlen(known[i].client)};
        CHECK_EQ_U64(ph_client_hash(client), known[i].hash);
    }
}

/* --- sessions */

#define SESSIONS 200

/* Everything that ever counted on one counter: what the 64 that are remembered are measured against. */
struct history {
    struct ph_session last[SESSIONS]; /* by session; count 0: never */
    uint64_t used[SESSIONS];          /* when */
    uint64_t now;
};

/* How many sessions were used later. */
static uint32_t later(const struct history *history, uint64_t session) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < SESSIONS; i++) {
        count += history->used[i] > history->used[session];
    }
    return count;
}

static int is_remembered(const struct history *history, uint64_t session) {
    return history->last[session].count != 0 && later(history, session) < PH_SESSIONS_MAX;
}

/* Has a newer session of its client counted; among those remembered, or ever? */
static int is_overtaken(const struct history *history, const struct ph_token *token, int ever) {
    for (uint64_t other = token->session + 1; token->client != 0 && other < SESSIONS; other++) {
        if (history->last[other].count != 0 && history->last[other].token.client == token->client &&
            (ever || is_remembered(history, other))) {
            return 1;
        }
    }
    return 0;
}

static enum ph_token_state expected_state(const struct history *history, const struct ph_token *token) {
    const struct ph_session *last = &history->last[token->session];
    if (is_remembered(history, token->session)) {
        if (is_overtaken(history, token, 1) || token->sequence < last->token.sequence) {
            return PH_TOKEN_FENCED;
        }
        return token->sequence == last->token.sequence ? PH_TOKEN_REPEATED : PH_TOKEN_NEW;
    }
    if (is_overtaken(history, token, 0)) {
        return PH_TOKEN_FENCED;
    }
    for (uint64_t other = token->session; other < SESSIONS; other++) {
        if (history->last[other].count != 0 && !is_remembered(history, other)) {
            return PH_TOKEN_FORGOTTEN;
        }
    }
    return PH_TOKEN_NEW;
}

/* One request; `clients` 0: without client ids. */
static void request(struct ph_counters *counters, struct ph_counter *counter, struct history *history,
                    uint64_t sessions, uint64_t clients) {
    uint64_t number = 1 + below(sessions - 1);
    const struct ph_session *last = &history->last[number];
    struct ph_token token = {number, last->token.sequence + below(4), clients != 0 ? 1 + number % clients : 0};
    token.sequence -= token.sequence > 0 && below(4) == 0;
    const struct ph_session *known = NULL;
    enum ph_token_state state = ph_counter_judge(counter, &token, &known);
    CHECK_EQ_U64(state, expected_state(history, &token));
    if (state == PH_TOKEN_REPEATED) {
        REQUIRE(known != NULL);
        CHECK_EQ_U64(known->first, last->first);
        CHECK_EQ_U64(known->count, last->count);
    } else if (state == PH_TOKEN_NEW) {
        struct ph_session session = {.token = token, .first = counter->next, .count = (uint32_t)(1 + below(9))};
        counter->next += session.count;
        REQUIRE(ph_counter_remember(counters, counter, &session) == 0);
        history->last[number] = session;
        history->used[number] = ++history->now;
    }
}

/* F35: whatever is asked for again, by a history that forgets nothing. */
static void test_sessions(void) {
    for (uint64_t round = random_rounds(60); round > 0; round--) {
        struct history history = {.now = 0};
        struct ph_counters counters;
        ph_counters_init(&counters);
        struct ph_counter *counter =
            ph_counters_add(&counters, PH_KIND_OFFSET, (struct ph_bytes){(const uint8_t *)"p", 1}, 0);
        uint64_t sessions = 2 + below(SESSIONS - 2);
        uint64_t clients = below(3) * below(40);
        for (int i = 0; i < 2000; i++) {
            request(&counters, counter, &history, sessions, clients);
        }
        CHECK(counter->sessions->count <= PH_SESSIONS_MAX);
        ph_counters_free(&counters);
    }
}

static struct ph_session session_of(uint64_t session, uint64_t sequence, uint64_t client) {
    return (struct ph_session){.token = {session, sequence, client}, .first = 10 * session, .count = 1};
}

static enum ph_token_state judge(const struct ph_counter *counter, uint64_t session, uint64_t sequence,
                                 uint64_t client) {
    const struct ph_session *known;
    struct ph_token token = {session, sequence, client};
    return ph_counter_judge(counter, &token, &known);
}

/* F35: the contract's sentences, one after the other. */
static void test_the_rules_of_tokens(void) {
    struct ph_counters counters;
    ph_counters_init(&counters);
    struct ph_counter *counter =
        ph_counters_add(&counters, PH_KIND_GROUP, (struct ph_bytes){(const uint8_t *)"g", 1}, 1);
    CHECK_EQ_U64(judge(counter, 1, 0, 0), PH_TOKEN_NEW);
    for (uint64_t i = 1; i <= PH_SESSIONS_MAX; i++) {
        struct ph_session session = session_of(100 + i, 5, i == 1 ? 77 : 0);
        REQUIRE(ph_counter_remember(&counters, counter, &session) == 0);
    }
    CHECK_EQ_U64(judge(counter, 101, 5, 77), PH_TOKEN_REPEATED);
    CHECK_EQ_U64(judge(counter, 101, 5, 0), PH_TOKEN_REPEATED);
    CHECK_EQ_U64(judge(counter, 101, 4, 77), PH_TOKEN_FENCED);
    CHECK_EQ_U64(judge(counter, 101, 9, 77), PH_TOKEN_NEW);
    CHECK_EQ_U64(judge(counter, 50, 0, 0), PH_TOKEN_NEW);     /* nothing was forgotten yet */
    CHECK_EQ_U64(judge(counter, 50, 0, 77), PH_TOKEN_FENCED); /* 101 is newer */
    CHECK_EQ_U64(judge(counter, 110, 5, 77), PH_TOKEN_REPEATED);
    struct ph_session used_again = session_of(101, 6, 0);
    REQUIRE(ph_counter_remember(&counters, counter, &used_again) == 0);
    struct ph_session newest = session_of(500, 0, 77);
    REQUIRE(ph_counter_remember(&counters, counter, &newest) == 0);
    CHECK_EQ_U64(counter->sessions->count, PH_SESSIONS_MAX);
    CHECK_EQ_U64(counter->sessions->forgotten, 102); /* 101 was used later */
    CHECK_EQ_U64(judge(counter, 102, 5, 0), PH_TOKEN_FORGOTTEN);
    CHECK_EQ_U64(judge(counter, 102, 6, 0), PH_TOKEN_FORGOTTEN);
    CHECK_EQ_U64(judge(counter, 50, 0, 0), PH_TOKEN_FORGOTTEN);
    CHECK_EQ_U64(judge(counter, 103, 5, 0), PH_TOKEN_REPEATED);
    CHECK_EQ_U64(judge(counter, 103, 6, 77), PH_TOKEN_FENCED); /* says only now whose it is */
    CHECK_EQ_U64(judge(counter, 101, 6, 0), PH_TOKEN_FENCED);  /* keeps its client, whom 500 has taken over */
    CHECK_EQ_U64(judge(counter, 501, 0, 77), PH_TOKEN_NEW);
    ph_counters_free(&counters);
}

/* --- records */

struct records {
    uint8_t *data;
    size_t length, capacity;
};

static uint8_t *room_in(struct records *records, size_t bytes) {
    if (records->capacity - records->length < bytes) {
        records->capacity = 2 * (records->capacity + bytes);
        records->data = realloc(records->data, records->capacity);
        REQUIRE(records->data != NULL);
    }
    return records->data + records->length;
}

static int apply(struct ph_counters *counters, const struct records *records) {
    return ph_counters_apply(counters, records->data, records->length);
}

/* Is what was replayed what was lived through? A reserving counter goes on at its bound. */
static int same_counter(const struct ph_counter *lived, const struct ph_counter *replayed) {
    uint32_t count = lived->sessions != NULL ? lived->sessions->count : 0;
    if (replayed == NULL || replayed->next != lived->bound || replayed->bound != lived->bound ||
        replayed->kind != lived->kind || replayed->number != lived->number ||
        replayed->name_length != lived->name_length || memcmp(replayed->name, lived->name, lived->name_length) != 0 ||
        count != (replayed->sessions != NULL ? replayed->sessions->count : 0)) {
        return 0;
    }
    for (uint32_t i = 0; i < count; i++) {
        const struct ph_session *a = &lived->sessions->list[i];
        const struct ph_session *b = &replayed->sessions->list[i];
        if (memcmp(&a->token, &b->token, sizeof a->token) != 0 || a->first != b->first || a->count != b->count ||
            a->fenced != b->fenced) {
            return 0;
        }
    }
    return (lived->sessions != NULL ? lived->sessions->forgotten : 0) ==
           (replayed->sessions != NULL ? replayed->sessions->forgotten : 0);
}

static void check_same(const struct ph_counters *lived, const struct ph_counters *replayed) {
    struct ph_counter *found;
    CHECK_EQ_U64(replayed->size, lived->size);
    CHECK_EQ_U64(replayed->live_bytes, lived->live_bytes);
    CHECK(ph_counters_complete(replayed));
    for (uint32_t i = 0; i < lived->size; i++) {
        const struct ph_counter *counter = ph_counters_at(lived, i);
        CHECK(same_counter(counter, ph_counters_at(replayed, i)));
        struct ph_bytes name = {counter->name, counter->name_length};
        found = ph_counters_find(replayed, counter->kind, name);
        CHECK(found != NULL && found->number == i);
    }
}

static void check_replay(const struct ph_counters *lived, const struct records *first, const struct records *second) {
    struct ph_counters replayed;
    ph_counters_init(&replayed);
    CHECK_EQ_U64(apply(&replayed, first), 0);
    CHECK_EQ_U64(second != NULL ? apply(&replayed, second) : 0, 0);
    check_same(lived, &replayed);
    ph_counters_free(&replayed);
}

static void check_live_bytes(const struct ph_counters *counters) {
    static uint8_t out[PH_COUNTER_RECORDS_MAX];
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < counters->size; i++) {
        bytes += ph_record_counter(out, ph_counters_at(counters, i));
    }
    CHECK_EQ_U64(counters->live_bytes, bytes);
}

static struct ph_counter *random_counter(struct ph_counters *counters, struct records *records, uint32_t names) {
    uint8_t text[PH_NAME_BYTES_MAX];
    uint32_t number = (uint32_t)below(names);
    uint32_t kind = PH_KIND_GROUP + number % 3;
    struct ph_counter *counter = ph_counters_find(counters, kind, name_of(number, text));
    if (counter == NULL) {
        counter = ph_counters_add(counters, kind, name_of(number, text), below(2));
        REQUIRE(counter != NULL);
        records->length += ph_record_counter(room_in(records, PH_COUNTER_RECORDS_MAX), counter);
    }
    return counter;
}

/* A request, written down as dense.c does it: by itself, with its session, or into the record just written. */
static void live_once(struct ph_counters *counters, struct records *records, uint32_t names) {
    struct ph_counter *counter = random_counter(counters, records, names);
    struct ph_session session = session_of(1 + below(90), below(1000), below(3) * below(20));
    session.first = counter->next;
    session.count = (uint32_t)(1 + below(50));
    counter->next += session.count;
    counter->bound = below(4) == 0 ? counter->next + below(1000) : counter->next;
    uint8_t *out = room_in(records, PH_COUNTER_RECORDS_MAX);
    if (below(3) == 0) {
        REQUIRE(ph_counter_remember(counters, counter, &session) == 0);
        const struct ph_session *kept = &counter->sessions->list[counter->sessions->count - 1];
        records->length += ph_record_session(out, counter, kept);
    } else {
        records->length += ph_record_value(out, counter);
    }
    if (below(4) == 0) {
        counter->next += 5;
        counter->bound = counter->next;
        ph_record_set_bound(out, counter->bound);
    }
}

/* Lives on while some counters after the other are copied, as a rewrite does; then only the new records count. */
static void rewrite(struct ph_counters *counters, struct records *records, uint32_t names) {
    struct records next = {NULL, 0, 0};
    uint32_t copied = 0;
    for (live_once(counters, &next, names); copied < counters->size; live_once(counters, &next, names)) {
        if (below(8) == 0) {
            check_replay(counters, records, &next); /* a start that finds both files */
        }
        for (uint64_t some = below(10); some > 0 && copied < counters->size; some--) {
            struct ph_counter *counter = ph_counters_at(counters, copied++);
            next.length += ph_record_counter(room_in(&next, PH_COUNTER_RECORDS_MAX), counter);
        }
    }
    free(records->data);
    *records = next;
}

static void test_replay(void) {
    for (uint64_t round = random_rounds(30); round > 0; round--) {
        struct ph_counters counters;
        struct records records = {NULL, 0, 0};
        uint32_t names = (uint32_t)(1 + below(60));
        ph_counters_init(&counters);
        live_once(&counters, &records, names);
        for (int i = 0; i < 3000; i++) {
            live_once(&counters, &records, names);
            if (below(500) == 0) {
                check_replay(&counters, &records, NULL);
                check_live_bytes(&counters);
            }
            if (below(1500) == 0) {
                rewrite(&counters, &records, names);
            }
        }
        check_replay(&counters, &records, NULL);
        check_live_bytes(&counters);
        free(records.data);
        ph_counters_free(&counters);
    }
}

/* A counter's own record says all of it: also that it has no sessions. */
static void test_a_counter_written_down_anew(void) {
    uint8_t record[64];
    struct ph_counters lived, replayed;
    struct records records = {NULL, 0, 0};
    struct ph_bytes name = {(const uint8_t *)"p", 1};
    struct ph_session session = session_of(9, 1, 1);
    ph_counters_init(&lived);
    ph_counters_init(&replayed);
    struct ph_counter *counter = ph_counters_add(&lived, PH_KIND_OFFSET, name, 3);
    size_t length = ph_record_counter(record, counter);
    REQUIRE(ph_counter_remember(&lived, counter, &session) == 0);
    records.length = ph_record_counter(room_in(&records, PH_COUNTER_RECORDS_MAX), counter);
    CHECK_EQ_U64(apply(&replayed, &records), 0);
    CHECK_EQ_U64(judge(ph_counters_at(&replayed, 0), 9, 1, 1), PH_TOKEN_REPEATED);
    CHECK_EQ_U64(ph_counters_apply(&replayed, record, length), 0);
    CHECK_EQ_U64(judge(ph_counters_at(&replayed, 0), 9, 1, 1), PH_TOKEN_NEW);
    CHECK_EQ_U64(replayed.live_bytes, length);
    free(records.data);
    ph_counters_free(&lived);
    ph_counters_free(&replayed);
}

/* What one counter takes when it is written down. */
static void test_the_largest_counter(void) {
    static uint8_t out[2 * PH_COUNTER_RECORDS_MAX];
    uint8_t text[PH_NAME_BYTES_MAX];
    struct ph_counters counters;
    ph_counters_init(&counters);
    struct ph_counter *counter = ph_counters_add(&counters, PH_KIND_OFFSET, name_of(1, text), 0);
    for (uint64_t i = 1; i <= 200; i++) {
        struct ph_session session = session_of(i, i, i);
        REQUIRE(ph_counter_remember(&counters, counter, &session) == 0);
    }
    size_t length = ph_record_counter(out, counter);
    CHECK(length <= PH_COUNTER_RECORDS_MAX && length > PH_COUNTER_RECORDS_MAX - 64);
    CHECK_EQ_U64(length % 8, 0);
    CHECK_EQ_U64(length, counters.live_bytes);
    ph_counters_free(&counters);
}

/* A value whose counter never comes: that is not a whole journal. */
static void test_a_counter_without_a_name(void) {
    uint8_t text[PH_NAME_BYTES_MAX];
    struct ph_counters lived, replayed;
    struct records records = {NULL, 0, 0};
    ph_counters_init(&lived);
    ph_counters_init(&replayed);
    for (uint32_t i = 0; i < 3000; i++) {
        REQUIRE(ph_counters_add(&lived, PH_KIND_GROUP, name_of(i, text), 1) != NULL);
    }
    records.length += ph_record_value(room_in(&records, 64), ph_counters_at(&lived, 2999));
    CHECK_EQ_U64(apply(&replayed, &records), 0);
    CHECK(!ph_counters_complete(&replayed));
    CHECK(ph_counters_at(&replayed, 2999) == NULL && ph_counters_at(&replayed, 1500) == NULL);
    records.length = 0;
    for (uint32_t i = 3000; i-- > 1;) {
        uint8_t *out = room_in(&records, PH_COUNTER_RECORDS_MAX);
        records.length += ph_record_counter(out, ph_counters_at(&lived, i));
    }
    CHECK_EQ_U64(apply(&replayed, &records), 0);
    CHECK(!ph_counters_complete(&replayed));
    records.length = 0;
    records.length = ph_record_counter(room_in(&records, 64), ph_counters_at(&lived, 0));
    CHECK_EQ_U64(apply(&replayed, &records), 0);
    check_same(&lived, &replayed);
    free(records.data);
    ph_counters_free(&lived);
    ph_counters_free(&replayed);
}

/* F2: each field by itself, in a counter's record and in a session's. */
static void test_malformed_records(void) {
    static const struct {
        size_t at, bytes;
        uint64_t value;
    } cases[] = {
        {0, 1, 0},          {0, 1, 4},    {0, 1, 255},
        {1, 1, 0},          {1, 1, 4},    {2, 2, PH_NAME_BYTES_MAX + 1},
        {2, 2, UINT16_MAX}, {2, 2, 3}, /* another name for a counter that has one */
        {2, 2, 4000},                  /* longer than what is there */
        {4, 4, UINT32_MAX}, {24, 1, 'x'}, {1, 1, PH_KIND_SCHEMA},
    };
    uint8_t text[PH_NAME_BYTES_MAX], good[PH_COUNTER_RECORDS_MAX], bad[PH_COUNTER_RECORDS_MAX];
    struct ph_counters counters, replayed;
    ph_counters_init(&counters);
    ph_counters_init(&replayed);
    struct ph_counter *counter = ph_counters_add(&counters, PH_KIND_OFFSET, name_of(7, text), 3);
    struct ph_session session = session_of(1, 2, 3);
    REQUIRE(ph_counter_remember(&counters, counter, &session) == 0);
    size_t length = ph_record_counter(good, counter);
    CHECK_EQ_U64(length, 24 + 8 + 56);
    CHECK_EQ_U64(ph_counters_apply(&replayed, good, length), 0);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        memcpy(bad, good, length);
        memcpy(bad + cases[i].at, &cases[i].value, cases[i].bytes);
        CHECK(ph_counters_apply(&replayed, bad, length) != 0);
    }
    memset(bad, 0, sizeof bad); /* a name that is too long, and all there */
    memcpy(bad, good, 24);
    memcpy(bad + 2, &(uint16_t){PH_NAME_BYTES_MAX + 8}, 2);
    memcpy(bad + 4, &(uint32_t){1}, 4);
    CHECK(ph_counters_apply(&replayed, bad, 24 + PH_NAME_BYTES_MAX + 8) != 0);
    for (size_t part = 0; part < length; part++) {
        uint8_t *exact = malloc(part + 1); /* so that a read beyond it is seen */
        REQUIRE(exact != NULL);
        memcpy(exact + 1, good, part);
        CHECK_EQ_U64(ph_counters_apply(&replayed, exact + 1, part) == 0, part == 0 || part == 32);
        free(exact);
    }
    ph_counters_free(&counters);
    ph_counters_free(&replayed);
}

/* Numbers stay small: how much memory the greatest one takes is not the question here. */
static void tame(uint8_t *data, size_t length) {
    for (size_t at = 0; at + 8 <= length; at += 8) {
        data[at + 6] = data[at + 7] = 0;
    }
}

static void damage(struct records *records) {
    for (uint64_t changes = 1 + below(6); changes > 0; changes--) {
        size_t at = (size_t)below(records->length / 8) * 8;
        size_t from = (size_t)below(records->length / 8) * 8;
        size_t most = records->length - (at > from ? at : from);
        switch (below(4)) {
        case 0:
            records->data[at] = (uint8_t)below(5);
            break;
        case 1:
            records->data[at + below(8)] ^= (uint8_t)(1U << below(8));
            break;
        case 2:
            memmove(records->data + at, records->data + from, (size_t)below(most + 1));
            break;
        default:
            records->length -= records->length > 64 ? below(64) : 0;
        }
    }
}

/* F2: records that were changed at random are refused or make a table; the sanitizers watch. */
static void test_fuzzed_records(void) {
    uint64_t refused = 0, taken = 0;
    for (uint64_t round = random_rounds(4000); round > 0; round--) {
        struct ph_counters counters, replayed;
        struct records records = {NULL, 0, 0}, copy = {NULL, 0, 0};
        ph_counters_init(&counters);
        ph_counters_init(&replayed);
        for (int i = 0; i < 40; i++) {
            live_once(&counters, &records, 12);
        }
        damage(&records);
        copy.data = malloc(records.length + 1);
        REQUIRE(copy.data != NULL);
        copy.length = records.length;
        memcpy(copy.data + 1, records.data, records.length);
        tame(copy.data + 1, copy.length);
        int result = ph_counters_apply(&replayed, copy.data + 1, copy.length);
        refused += result != 0;
        taken += result == 0;
        CHECK(replayed.defined <= replayed.size);
        live_once(&replayed, &records, 12);
        free(copy.data);
        free(records.data);
        ph_counters_free(&counters);
        ph_counters_free(&replayed);
    }
    CHECK(refused > 0 && taken > 0);
}

/* A counter that memory ran out for leaves no number without one behind: the journal would be refused for it. */
static void test_out_of_memory(void) {
    uint8_t text[PH_NAME_BYTES_MAX];
    struct rlimit limit, was;
    struct ph_counters counters;
    uint64_t pages = 0;
    uint32_t before = 3 << 15; /* the index has to grow for the next one */
    ph_counters_init(&counters);
    for (uint32_t i = 0; i < before; i++) {
        REQUIRE(ph_counters_add(&counters, PH_KIND_GROUP, name_of(4 * i + 3, text), 1) != NULL);
    }
    FILE *status = fopen("/proc/self/statm", "r");
    REQUIRE(status != NULL && fscanf(status, "%" SCNu64, &pages) == 1 && getrlimit(RLIMIT_AS, &was) == 0);
    fclose(status);
    limit = was;
    limit.rlim_cur = pages * (uint64_t)sysconf(_SC_PAGESIZE) + (256 << 10);
    REQUIRE(setrlimit(RLIMIT_AS, &limit) == 0);
    struct ph_counter *refused = ph_counters_add(&counters, PH_KIND_GROUP, name_of(4 * before + 3, text), 1);
    REQUIRE(setrlimit(RLIMIT_AS, &was) == 0);
    CHECK(refused == NULL);
    CHECK_EQ_U64(counters.size, before);
    CHECK(ph_counters_complete(&counters));
    struct ph_counter *made = ph_counters_add(&counters, PH_KIND_GROUP, name_of(4 * before + 3, text), 1);
    REQUIRE(made != NULL);
    CHECK_EQ_U64(made->number, before);
    CHECK(ph_counters_complete(&counters));
    ph_counters_free(&counters);
}

int main(void) {
    random_state = random_start();
    RUN(test_index);
    RUN(test_names_of_the_same_hash);
    RUN(test_kinds);
    RUN(test_hashes_of_clients);
    RUN(test_sessions);
    RUN(test_the_rules_of_tokens);
    RUN(test_replay);
    RUN(test_a_counter_written_down_anew);
    RUN(test_the_largest_counter);
    RUN(test_a_counter_without_a_name);
    RUN(test_malformed_records);
    RUN(test_fuzzed_records);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) /* they take the address space for themselves */
    RUN(test_out_of_memory);
#else
    (void)test_out_of_memory;
#endif
    return check_report();
}
