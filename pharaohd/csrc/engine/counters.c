#define _GNU_SOURCE
#include "engine/counters.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define BLOCK 1024 /* counters per block: they never move */
#define NAME_BLOCK_BYTES (64 << 10)
#define INDEX_MIN 64
#define CLIENT_SEED UINT64_C(0x746e65696c637068) /* fixed: hashes of client ids outlive the process */

enum record_kind { RECORD_COUNTER = 1, RECORD_VALUE = 2, RECORD_SESSION = 3 };

/* All records are multiples of 8 bytes. A counter's is followed by its name, padded with zeros. */
struct record_head {
    uint8_t kind;
    uint8_t counter_kind;
    uint16_t name_length;
    uint32_t number;
    uint64_t bound;
};

struct counter_record {
    struct record_head head;
    uint64_t forgotten;
};

struct session_record {
    struct record_head head;
    uint64_t session;
    uint64_t sequence;
    uint64_t client;
    uint64_t first;
    uint32_t count;
    uint32_t fenced;
};

static_assert(sizeof(struct record_head) == 16, "part of the journal's version");
static_assert(sizeof(struct counter_record) == 24, "part of the journal's version");
static_assert(sizeof(struct session_record) == 56, "part of the journal's version");
static_assert(sizeof(struct ph_counter) == 64, "one cache line");

static uint64_t rotate(uint64_t value, int by) { return value << by | value >> (64 - by); }

static void sip_round(uint64_t v[4]) {
    v[0] += v[1], v[1] = rotate(v[1], 13) ^ v[0], v[0] = rotate(v[0], 32);
    v[2] += v[3], v[3] = rotate(v[3], 16) ^ v[2];
    v[0] += v[3], v[3] = rotate(v[3], 21) ^ v[0];
    v[2] += v[1], v[1] = rotate(v[1], 17) ^ v[2], v[2] = rotate(v[2], 32);
}

/* SipHash-1-3 (Aumasson, Bernstein 2012): names come from clients, who must not be able to choose their place. */
static uint64_t hash(uint64_t seed0, uint64_t seed1, struct ph_bytes data) {
    uint64_t v[4] = {seed0 ^ UINT64_C(0x736f6d6570736575), seed1 ^ UINT64_C(0x646f72616e646f6d),
                     seed0 ^ UINT64_C(0x6c7967656e657261), seed1 ^ UINT64_C(0x7465646279746573)};
    uint32_t at = 0;
    for (; data.length - at >= 8; at += 8) {
        uint64_t word;
        memcpy(&word, data.data + at, sizeof word);
        v[3] ^= word;
        sip_round(v);
        v[0] ^= word;
    }
    uint64_t last = (uint64_t)data.length << 56;
    for (uint32_t i = 0; at + i < data.length; i++) {
        last |= (uint64_t)data.data[at + i] << (8 * i);
    }
    v[3] ^= last;
    sip_round(v);
    v[0] ^= last;
    v[2] ^= 0xff;
    for (int i = 0; i < 3; i++) {
        sip_round(v);
    }
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}

uint64_t ph_client_hash(struct ph_bytes client) {
    uint64_t value = hash(CLIENT_SEED, ~CLIENT_SEED, client);
    return value != 0 ? value : 1;
}

void ph_counters_init(struct ph_counters *counters) {
    *counters = (struct ph_counters){.size = 0};
    if (getrandom(counters->seed, sizeof counters->seed, 0) != sizeof counters->seed) {
        counters->seed[0] = (uint64_t)(uintptr_t)counters; /* cannot be: the seed only guards against flooding */
    }
}

void ph_counters_free(struct ph_counters *counters) {
    for (uint32_t i = 0; i < counters->size; i++) {
        struct ph_counter *counter = ph_counters_at(counters, i);
        free(counter != NULL ? counter->sessions : NULL);
    }
    for (uint32_t i = 0; i * BLOCK < counters->size; i++) {
        free(counters->blocks[i]);
    }
    while (counters->name_blocks != NULL) {
        void *next;
        memcpy(&next, counters->name_blocks, sizeof next);
        free(counters->name_blocks);
        counters->name_blocks = next;
    }
    free(counters->blocks);
    free(counters->index);
    *counters = (struct ph_counters){.size = 0};
}

struct ph_counter *ph_counters_at(const struct ph_counters *counters, uint32_t number) {
    if (number >= counters->size) {
        return NULL;
    }
    struct ph_counter *counter = &counters->blocks[number / BLOCK][number % BLOCK];
    return counter->name != NULL ? counter : NULL;
}

