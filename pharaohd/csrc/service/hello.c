/* What a client asks of the daemon itself: who it is, whom it should ask, how it fares. */
#include <stdio.h>

#include "ph_errors.h"
#include "service/service.h"

enum ph_outcome ph_ping(struct ph_call *call) {
    if (call->request->param_count != 0) {
        return ph_call_bad_params(call, "ping takes no parameters");
    }
    ph_put_reply(call->writer, call->request->message_id);
    ph_put_text(call->writer, "pong");
    return PH_DONE;
}

static int is_owned(const struct ph_service *service, uint32_t coordinator) {
    return service->slot_of[coordinator] != 0;
}

/* Those of this host for which `holds`. */
static void put_coordinators(struct ph_writer *writer, const char *name, const struct ph_service *service,
                             int (*holds)(const struct ph_service *service, uint32_t coordinator)) {
    uint8_t chosen[PH_COORDINATOR_MAX]; /* asked once: who is live may change meanwhile */
    uint32_t count = 0;
    for (uint32_t i = 0; i < PH_COORDINATOR_MAX; i++) {
        chosen[i] = holds(service, i) != 0;
        count += chosen[i];
    }
    ph_put_text(writer, name);
    ph_put_array(writer, count);
    for (uint32_t i = 0; i < PH_COORDINATOR_MAX; i++) {
        if (chosen[i]) {
            ph_put_uint(writer, i);
        }
    }
}

enum ph_outcome ph_hello(struct ph_call *call) {
    const struct ph_service *service = call->service;
    const struct ph_layout *layout = &service->mint.issuer.layout;
    struct ph_writer *writer = call->writer;
    char layout_text[16];
    ph_read_key(&call->request->params);
    uint64_t protocol = ph_read_uint(&call->request->params);
    if (call->request->param_count != 2 || call->request->params.failed) {
        return ph_call_bad_params(call, "hello takes the client's name and a protocol number");
    }
    if (protocol != PH_PROTOCOL) {
        return ph_call_fail(call, PH_ERR_UNSUPPORTED_PROTOCOL, NULL);
    }
    snprintf(layout_text, sizeof layout_text, "%u-%u-%u", layout->ms_bits & 63U, layout->coordinator_bits & 63U,
             layout->sequence_bits & 63U);
    ph_put_reply(writer, call->request->message_id);
    ph_put_map(writer, 9);
    ph_put_pair(writer, "protocol", PH_PROTOCOL);
    ph_put_text(writer, "server");
    ph_put_text(writer, service->config->version);
    ph_put_text(writer, "layout");
    ph_put_text(writer, layout_text);
    ph_put_pair(writer, "epoch_ms", layout->epoch_ms);
    ph_put_pair(writer, "coordinator", service->mint.issuer.coordinator);
    ph_put_pair(writer, "modulus", service->config->identity.modulus);
    put_coordinators(writer, "coordinators", service, is_owned);
    ph_put_text(writer, "endpoints");
    ph_put_text(writer, service->config->endpoints);
    ph_put_text(writer, "limits");
    ph_put_map(writer, PH_HELLO_LIMITS_COUNT);
#define PUT(name, value) ph_put_pair(writer, #name, value);
    PH_HELLO_LIMITS(PUT)
#undef PUT
    return PH_DONE;
}

enum ph_outcome ph_route(struct ph_call *call) {
    const struct ph_service *service = call->service;
    struct ph_writer *writer = call->writer;
    struct ph_bytes key = ph_read_key(&call->request->params);
    char endpoint[256] = "";
    if (call->request->param_count != 1 || call->request->params.failed) {
        return ph_call_bad_params(call, "route takes a key");
    }
    if (key.length > PH_KEY_BYTES_MAX) {
        return ph_call_fail(call, PH_ERR_KEY_TOO_LONG, PH_TEXT(PH_KEY_BYTES_MAX) " bytes at most");
    }
    uint32_t coordinator = ph_coordinator_of_key(service, key);
    int local = is_owned(service, coordinator);
    if (local) {
        snprintf(endpoint, sizeof endpoint, "%s/%04u.sock", service->config->endpoints, coordinator);
    }
    ph_put_reply(writer, call->request->message_id);
    ph_put_map(writer, 4);
    ph_put_pair(writer, "coordinator", coordinator);
    ph_put_text(writer, "host");
    ph_put_text(writer, local ? service->config->host : "");
    ph_put_text(writer, "endpoint");
    ph_put_text(writer, endpoint);
    ph_put_text(writer, "local");
    ph_put_bool(writer, local);
    return PH_DONE;
}

enum ph_outcome ph_cluster(struct ph_call *call) {
    const struct ph_service *service = call->service;
    struct ph_writer *writer = call->writer;
    if (call->request->param_count != 0) {
        return ph_call_bad_params(call, "cluster takes no parameters");
    }
    ph_put_reply(writer, call->request->message_id);
    ph_put_map(writer, 7);
    ph_put_text(writer, "name");
    ph_put_text(writer, service->config->cluster);
    ph_put_pair(writer, "modulus", service->config->identity.modulus);
    ph_put_text(writer, "host");
    ph_put_text(writer, service->config->host);
    ph_put_text(writer, "owners");
    ph_put_map(writer, 1);
    put_coordinators(writer, service->config->host, service, is_owned);
    put_coordinators(writer, "live", service, ph_is_live);
    ph_put_text(writer, "peers");
    ph_put_array(writer, 0);
    ph_put_text(writer, "clock_offsets");
    ph_put_map(writer, 0);
    return PH_DONE;
}

enum ph_outcome ph_stats(struct ph_call *call) {
    struct ph_stats_slot *slot = call->service->slot;
    const struct {
        const char *name;
        const uint64_t *value;
    } rows[] = {
#define ROW(name) {#name, &slot->name},
        PH_STATS_ON_WIRE(ROW)
#undef ROW
    };
    uint32_t count = sizeof rows / sizeof rows[0];
    if (call->request->param_count != 0) {
        return ph_call_bad_params(call, "stats takes no parameters");
    }
    ph_service_publish(call->service);
    ph_put_reply(call->writer, call->request->message_id);
    ph_put_map(call->writer, count);
    for (uint32_t i = 0; i < count; i++) {
        ph_put_pair(call->writer, rows[i].name, ph_load_relaxed(rows[i].value));
    }
    return PH_DONE;
}

enum ph_outcome ph_clock_accept(struct ph_call *call) {
    uid_t uid = call->client->stream.user->uid;
    if (!ph_call_is_privileged(call)) {
        return ph_call_fail(call, PH_ERR_PERMISSION_DENIED, NULL);
    }
    if (call->request->param_count != 0) {
        return ph_call_bad_params(call, "clock_accept takes no parameters");
    }
    ph_mint_read(&call->service->mint);
    int64_t jump_ns = call->service->mint.clock.jump_ns;
    ph_host_clock_accept(call->service->mint.clock.page);
    ph_mint_read(&call->service->mint);
    ph_mint_write_record(&call->service->mint);
    ph_log(call->service->streams.events, PH_LOG_WARNING, "clock accepted by uid %u: host time moved on by %lld ms",
           (unsigned)uid, (long long)(jump_ns / 1000000));
    ph_put_reply(call->writer, call->request->message_id);
    ph_put_uint(call->writer, (uint64_t)(jump_ns / 1000000));
    return PH_DONE;
}
