/*
 * What a worker serves, and to whom. methods.c: the tables of methods; issuing.c, counting.c, schemas.c: what each does;
 * strict.c: strict requests that wait; rings.c: attached rings; share.c: turns and shares of a millisecond.
 *
 * Invariants
 * - Everything that is issued comes from the mint, below the durable ceiling that the sync thread has published.
 * - Nothing here makes a system call that a disk can hang.
 * - A method that begins with @ exists on private sockets alone, and only those: what comes there has been checked by
 *   the worker that passed it on.
 */
#ifndef PH_SERVICE_H
#define PH_SERVICE_H

#include <stdint.h>
#include <sys/queue.h>

#include "base/crc.h"
#include "engine/mint.h"
#include "engine/tally.h"
#include "ph_atomic.h"
#include "rpc/link.h"
#include "service/config.h"
#include "service/producer.h"
#include "transport/stream.h"

#define PH_RUNS_MAX 136 /* PH_IDS_MAX in the smallest chunks of the smallest layout: see chunk() */
#define PH_PROTOCOL 1
#define PH_LINK_TIMEOUT_MS 300

LIST_HEAD(ph_own_strict_list, ph_waiting_strict);
TAILQ_HEAD(ph_strict_list, ph_waiting_strict);

/* One that sends requests: an application, or another process of the daemon. */
struct ph_client {
    struct ph_stream stream;
    struct ph_ring_owner *ring;
    struct ph_own_strict_list stricts; /* those that wait for host time */
    /* next_ids in progress */
    struct ph_run runs[PH_RUNS_MAX];
    uint32_t run_count;
    uint32_t run_ids;
};

struct ph_ring_owner {
    struct ph_source source; /* the doorbell */
    struct ph_client *client;
    struct ph_producer producer;
    TAILQ_ENTRY(ph_ring_owner) waiting; /* lacks ticks, or holds an unanswered strict request */
    LIST_ENTRY(ph_ring_owner) polled;   /* asked strictly a moment ago: looked at without being rung */
    uint8_t is_waiting;
    uint8_t is_polled;
};

TAILQ_HEAD(ph_waiting_rings, ph_ring_owner);
LIST_HEAD(ph_polled_rings, ph_ring_owner);

struct ph_rings {
    struct ph_waiting_rings waiting;
    struct ph_polled_rings polled;
    uint32_t waiting_count;
    uint64_t poll_until_ns;
    uint8_t has_woken; /* a client that slept over its strict request */
};

struct ph_stricts {
    struct ph_strict_list list;
    struct ph_waiting_strict *next; /* of the pass over them that is under way */
    int64_t due_ns; /* host time before which none of them can go on; 0: look at them in this round or the next */
};

struct ph_service {
    const struct ph_worker_config *config;
    struct ph_mint mint;
    struct ph_tally tally;
    struct ph_streams streams;
    struct ph_links links;
    struct ph_rings rings;
    struct ph_stricts stricts;
    struct ph_stats_header *stats;
    struct ph_stats_slot *slot;
    uint16_t slot_of[PH_COORDINATOR_MAX]; /* 1 + index in the statistics page, 0: not this host's */
    uint32_t first;                       /* the coordinator of this host that serves requests without a key */

    uint64_t few_wanted_ns; /* when a few ids were last asked for, strictly or by socket */
    uint64_t turn_left;     /* ids that the client being served may still take before others have had their turn */
    uint8_t turn_over;      /* some client waits for nothing but its next turn */
    uint8_t short_of_ceiling;
    uint8_t stopping;
};

/* One request. */
struct ph_call {
    struct ph_service *service;
    struct ph_client *client;
    struct ph_request *request;
    struct ph_writer *writer;
};

typedef enum ph_outcome ph_method(struct ph_call *call);

#include "service/method_table.h" /* here, for it needs the type */

static inline struct ph_service *ph_service_of(const struct ph_stream *stream) { return stream->streams->owner; }

static inline uint32_t ph_coordinator_of_key(const struct ph_service *service, struct ph_bytes key) {
    return ph_crc32(key.data, key.length) % service->config->identity.modulus;
}

