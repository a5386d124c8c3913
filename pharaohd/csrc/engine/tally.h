/*
 * Dense counters: values, sessions' tokens, and batches of them. What is counted goes into a batch, the commit thread makes
 * the batch durable, and only then do the answers come out: one sync for all that came in during the last one. It knows no
 * connection: an answer that comes later is named by a ticket.
 *
 * Invariants
 * - An answer comes out after the batch that holds its value is durable. A reserving counter's value lies below a bound
 *   that is.
 * - What is refused has changed nothing: room for the record is made sure of before a counter is touched.
 * - The journal counts only once the Obelisk names it durably, so that its loss is noticed.
 */
#ifndef PH_TALLY_H
#define PH_TALLY_H

#include "base/ticket.h"
#include "durable/committer.h"
#include "engine/counters.h"
#include "engine/mint.h"

#define PH_ANSWERS_MAX 65536

struct ph_tally_config {
    struct ph_identity identity;
    const char *path;    /* of the journal */
    const char *reserve; /* which counters reserve ahead: "kind" or "kind:pattern", each ended by NUL, then "" */
    uint64_t reserve_ahead;
    uint64_t counters_max;
    uint64_t commit_spin_us;
    int event_fd; /* readable when a batch has become durable */
};

/* What a request came to, once it is known. */
struct ph_answer {
    struct ph_ticket ticket;
    uint64_t batch; /* in which it becomes durable */
    uint64_t value;
    uint64_t since_ns;
    int has_sessions; /* it is a counter's state: also how many sessions it has */
    uint32_t sessions;
};

/* What is counted since the last batch was handed over, and who waits. */
struct ph_batches {
    struct ph_counters counters;
    struct ph_committer committer;
    uint8_t *filling;   /* the batch being collected, room for its head included */
    uint8_t *in_flight; /* the one that was handed over */
    size_t length;
    size_t in_flight_length;
    uint64_t handed; /* the number of the last batch handed over */
    uint64_t handed_ns;
    uint64_t noted_ns; /* when the Obelisk was last told how far the journal has come */
    uint64_t noted_batch;
    uint64_t room_asked_ns;
    uint64_t rewrite_tried_ns;
    uint32_t copy_at; /* while the journal is rewritten: the next counter to write down */
    uint32_t copying;
    uint32_t first; /* of `answers`, in a circle */
    uint32_t count;
    struct ph_answer answers[PH_ANSWERS_MAX];
};

struct ph_tally {
    struct ph_tally_config config;
    struct ph_mint *mint; /* time, and the Obelisk's records */
    uint64_t stall_ms_max;
    struct ph_batches *batches; /* NULL: nothing was ever counted here */
};

/* Reads the journal that the Obelisk's newest record names, or that lies beside it. 0, or a code with `fault` filled in. */
int ph_tally_open(struct ph_tally *tally, const struct ph_tally_config *config, struct ph_mint *mint,
                  const struct ph_record *newest, struct ph_fault *fault);
/* For how long an answer may be outstanding. */
void ph_tally_set_stall(struct ph_tally *tally, uint64_t stall_ms_max);
/* Hands over what has been collected, if nothing is under way, and tells the Obelisk how far the journal has come. */
void ph_tally_commit(struct ph_tally *tally);
/* The next answer that has become durable; or one that has waited too long: *error is its code then, otherwise 0. Whether
   it was counted is not known then, and a retry with a token will tell. NULL when there is none. What is returned stays
   as it is until the next one is put off. */
const struct ph_answer *ph_tally_next_answer(struct ph_tally *tally, int *error);
int ph_tally_is_committing(const struct ph_tally *tally);
/* Whether anybody waits for an answer. */
int ph_tally_is_awaited(const struct ph_tally *tally);
/* At the end: makes everything durable, at its exact position, and ends the thread. Answers are still to be had. */
void ph_tally_finish(struct ph_tally *tally);
/* Which journal it was and what batch was its last; 0 and 0 when there is none. Frees what is left. */
void ph_tally_close(struct ph_tally *tally, uint64_t *journal_id, uint64_t *last_batch);

/* --- count.c */

struct ph_count {
    enum ph_counter_kind kind;
    struct ph_bytes name;
    uint64_t count;
    struct ph_token token;
    int may_wait; /* whoever asks has room for an answer that comes later */
};

enum ph_counted {
    PH_COUNTED,         /* *value is the first one */
    PH_COUNTED_LATER,   /* the answer will be of *batch: ph_tally_put_off() */
    PH_COUNTED_NOT_YET, /* to be asked again */
    PH_COUNTED_NOT,     /* refused: *error is the code, and *detail more of it or NULL */
};

struct ph_count_result {
    uint64_t value;
    uint64_t taken; /* so many values left the counter: none for a token that is known */
    uint64_t batch;
    int error;
    const char *detail;
};

/* Counts, once for each token. */
enum ph_counted ph_tally_count(struct ph_tally *tally, const struct ph_count *wanted, struct ph_count_result *result);
/* Raises a counter so that its next value is wanted->count. */
enum ph_counted ph_tally_raise(struct ph_tally *tally, const struct ph_count *wanted, struct ph_count_result *result);
/* A counter's state, once it is durable: LATER, or why not. */
enum ph_counted ph_tally_read(struct ph_tally *tally, const struct ph_count *wanted, struct ph_count_result *result,
                              uint32_t *sessions);
/* One past the last value of a kind of counter, and its first value. */
uint64_t ph_tally_end_of(const struct ph_tally *tally, enum ph_counter_kind kind);
uint64_t ph_tally_start_of(enum ph_counter_kind kind);
/* The answer with this ticket comes with that batch. */
void ph_tally_put_off(struct ph_tally *tally, struct ph_ticket ticket, const struct ph_count_result *result);
/* Likewise, and it tells how many sessions the counter has. */
void ph_tally_put_off_state(struct ph_tally *tally, struct ph_ticket ticket, const struct ph_count_result *result,
                            uint32_t sessions);

/* --- between tally.c and count.c */

/* May a request that needs `bytes` of records be carried out now? COUNTED: yes. */
enum ph_counted ph_tally_admit(struct ph_tally *tally, size_t bytes, int may_wait, int *error);
/* The number of the batch being collected. */
uint64_t ph_tally_batch(const struct ph_tally *tally);
/* Writes down a counter that is new. */
void ph_tally_note_counter(struct ph_tally *tally, struct ph_counter *counter);
/* Writes down a counter's bound, and with it the session that has just been remembered, if there is one. */
void ph_tally_note_value(struct ph_tally *tally, struct ph_counter *counter, const struct ph_session *session);
/* Whether a counter's name stands under counters.reserve. */
int ph_tally_reserves(const struct ph_tally *tally, uint32_t kind, struct ph_bytes name);

#endif
