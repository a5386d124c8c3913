/* Methods of schemas: their parameters are looked at here, the rest is the router's, which draws their numbers from us. */
#include "ph_errors.h"
#include "service/service.h"

#define ROUTER_TIMEOUT_MS 2000

static enum ph_outcome to_router(struct ph_call *call, uint32_t coordinator, const char *method) {
    if (call->service->slot_of[coordinator] == 0) {
        return ph_call_fail(call, PH_ERR_WRONG_COORDINATOR, NULL);
    }
    return ph_call_forward(call, PH_ROUTER, method,
                           call->service->config->settings.rpc_stall_ms_max + ROUTER_TIMEOUT_MS);
}

enum ph_outcome ph_register_schema(struct ph_call *call) {
    struct ph_reader reader = call->request->params;
    struct ph_bytes subject = ph_read_key(&reader);
    struct ph_bytes schema = ph_read_key(&reader);
    if (call->request->param_count > 2 && !ph_read_nil(&reader)) {
        ph_read_key(&reader);
    }
    if (call->request->param_count < 2 || call->request->param_count > 3 || reader.failed) {
        return ph_call_bad_params(call, "register_schema takes subject, schema and a type (json, avro, bytes) or nil");
    }
    if (subject.length > PH_KEY_BYTES_MAX) {
        return ph_call_fail(call, PH_ERR_KEY_TOO_LONG, PH_TEXT(PH_KEY_BYTES_MAX) " bytes at most");
    }
    if (schema.length > PH_SCHEMA_BYTES_MAX) {
        return ph_call_fail(call, PH_ERR_SCHEMA_INVALID, PH_TEXT(PH_SCHEMA_BYTES_MAX) " bytes at most");
    }
    return to_router(call, ph_coordinator_of_key(call->service, subject), "@register_schema");
}

enum ph_outcome ph_get_schema(struct ph_call *call) {
    struct ph_reader reader = call->request->params;
    uint64_t id = ph_read_uint(&reader);
    if (call->request->param_count != 1 || reader.failed) {
        return ph_call_bad_params(call, "get_schema takes a schema id");
    }
    if (id < 1 || id > INT32_MAX) {
        return ph_call_fail(call, PH_ERR_OUT_OF_RANGE, "a schema id is 1 to 2147483647");
    }
    return to_router(call, (uint32_t)id % call->service->config->identity.modulus, "@get_schema");
}

enum ph_outcome ph_list_schemas(struct ph_call *call) {
    struct ph_reader reader = call->request->params;
    uint32_t coordinator = call->service->mint.issuer.coordinator;
    if (call->request->param_count > 0 && !ph_read_nil(&reader)) {
        struct ph_bytes subject = ph_read_key(&reader);
        coordinator = reader.failed ? coordinator : ph_coordinator_of_key(call->service, subject);
    }
    if (call->request->param_count > 2 || reader.failed) {
        return ph_call_bad_params(call, "list_schemas takes subject or nil and the last row had or nil");
    }
    return to_router(call, coordinator, "@list_schemas");
}
