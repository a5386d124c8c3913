/* One coordinator's process: what it owns, and the round of its loop, in one thread. */
#ifndef PH_WORKER_H
#define PH_WORKER_H

#include "durable/syncer.h"
#include "service/service.h"
#include "transport/listener.h"
#include "worker_api.h"

struct ph_worker;

/* A descriptor of the worker's own. */
struct ph_own_source {
    struct ph_source source;
    struct ph_worker *worker;
};

struct ph_worker {
    struct ph_worker_config config;
    struct ph_reactor reactor;
    struct ph_events events;
    struct ph_obelisk obelisk;
    struct ph_syncer syncer;
    struct ph_own_source control;
    struct ph_own_source signals;
    struct ph_own_source sync_events;
    struct ph_listeners listeners;
    uint64_t resumed_ms;   /* host time's millisecond when those that wait for it were last looked at */
    uint64_t last_wait_ns; /* how long the loop waited for the last event of its clients */
    uint64_t heartbeat_due_ns;
    struct ph_service service; /* last: most of its buffers are never touched */
};

#endif
