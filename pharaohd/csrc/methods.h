/* What the files of methods share: methods.c has the table, issuing.c the ids, counting.c the dense values. */
#ifndef PH_METHODS_H
#define PH_METHODS_H

#include "crc.h"
#include "worker.h"

#define PH_LINK_PATIENCE_MS 300

struct ph_call {
    struct ph_worker *worker;
    struct ph_connection *connection;
    struct ph_request *request;
    struct ph_writer *writer;
};

typedef enum ph_outcome ph_method(struct ph_call *call);

enum ph_outcome ph_call_fail(struct ph_call *call, int code, const char *detail);
enum ph_outcome ph_call_bad_params(struct ph_call *call, const char *expected);
/* Nothing to be had at the moment: wait for time, a ceiling or a commit, up to a limit. */
enum ph_outcome ph_call_wait(struct ph_call *call);
/* Only the owner of the daemon and root. */
int ph_call_is_privileged(const struct ph_call *call);
void ph_put_pair(struct ph_writer *writer, const char *name, uint64_t value);
/* Passes the request on; it comes back with this connection's message id. */
enum ph_outcome ph_call_forward(struct ph_call *call, uint32_t target, const char *method, uint64_t patience_ms);

static inline uint32_t ph_coordinator_of_key(const struct ph_worker *worker, struct ph_bytes key) {
    return ph_crc32(key.data, key.length) % worker->config.identity.modulus;
}

/* Whether a coordinator of this host serves at the moment. */
int ph_is_live(const struct ph_worker *worker, uint32_t coordinator);

/* strict.c: an id of the mint of `owner`, or of this one in its place. direct: a sibling has sent it here. */
enum ph_outcome ph_strict_call(struct ph_call *call, uint32_t owner, uint64_t after, int direct);

/* issuing.c */
ph_method ph_next_id, ph_next_ids, ph_get_timestamp, ph_begin_transaction, ph_create_session, ph_next_event_id;
ph_method ph_forwarded_timestamp;

/* counting.c */
ph_method ph_join_group, ph_assign_offset, ph_counter_read, ph_counter_list, ph_counter_raise, ph_next_schema;
ph_method ph_register_schema, ph_get_schema, ph_list_schemas;
ph_method ph_forwarded_join, ph_forwarded_assign, ph_forwarded_read, ph_forwarded_raise;

#endif