/* --- service.c: how the parts hang together */

/* With mint and tally to be opened by the caller. */
void ph_service_init(struct ph_service *service, const struct ph_worker_config *config, struct ph_reactor *reactor,
                     struct ph_events *events);
/* The limits that may change while it runs, as `config` has them now. */
void ph_service_reload(struct ph_service *service);
/* Before the events of a round: those that waited for a new millisecond, or for a ceiling. */
void ph_service_resume(struct ph_service *service, int moved_on);
/* After them. */
void ph_service_finish_round(struct ph_service *service, uint64_t next_tick_before);
/* Whether somebody waits for what only time, or a ceiling, brings. */
int ph_service_has_waiting(const struct ph_service *service);
/* Brings the statistics page up to date: what mint, sync thread and tally keep count of. */
void ph_service_publish(struct ph_service *service);
/* Nothing more is served: who waits is told. */
void ph_service_stop(struct ph_service *service);
/* Whether a coordinator of this host serves at the moment. */
int ph_is_live(const struct ph_service *service, uint32_t coordinator);

/* --- methods.c */

extern const struct ph_stream_kind ph_application_kind;
extern const struct ph_stream_kind ph_private_kind;

enum ph_outcome ph_call_fail(struct ph_call *call, int code, const char *detail);
enum ph_outcome ph_call_bad_params(struct ph_call *call, const char *expected);
/* Nothing to be had at the moment: wait for time, a ceiling or a commit, up to a limit. */
enum ph_outcome ph_call_wait(struct ph_call *call);
/* Only the owner of the daemon and root, and the daemon's own processes. */
int ph_call_is_privileged(const struct ph_call *call);
void ph_put_pair(struct ph_writer *writer, const char *name, uint64_t value);
/* Passes the request on; it comes back with this client's message id. */
enum ph_outcome ph_call_forward(struct ph_call *call, uint32_t target, const char *method, uint64_t timeout_ms);

/* --- counting.c; the methods themselves: method_table.h */

/* Sends the answers of dense requests that are durable now. */
void ph_counting_answer(struct ph_service *service);

/* --- strict.c */

/* An id of the mint of `owner`, or of this one in its place. direct: a sibling has sent it here. */
enum ph_outcome ph_strict_call(struct ph_call *call, uint32_t owner, uint64_t after, int direct);
/* Goes on with those that wait for host time. */
void ph_stricts_pursue(struct ph_service *service);
/* Answers in the place of the owner, who did not; of ph_links. */
void ph_strict_stand_in(void *service, struct ph_ticket ticket, const struct ph_fallback *fallback);
void ph_stricts_forget(struct ph_service *service, struct ph_client *client);

/* --- share.c */

/*
 * Issues up to `count` ticks not older than now and not below floor_tick, none or at least min(count, chunk()).
 * None: wait for time, a ceiling (`short_of_ceiling`) or the next turn (`turn_over`).
 */
struct ph_run ph_share_take(struct ph_service *service, uint64_t floor_tick, uint64_t count);
/* An equal part of a millisecond for each that waits. */
uint64_t ph_share_of_one(const struct ph_service *service);
/* A client's turn begins. */
void ph_share_begin_turn(struct ph_service *service);
/* What rings may be given now. */
void ph_share_supply(struct ph_service *service, uint64_t max_age_ns, struct ph_supply *supply);

/* --- rings.c */

void ph_ring_detach(struct ph_service *service, struct ph_ring_owner *ring);
/* Gives each ring that lacks ticks its share of a new millisecond, before the clients that wait take theirs. */
void ph_rings_feed_in_turn(struct ph_service *service);
/* Shares out all that there is. */
void ph_rings_feed(struct ph_service *service);
/* Looks at the rings that asked strictly a moment ago; once that is long enough ago, they must ring again. */
void ph_rings_poll(struct ph_service *service);

/* Whether a client that slept over its strict request has been woken since this was last asked. */
static inline int ph_rings_take_woken(struct ph_service *service) {
    int woken = service->rings.has_woken;
    service->rings.has_woken = 0;
    return woken;
}

#endif