static uint32_t hash_of(const struct ph_counters *counters, uint32_t kind, struct ph_bytes name) {
    return (uint32_t)(hash(counters->seed[0] ^ kind, counters->seed[1], name) >> 32);
}

static int is_named(const struct ph_counter *counter, uint32_t kind, struct ph_bytes name) {
    return counter->kind == kind && counter->name_length == name.length &&
           (name.length == 0 || memcmp(counter->name, name.data, name.length) == 0);
}

struct ph_counter *ph_counters_find(const struct ph_counters *counters, uint32_t kind, struct ph_bytes name) {
    if (counters->index_capacity == 0) {
        return NULL;
    }
    uint32_t wanted = hash_of(counters, kind, name);
    for (uint32_t at = wanted;; at++) {
        uint64_t entry = counters->index[at & (counters->index_capacity - 1)];
        if (entry == 0) {
            return NULL;
        }
        if (entry >> 32 == wanted) {
            struct ph_counter *counter = ph_counters_at(counters, (uint32_t)entry - 1);
            if (is_named(counter, kind, name)) {
                return counter;
            }
        }
    }
}

static void put_entry(uint64_t *index, uint32_t capacity, uint64_t entry) {
    uint32_t at = (uint32_t)(entry >> 32);
    while (index[at & (capacity - 1)] != 0) {
        at++;
    }
    index[at & (capacity - 1)] = entry;
}

/* Room for one more: at most three quarters of the index are in use. */
static int grow_index(struct ph_counters *counters) {
    if ((uint64_t)(counters->defined + 1) * 4 <= (uint64_t)counters->index_capacity * 3) {
        return 0;
    }
    uint32_t capacity = counters->index_capacity != 0 ? 2 * counters->index_capacity : INDEX_MIN;
    uint64_t *index = calloc(capacity, sizeof *index);
    if (index == NULL) {
        return -1;
    }
    for (uint32_t i = 0; i < counters->index_capacity; i++) {
        if (counters->index[i] != 0) {
            put_entry(index, capacity, counters->index[i]);
        }
    }
    free(counters->index);
    counters->index = index;
    counters->index_capacity = capacity;
    return 0;
}

/* Makes the place of a number; those below it may come later, or are there. */
static struct ph_counter *place(struct ph_counters *counters, uint32_t number) {
    uint32_t have = (counters->size + BLOCK - 1) / BLOCK;
    uint32_t wanted = number / BLOCK + 1;
    if (wanted > have) {
        struct ph_counter **blocks = realloc(counters->blocks, wanted * sizeof *blocks);
        if (blocks == NULL) {
            return NULL;
        }
        counters->blocks = blocks;
        for (; have < wanted; have++) {
            blocks[have] = calloc(BLOCK, sizeof **blocks);
            if (blocks[have] == NULL) {
                return NULL;
            }
            counters->size = have * BLOCK + 1; /* so that this block is known; below `number`, or it itself */
        }
    }
    if (number >= counters->size) {
        counters->size = number + 1;
    }
    return &counters->blocks[number / BLOCK][number % BLOCK];
}

static const uint8_t *keep_name(struct ph_counters *counters, struct ph_bytes name) {
    size_t length = name.length > 0 ? name.length : 1; /* an empty name has an address too */
    if (counters->names_left < length) {
        uint8_t *block = malloc(sizeof(void *) + NAME_BLOCK_BYTES);
        if (block == NULL) {
            return NULL;
        }
        memcpy(block, &counters->name_blocks, sizeof(void *));
        counters->name_blocks = block;
        counters->names = block + sizeof(void *);
        counters->names_left = NAME_BLOCK_BYTES;
    }
    uint8_t *kept = counters->names;
    if (name.length > 0) {
        memcpy(kept, name.data, name.length);
    }
    counters->names += length;
    counters->names_left -= length;
    return kept;
}

static size_t padded(size_t length) { return (length + 7) & ~(size_t)7; }

static struct ph_counter *define(struct ph_counters *counters, uint32_t number, uint32_t kind, struct ph_bytes name) {
    const uint8_t *kept = grow_index(counters) == 0 ? keep_name(counters, name) : NULL;
    /* Last: a number that is taken without a counter behind it would make the journal incomplete. */
    struct ph_counter *counter = kept != NULL ? place(counters, number) : NULL;
    if (counter == NULL) {
        return NULL;
    }
    counter->number = number;
    counter->kind = (uint8_t)kind;
    counter->name = kept;
    counter->name_length = (uint16_t)name.length;
    counters->defined++;
    counters->live_bytes += sizeof(struct counter_record) + padded(name.length);
    uint64_t entry = (uint64_t)hash_of(counters, kind, name) << 32 | (number + 1);
    put_entry(counters->index, counters->index_capacity, entry);
    return counter;
}

