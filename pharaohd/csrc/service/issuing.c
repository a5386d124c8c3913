/* Methods that issue ids. */
#include "ph_errors.h"
#include "service/service.h"

static uint64_t id_of(const struct ph_service *service, uint64_t tick) {
    return ph_id_of_tick(&service->mint.issuer.layout, service->mint.issuer.coordinator, tick);
}

enum ph_outcome ph_next_id(struct ph_call *call) {
    if (call->request->param_count != 0) {
        return ph_call_bad_params(call, "next_id takes no parameters");
    }
    struct ph_run run = ph_share_take(call->service, 0, 1);
    if (run.count == 0) {
        return ph_call_wait(call);
    }
    ph_count(&call->service->slot->ids_socket, 1);
    ph_put_reply(call->writer, call->request->message_id);
    ph_put_uint(call->writer, id_of(call->service, run.first_tick));
    return PH_DONE;
}

/* Collects runs for the client until there are `wanted` ids; what it has is kept while it waits. */
static int collect_runs(struct ph_call *call, uint64_t wanted) {
    struct ph_client *client = call->client;
    while (client->run_ids < wanted && client->run_count < PH_RUNS_MAX) {
        struct ph_run run = ph_share_take(call->service, 0, wanted - client->run_ids);
        if (run.count == 0) {
            return 0;
        }
        ph_stream_restart_wait(&client->stream);
        client->runs[client->run_count++] = run;
        client->run_ids += (uint32_t)run.count;
    }
    return client->run_ids >= wanted;
}

enum ph_outcome ph_next_ids(struct ph_call *call) {
    struct ph_client *client = call->client;
    uint64_t wanted = ph_read_uint(&call->request->params);
    if (call->request->param_count != 1 || call->request->params.failed) {
        return ph_call_bad_params(call, "next_ids takes one number");
    }
    if (wanted < 1 || wanted > PH_IDS_MAX) {
        return ph_call_fail(call, PH_ERR_OUT_OF_RANGE, "next_ids takes 1 to " PH_TEXT(PH_IDS_MAX));
    }
    if (!collect_runs(call, wanted)) {
        return ph_call_wait(call);
    }
    ph_count(&call->service->slot->ids_socket, client->run_ids);
    ph_put_reply(call->writer, call->request->message_id);
    ph_put_array(call->writer, client->run_count);
    for (uint32_t i = 0; i < client->run_count; i++) {
        ph_put_array(call->writer, 2);
        ph_put_uint(call->writer, id_of(call->service, client->runs[i].first_tick));
        ph_put_uint(call->writer, client->runs[i].count);
    }
    client->run_count = client->run_ids = 0;
    return PH_DONE;
}

struct timestamp_params {
    struct ph_bytes key;
    int has_key;
    uint64_t after;
};

/* Leaves the request's own reader where it is: the request may have to be passed on. */
static int read_timestamp_params(const struct ph_request *request, struct timestamp_params *params) {
    struct ph_reader reader = request->params;
    *params = (struct timestamp_params){.after = 0};
    if (request->param_count > 2) {
        return 0;
    }
    if (request->param_count > 0 && !ph_read_nil(&reader)) {
        params->key = ph_read_key(&reader);
        params->has_key = 1;
    }
    if (request->param_count > 1 && !ph_read_nil(&reader)) {
        params->after = ph_read_uint(&reader);
    }
    return !reader.failed;
}

/* Without a key one coordinator serves for the whole host, so that there is one order for the host. */
static enum ph_outcome timestamp_of(struct ph_call *call, const struct timestamp_params *params, int direct) {
    uint32_t owner = call->service->first;
    if (params->has_key) {
        owner = ph_coordinator_of_key(call->service, params->key);
        if (params->key.length > PH_KEY_BYTES_MAX) {
            return ph_call_fail(call, PH_ERR_KEY_TOO_LONG, PH_TEXT(PH_KEY_BYTES_MAX) " bytes at most");
        }
        if (call->service->slot_of[owner] == 0) {
            return ph_call_fail(call, PH_ERR_WRONG_COORDINATOR, NULL);
        }
    }
    return ph_strict_call(call, owner, params->after, direct);
}

/* `direct`: a sibling has sent it here, so it goes no further. */
static enum ph_outcome timestamp(struct ph_call *call, int direct) {
    struct timestamp_params params;
    if (!read_timestamp_params(call->request, &params)) {
        return ph_call_bad_params(call, "get_timestamp takes key (text, bytes or nil) and after (an id or nil)");
    }
    return timestamp_of(call, &params, direct);
}

enum ph_outcome ph_get_timestamp(struct ph_call *call) { return timestamp(call, 0); }

enum ph_outcome ph_forwarded_timestamp(struct ph_call *call) { return timestamp(call, 1); }

/* Transactions, sessions and events are timestamps of a key; siblings need not know which of them it is. */
static enum ph_outcome id_of_key(struct ph_call *call, const char *expected) {
    struct timestamp_params params;
    if (!read_timestamp_params(call->request, &params) || !params.has_key) {
        return ph_call_bad_params(call, expected);
    }
    return timestamp_of(call, &params, 0);
}

enum ph_outcome ph_begin_transaction(struct ph_call *call) {
    return id_of_key(call, "begin_transaction takes key (text or bytes) and after (an id or nil)");
}

enum ph_outcome ph_create_session(struct ph_call *call) {
    return id_of_key(call, "create_session takes client id (text or bytes) and after (an id or nil)");
}

enum ph_outcome ph_next_event_id(struct ph_call *call) {
    return id_of_key(call, "next_event_id takes table (text or bytes) and after (an id or nil)");
}
