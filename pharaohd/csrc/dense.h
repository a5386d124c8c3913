/*
 * Dense counters as the loop serves them: what is counted goes into a batch, the commit thread makes the batch durable,
 * and only then do the replies leave: one sync for all that came in during the last one.
 *
 * Invariants
 * - A reply leaves after the batch that holds its value is durable. A reserving counter's value lies below a bound that is.
 * - What is refused has changed nothing: room for the record is made sure of before a counter is touched.
 * - The journal counts only once the Obelisk names it durably, so that its loss is noticed.
 */
#ifndef PH_DENSE_H
#define PH_DENSE_H

#include "committer.h"
#include "counters.h"
#include "worker.h"

#define PH_DENSE_PENDING_MAX 65536

/* A reply that waits for its batch. */
struct ph_dense_pending {
    struct ph_connection *connection;
    uint64_t batch;
    uint64_t value;
    uint64_t since_ns;
    uint32_t message_id;
    uint32_t sessions; /* for counter_read: 1 more than the counter has; otherwise 0 */
};

struct ph_dense {
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
    uint32_t first; /* of `pending`, in a circle */
    uint32_t count;
    struct ph_dense_pending pending[PH_DENSE_PENDING_MAX];
};

/* Reads the journal that the Obelisk names, or that lies beside it. Returns 0, or a code with `fault` filled in. */
int ph_dense_open(struct ph_worker *worker, struct ph_fault *fault);
/* Answers what has become durable, hands over what has been collected. */
void ph_dense_round(struct ph_worker *worker);
/* At the end: makes everything durable, at its exact position, and answers. */
void ph_dense_finish(struct ph_worker *worker);
void ph_dense_free(struct ph_worker *worker);

/*
 * May a request that needs `bytes` of records be carried out now? PH_DONE: yes, when *error is 0; otherwise that is the
 * answer. PH_WAIT: later.
 */
enum ph_outcome ph_dense_admit(struct ph_worker *worker, const struct ph_connection *connection, size_t bytes,
                               int *error);
int ph_dense_is_committing(const struct ph_dense *dense);
/* The number of the batch being collected. */
uint64_t ph_dense_batch(const struct ph_dense *dense);
/* Writes down a counter that is new. */
void ph_dense_note_counter(struct ph_dense *dense, struct ph_counter *counter);
/* Writes down a counter's bound, and with it the session that has just been remembered, if there is one. */
void ph_dense_note_value(struct ph_dense *dense, struct ph_counter *counter, const struct ph_session *session);
/* Answers with `value` once `batch` is durable. */
void ph_dense_reply(struct ph_worker *worker, struct ph_connection *connection, uint32_t message_id, uint64_t batch,
                    uint64_t value);
/* The reply that was last put off is a counter's state: also how many sessions it has. */
void ph_dense_reply_sessions(struct ph_dense *dense, uint32_t sessions);
/* Whether a counter's name stands under counters.reserve. */
int ph_dense_reserves(const struct ph_worker *worker, uint32_t kind, struct ph_bytes name);

#endif
