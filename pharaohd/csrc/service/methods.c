/* Which method a request is for, and who may ask. The tables are the wire's vocabulary: docs/reference/protocol.md. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ph_errors.h"
#include "service/service.h"

enum ph_outcome ph_call_fail(struct ph_call *call, int code, const char *detail) {
    ph_count(&call->service->slot->errors, 1);
    ph_put_error(call->writer, call->request->message_id, code, detail);
    return PH_DONE;
}

enum ph_outcome ph_call_bad_params(struct ph_call *call, const char *expected) {
    return ph_call_fail(call, PH_ERR_BAD_REQUEST, expected);
}

enum ph_outcome ph_call_wait(struct ph_call *call) {
    uint64_t since_ns = call->client->stream.waiting_since_ns;
    int exhausted = ph_mint_exhausted(&call->service->mint);
    uint64_t waited_ns = since_ns != 0 ? call->service->mint.monotonic_ns - since_ns : 0;
    if (!exhausted && waited_ns <= call->service->config->settings.rpc_stall_ms_max * PH_NS_PER_MS) {
        return PH_WAIT;
    }
    call->client->run_count = call->client->run_ids = 0; /* the next request must not find them */
    if (exhausted) {
        return ph_call_fail(call, PH_ERR_TIME_EXHAUSTED, NULL);
    }
    return ph_call_fail(call, call->service->short_of_ceiling ? PH_ERR_CEILING_STALLED : PH_ERR_UNAVAILABLE, NULL);
}

enum ph_outcome ph_call_forward(struct ph_call *call, uint32_t target, const char *method, uint64_t timeout_ms) {
    int error =
        ph_link_forward(&call->service->links, &call->client->stream, target, method, call->request, timeout_ms, NULL);
    if (error == PH_LINK_FULL) {
        return ph_call_wait(call);
    }
    return error != 0 ? ph_call_fail(call, error, NULL) : PH_DONE;
}

void ph_put_pair(struct ph_writer *writer, const char *name, uint64_t value) {
    ph_put_text(writer, name);
    ph_put_uint(writer, value);
}

int ph_call_is_privileged(const struct ph_call *call) {
    const struct ph_user *user = call->client->stream.user;
    return user == NULL || user->uid == 0 || user->uid == geteuid();
}

struct entry {
    const char *name;
    uint32_t length;
    ph_method *run;
};

#define ENTRY(name, run) {name, sizeof name - 1, run},

static const struct entry application_methods[] = {PH_APPLICATION_METHODS(ENTRY){NULL, 0, NULL}};
/* What one process of the daemon passes on to another, which serves it itself. */
static const struct entry private_methods[] = {PH_PRIVATE_METHODS(ENTRY){NULL, 0, NULL}};

static enum ph_outcome serve(const struct entry *methods, struct ph_stream *stream, struct ph_request *request,
                             struct ph_writer *writer) {
    struct ph_call call = {ph_service_of(stream), (struct ph_client *)(void *)stream, request, writer};
    ph_count(&call.service->slot->requests, stream->waiting_since_ns == 0);
    if (call.service->stopping) {
        return ph_call_fail(&call, PH_ERR_SHUTTING_DOWN, NULL);
    }
    if (request->broken != NULL) {
        return ph_call_bad_params(&call, request->broken);
    }
    for (const struct entry *entry = methods; entry->name != NULL; entry++) {
        if (request->method.length == entry->length && memcmp(request->method.data, entry->name, entry->length) == 0) {
            return entry->run(&call);
        }
    }
    return ph_call_fail(&call, PH_ERR_UNKNOWN_METHOD, NULL);
}

static enum ph_outcome serve_application(struct ph_stream *stream, struct ph_request *request,
                                         struct ph_writer *writer) {
    return serve(application_methods, stream, request, writer);
}

static enum ph_outcome serve_private(struct ph_stream *stream, struct ph_request *request, struct ph_writer *writer) {
    return serve(private_methods, stream, request, writer);
}

static void begin_turn(struct ph_stream *stream) { ph_share_begin_turn(ph_service_of(stream)); }

static void closed(struct ph_stream *stream) {
    struct ph_client *client = (struct ph_client *)(void *)stream;
    if (client->ring != NULL) {
        ph_ring_detach(ph_service_of(stream), client->ring);
    }
    ph_stricts_forget(ph_service_of(stream), client);
}

static void freed(struct ph_stream *stream) { free(((struct ph_client *)(void *)stream)->ring); }

const struct ph_stream_kind ph_application_kind = {
    sizeof(struct ph_client), serve_application, NULL, begin_turn, closed, freed};
const struct ph_stream_kind ph_private_kind = {
    sizeof(struct ph_client), serve_private, NULL, begin_turn, closed, freed};