struct ph_counter *ph_counters_add(struct ph_counters *counters, uint32_t kind, struct ph_bytes name, uint64_t next) {
    assert(name.length <= PH_NAME_BYTES_MAX);
    struct ph_counter *counter = define(counters, counters->size, kind, name);
    if (counter != NULL) {
        counter->next = counter->bound = next;
    }
    return counter;
}

/* --- sessions */

enum ph_token_state ph_counter_judge(const struct ph_counter *counter, const struct ph_token *token,
                                     const struct ph_session **session) {
    const struct ph_sessions *sessions = counter->sessions;
    const struct ph_session *last = NULL;
    int overtaken = 0; /* also when this session gave no client id until now */
    for (uint32_t i = 0; sessions != NULL && i < sessions->count; i++) {
        const struct ph_session *known = &sessions->list[i];
        if (known->token.session == token->session) {
            last = known;
        }
        overtaken |=
            token->client != 0 && known->token.client == token->client && known->token.session > token->session;
    }
    if (overtaken || (last != NULL && (last->fenced || token->sequence < last->token.sequence))) {
        return PH_TOKEN_FENCED;
    }
    if (last != NULL) {
        *session = last;
        return token->sequence == last->token.sequence ? PH_TOKEN_REPEATED : PH_TOKEN_NEW;
    }
    return sessions != NULL && token->session <= sessions->forgotten ? PH_TOKEN_FORGOTTEN : PH_TOKEN_NEW;
}

static struct ph_sessions *room_for_session(struct ph_counter *counter) {
    struct ph_sessions *sessions = counter->sessions;
    uint32_t capacity = sessions != NULL ? sessions->capacity : 0;
    if (sessions == NULL || (sessions->count == capacity && capacity < PH_SESSIONS_MAX)) {
        uint32_t wanted = capacity != 0 ? 2 * capacity : 1;
        struct ph_sessions *grown = realloc(sessions, sizeof *grown + wanted * sizeof grown->list[0]);
        if (grown == NULL) {
            return NULL;
        }
        if (sessions == NULL) {
            grown->forgotten = 0;
            grown->count = 0;
        }
        grown->capacity = wanted;
        counter->sessions = grown;
    }
    return counter->sessions;
}

static void drop_session(struct ph_counters *counters, struct ph_sessions *sessions, uint32_t at) {
    sessions->count--;
    memmove(&sessions->list[at], &sessions->list[at + 1], (sessions->count - at) * sizeof sessions->list[0]);
    counters->live_bytes -= sizeof(struct session_record);
}

int ph_counter_remember(struct ph_counters *counters, struct ph_counter *counter, const struct ph_session *session) {
    struct ph_sessions *sessions = room_for_session(counter);
    if (sessions == NULL) {
        return -1;
    }
    struct ph_session kept = *session;
    for (uint32_t i = 0; i < sessions->count; i++) {
        struct ph_session *known = &sessions->list[i];
        if (known->token.session == kept.token.session) {
            kept.token.client = kept.token.client != 0 ? kept.token.client : known->token.client;
            drop_session(counters, sessions, i);
            break;
        }
    }
    for (uint32_t i = 0; kept.token.client != 0 && i < sessions->count; i++) {
        struct ph_session *known = &sessions->list[i];
        known->fenced |= known->token.client == kept.token.client && known->token.session < kept.token.session;
    }
    if (sessions->count == PH_SESSIONS_MAX) {
        uint64_t oldest = sessions->list[0].token.session;
        sessions->forgotten = oldest > sessions->forgotten ? oldest : sessions->forgotten;
        drop_session(counters, sessions, 0);
    }
    sessions->list[sessions->count++] = kept;
    counters->live_bytes += sizeof(struct session_record);
    return 0;
}

/* --- records */

static struct record_head head_of(const struct ph_counter *counter, enum record_kind kind) {
    return (struct record_head){.kind = (uint8_t)kind,
                                .counter_kind = counter->kind,
                                .name_length = kind == RECORD_COUNTER ? counter->name_length : 0,
                                .number = counter->number,
                                .bound = counter->bound};
}

