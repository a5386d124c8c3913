/*
 * Dense counters in memory, and the records that make them durable.
 *
 * A counter has a kind, a name and `next`, the value that the next request gets. Its sessions remember the result of
 * each client's last request, so that a retry counts once. What happens to a counter is written down as records; applying
 * them in order to an empty table gives the same table again.
 *
 * Invariants
 * - `next` and `bound` only grow. Nothing at or above `bound` has been handed out, and `bound` is what records say.
 * - A record says what holds now (absolute values), so records may be repeated, and a counter may be written down anew
 *   at any time: the last record of a counter counts.
 * - The sessions are in the order of their last use. One that is dropped raises `forgotten`, so that a session that is
 *   unknown and greater than `forgotten` has certainly never counted here.
 */
#ifndef PH_COUNTERS_H
#define PH_COUNTERS_H

#include <stddef.h>
#include <stdint.h>

#include "base/frame.h"

#define PH_NAME_BYTES_MAX PH_KEY_BYTES_MAX
/* The most that one counter with all its sessions takes when it is written down. */
#define PH_COUNTER_RECORDS_MAX (32 + PH_NAME_BYTES_MAX + 56 * PH_SESSIONS_MAX)

enum ph_counter_kind { PH_KIND_GROUP = 1, PH_KIND_OFFSET = 2, PH_KIND_SCHEMA = 3, PH_KIND_END = 4 };

struct ph_token {
    uint64_t session; /* 0: no token */
    uint64_t sequence;
    uint64_t client; /* a hash of the client id, or 0 */
};

struct ph_session {
    struct ph_token token;
    uint64_t first; /* the result of the last request */
    uint64_t batch; /* in which that becomes durable */
    uint32_t count;
    uint32_t fenced; /* a newer session of its client has counted here */
};

struct ph_sessions {
    uint64_t forgotten; /* the greatest session that was dropped */
    uint32_t count;
    uint32_t capacity;
    struct ph_session list[]; /* the one used last comes last */
};

struct ph_counter {
    uint64_t next;
    uint64_t bound; /* not below `next`; above it only when the counter reserves ahead */
    uint64_t safe;  /* for one that reserves: a bound that is known to be durable */
    uint64_t batch; /* in which `bound` becomes durable */
    struct ph_sessions *sessions;
    const uint8_t *name; /* NULL: not defined yet */
    uint32_t number;
    uint32_t record_at; /* where its last record lies in the batch being filled */
    uint16_t name_length;
    uint8_t kind;
    uint8_t reserves;
};

struct ph_counters {
    struct ph_counter **blocks;
    uint64_t *index; /* the upper half of a name's hash, and 1 + the counter's number */
    uint8_t *names;
    void *name_blocks;
    size_t names_left;
    uint32_t size;    /* one more than the highest number seen */
    uint32_t defined; /* how many have a name */
    uint32_t index_capacity;
    uint64_t live_bytes; /* what writing all of them down takes */
    uint64_t seed[2];
};

void ph_counters_init(struct ph_counters *counters);
void ph_counters_free(struct ph_counters *counters);
struct ph_counter *ph_counters_find(const struct ph_counters *counters, uint32_t kind, struct ph_bytes name);
/* A new one. NULL: out of memory. */
struct ph_counter *ph_counters_add(struct ph_counters *counters, uint32_t kind, struct ph_bytes name, uint64_t next);
/* NULL: there is none of this number. */
struct ph_counter *ph_counters_at(const struct ph_counters *counters, uint32_t number);

enum ph_token_state {
    PH_TOKEN_NEW,
    PH_TOKEN_REPEATED, /* *session is what it got */
    PH_TOKEN_FENCED,
    PH_TOKEN_FORGOTTEN,
};
enum ph_token_state ph_counter_judge(const struct ph_counter *counter, const struct ph_token *token,
                                     const struct ph_session **session);
/* Remembers the result of a request whose token is new. Returns 0, or -1 when out of memory (then nothing changed). */
int ph_counter_remember(struct ph_counters *counters, struct ph_counter *counter, const struct ph_session *session);
/* The hash by which a client id is remembered; never 0. */
uint64_t ph_client_hash(struct ph_bytes client);

/* Each writes records to `out`, which has room for them, and returns their length. */
size_t ph_record_value(uint8_t *out, const struct ph_counter *counter);
size_t ph_record_session(uint8_t *out, const struct ph_counter *counter, const struct ph_session *session);
/* The whole counter with its sessions: PH_COUNTER_RECORDS_MAX at most. */
size_t ph_record_counter(uint8_t *out, const struct ph_counter *counter);
/* Any record begins so that its bound can be raised in place. */
void ph_record_set_bound(uint8_t *record, uint64_t bound);

/* Applies a batch's records. Returns 0, or -1 when they are not records of this version. */
int ph_counters_apply(struct ph_counters *counters, const uint8_t *records, size_t length);
/* After all batches: is there a counter behind every number? */
int ph_counters_complete(const struct ph_counters *counters);

#endif