size_t ph_record_value(uint8_t *out, const struct ph_counter *counter) {
    struct record_head record = head_of(counter, RECORD_VALUE);
    memcpy(out, &record, sizeof record);
    return sizeof record;
}

size_t ph_record_session(uint8_t *out, const struct ph_counter *counter, const struct ph_session *session) {
    struct session_record record = {head_of(counter, RECORD_SESSION),
                                    session->token.session,
                                    session->token.sequence,
                                    session->token.client,
                                    session->first,
                                    session->count,
                                    session->fenced};
    memcpy(out, &record, sizeof record);
    return sizeof record;
}

size_t ph_record_counter(uint8_t *out, const struct ph_counter *counter) {
    const struct ph_sessions *sessions = counter->sessions;
    struct counter_record record = {head_of(counter, RECORD_COUNTER), sessions != NULL ? sessions->forgotten : 0};
    size_t length = sizeof record + padded(counter->name_length);
    memset(out, 0, length);
    memcpy(out, &record, sizeof record);
    memcpy(out + sizeof record, counter->name, counter->name_length);
    for (uint32_t i = 0; sessions != NULL && i < sessions->count; i++) {
        length += ph_record_session(out + length, counter, &sessions->list[i]);
    }
    return length;
}

void ph_record_set_bound(uint8_t *record, uint64_t bound) {
    memcpy(record + offsetof(struct record_head, bound), &bound, sizeof bound);
}

static int apply_counter(struct ph_counters *counters, const uint8_t *at) {
    struct counter_record record;
    memcpy(&record, at, sizeof record);
    struct ph_bytes name = {at + sizeof record, record.head.name_length};
    struct ph_counter *counter = ph_counters_at(counters, record.head.number);
    if (counter == NULL) {
        counter = define(counters, record.head.number, record.head.counter_kind, name);
    } else if (!is_named(counter, record.head.counter_kind, name)) {
        return -1;
    }
    if (counter == NULL) {
        return -1;
    }
    while (counter->sessions != NULL && counter->sessions->count > 0) {
        drop_session(counters, counter->sessions, counter->sessions->count - 1);
    }
    if (record.forgotten != 0 && room_for_session(counter) == NULL) {
        return -1;
    }
    if (counter->sessions != NULL) {
        counter->sessions->forgotten = record.forgotten;
    }
    counter->next = counter->bound = record.head.bound;
    return 0;
}

static int apply_session(struct ph_counters *counters, struct ph_counter *counter, const uint8_t *at) {
    struct session_record record;
    memcpy(&record, at, sizeof record);
    struct ph_session session = {.token = {record.session, record.sequence, record.client},
                                 .first = record.first,
                                 .count = record.count,
                                 .fenced = record.fenced};
    return ph_counter_remember(counters, counter, &session);
}

/* How long the record at `head` is; 0: not one of this version, or not whole. */
static size_t record_length(const struct record_head *head, size_t available) {
    size_t length = 0;
    if (head->counter_kind == 0 || head->counter_kind >= PH_KIND_END || head->number == UINT32_MAX) {
        return 0;
    }
    if (head->kind == RECORD_COUNTER && head->name_length <= PH_NAME_BYTES_MAX) {
        length = sizeof(struct counter_record) + padded(head->name_length);
    } else if (head->kind == RECORD_VALUE) {
        length = sizeof(struct record_head);
    } else if (head->kind == RECORD_SESSION) {
        length = sizeof(struct session_record);
    }
    return length <= available ? length : 0;
}

int ph_counters_apply(struct ph_counters *counters, const uint8_t *records, size_t length) {
    for (size_t at = 0; at < length;) {
        struct record_head head;
        if (length - at < sizeof head) {
            return -1;
        }
        memcpy(&head, records + at, sizeof head);
        size_t bytes = record_length(&head, length - at);
        if (bytes == 0) {
            return -1;
        }
        struct ph_counter *counter = ph_counters_at(counters, head.number);
        if (head.kind == RECORD_COUNTER) {
            if (apply_counter(counters, records + at) != 0) {
                return -1;
            }
        } else if (counter != NULL) {
            counter->next = counter->bound = head.bound;
            if (head.kind == RECORD_SESSION && apply_session(counters, counter, records + at) != 0) {
                return -1;
            }
        } else if (place(counters, head.number) == NULL) {
            return -1; /* its own record comes later: the journal was being rewritten */
        }
        at += bytes;
    }
    return 0;
}

int ph_counters_complete(const struct ph_counters *counters) { return counters->defined == counters->size; }
