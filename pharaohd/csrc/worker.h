/*
 * The serving loop of one coordinator, in one thread. worker.c: life and loop; mint.c: host time, ceiling, ids; supply.c:
 * turns and shares; connection.c: sockets and frames; ring.c: attached rings; strict.c: strict requests; link.c:
 * siblings; dense.c: counters; methods.c, issuing.c, counting.c: what a request does.
 *
 * Invariants
 * - Everything that is issued comes from mint.c, below the durable ceiling that the sync thread has published.
 * - The loop makes no system call that a disk can hang.
 * - What a peer may make this process hold is bounded: input by the frame limit, output by output_bytes_max, connections
 *   and rings by count.
 * - A connection that is closed while events are being handled is freed only after them.
 */
#ifndef PH_WORKER_H
#define PH_WORKER_H

#include <stdint.h>
#include <sys/queue.h>
#include <sys/types.h>

#include "frame.h"
#include "mint.h"
#include "obelisk.h"
#include "ph_atomic.h"
#include "producer.h"
#include "stats.h"
#include "syncer.h"
#include "worker_api.h"

#define PH_KEY_BYTES_MAX 4096
#define PH_SCHEMA_BYTES_MAX 57344
#define PH_COUNT_MAX INT32_MAX
#define PH_ROUTER PH_COORDINATOR_MAX /* the link to the router process */
#define PH_LINKS_MAX (PH_COORDINATOR_MAX + 1)
#define PH_IN_FLIGHT_MAX 1024
#define PH_IDS_MAX 8192
#define PH_RUNS_MAX 136 /* PH_IDS_MAX in the smallest chunks of the smallest layout: see chunk() */
#define PH_PROTOCOL 1
#define PH_INPUT_BYTES (2 * PH_FRAME_BYTES_MAX)
#define PH_OUTPUT_BYTES (4 * PH_REPLY_BYTES_MAX)
#define PH_EVENTS_MAX 8
#define PH_UIDS_MAX 256
#define PH_UID_BYTES_MAX (64 << 20)
#define PH_FORWARDED_MAX 64 /* of one connection: what else it asks for waits in its input */

enum ph_source_kind {
    PH_SOURCE_LISTENER,
    PH_SOURCE_CONTROL,
    PH_SOURCE_SIGNAL,
    PH_SOURCE_SYNC,
    PH_SOURCE_CONNECTION,
    PH_SOURCE_RING,
    PH_SOURCE_LINK,
};

/* What epoll hands back: the first member of whatever owns the descriptor. */
struct ph_source {
    enum ph_source_kind kind;
    int fd;
};

TAILQ_HEAD(ph_strict_list, ph_waiting_strict);
LIST_HEAD(ph_own_strict_list, ph_waiting_strict);

struct ph_connection {
    struct ph_source source; /* CONNECTION, or LINK with `link` set */
    LIST_ENTRY(ph_connection) all;
    TAILQ_ENTRY(ph_connection) waiting; /* for time or a ceiling */
    struct ph_ring_owner *ring;
    struct ph_link *link;
    uint32_t interest;    /* what epoll watches for */
    struct ph_user *user; /* NULL for a link */
    uint8_t is_waiting;
    uint8_t peer_done; /* it will send no more */
    uint8_t closed;

    struct ph_scan scan;
    uint8_t *input;
    uint32_t input_length;
    uint64_t frame_started_ns;
    uint64_t waiting_since_ns;

    uint8_t *output;
    size_t output_at;
    size_t output_length;
    uint64_t output_moved_ns;

    uint64_t kept_bytes;               /* of input and output, as counted for the user */
    uint32_t forwarded;                /* requests that a sibling has not answered yet, or that wait for host time */
    struct ph_own_strict_list stricts; /* the latter */
    uint32_t counting;                 /* dense requests whose batch is not durable yet */
    /* next_ids in progress */
    struct ph_run runs[PH_RUNS_MAX];
    uint32_t run_count;
    uint32_t run_ids;
};

struct ph_ring_owner {
    struct ph_source source; /* RING: the doorbell */
    struct ph_connection *connection;
    struct ph_producer producer;
    TAILQ_ENTRY(ph_ring_owner) starving; /* lacks ticks, or holds an unanswered strict request */
    LIST_ENTRY(ph_ring_owner) hot;       /* asked strictly a moment ago: looked at without being rung */
    uint8_t is_starving;
    uint8_t is_hot;
};

/* What a worker needs to stand in for the owner of a strict request. */
struct ph_fallback {
    uint64_t after;
    int64_t noted_ns; /* host time when the request came to this host */
};

/* A request passed to a sibling, by the number that it has there. The number stays taken until its reply has come. */
struct ph_forwarded {
    struct ph_connection *connection; /* NULL: free, or its client is gone or has been told */
    struct ph_fallback fallback;      /* noted_ns is 0: nobody can stand in, the client is told */
    uint32_t message_id;
    uint8_t late;
    uint64_t deadline_ns; /* 0: free */
};

struct ph_link {
    struct ph_connection *connection; /* NULL: not connected */
    uint32_t target;                  /* a coordinator, or PH_ROUTER */
    uint32_t next_entry;
    uint32_t in_use;
    uint64_t suspect_until_ns; /* it did not answer in time: others serve its keys meanwhile; 0 once it answers */
    struct ph_forwarded entries[PH_IN_FLIGHT_MAX];
};

/* What the connections of one user hold together. */
struct ph_user {
    uid_t uid;
    uint32_t connections; /* 0: the entry is free */
    uint32_t rings;
    uint64_t bytes; /* input and output that is kept */
};

TAILQ_HEAD(ph_waiting_list, ph_connection);
TAILQ_HEAD(ph_starving_list, ph_ring_owner);
LIST_HEAD(ph_connection_list, ph_connection);
LIST_HEAD(ph_hot_list, ph_ring_owner);

struct ph_dense;

struct ph_worker {
    struct ph_worker_config config;
    struct ph_mint mint;
    struct ph_obelisk obelisk;
    struct ph_syncer syncer;
    struct ph_stats_header *stats;
    struct ph_stats_slot *slot;
    uint16_t slot_of[PH_COORDINATOR_MAX]; /* 1 + index in the statistics page, 0: not this host's */

    uint32_t first; /* the coordinator of this host that serves requests without a key */
    /* Requests have come since host time was read. recv() sets it; each round, and whoever reads host time for a strict
       request, takes it back. */
    uint8_t time_is_old;
    uint64_t resumed_ms;    /* host time's millisecond when those that wait for it were last looked at */
    uint64_t few_wanted_ns; /* when a few ids were last asked for, strictly or by socket */
    uint64_t turn_left;     /* ids that the connection being served may still take before others have had their turn */
    uint8_t turn_over;      /* some connection waits for nothing but its next turn */
    uint8_t short_of_ceiling;
    uint8_t stopping;
    uint8_t resume_now; /* some waiting connection may go on although neither time nor ceiling has moved */
    uint8_t accept_paused;

    int epoll_fd;
    int reserve_fd;
    struct ph_source listeners[2];
    struct ph_source control;
    struct ph_source signals;
    struct ph_source sync_events;

    struct ph_connection_list connections;
    struct ph_connection_list graveyard;
    struct ph_waiting_list waiting;
    struct ph_strict_list stricts;
    struct ph_waiting_strict *strict_next; /* of the pass over them that is under way */
    int64_t
        strict_due_ns; /* host time before which none of them can go on; 0: look at them in this round or the next */
    struct ph_starving_list starving;
    struct ph_hot_list hot;
    uint64_t spin_until_ns;
    int has_woken;         /* a client that slept over its strict request */
    uint64_t last_wait_ns; /* how long the loop waited for the last event of its clients */
    uint64_t heartbeat_due_ns;
    uint32_t waiting_count;
    uint32_t starving_count;
    struct ph_link *links[PH_LINKS_MAX];
    struct ph_dense *dense; /* NULL: nothing was ever counted here */
    uint32_t forwarded_count;
    struct ph_user users[PH_UIDS_MAX];

    struct ph_event events[PH_EVENTS_MAX];
    uint32_t event_count;
    uint32_t lines_this_second;
    uint64_t lines_left_out;
    uint8_t input[PH_INPUT_BYTES];
    uint8_t output[PH_OUTPUT_BYTES];
    uint8_t passed_on[PH_FRAME_BYTES_MAX + 64]; /* a frame on its way to a sibling, or back */
};

/* supply.c */
/*
 * Issues up to `count` ticks not older than now and not below floor_tick, none or at least min(count, chunk()).
 * None: wait for time, a ceiling (`short_of_ceiling`) or the next turn (`turn_over`).
 */
struct ph_run ph_worker_take(struct ph_worker *worker, uint64_t floor_tick, uint64_t count);
/* An equal part of a millisecond for each that waits. */
uint64_t ph_worker_share(const struct ph_worker *worker);
/* What rings may be given now. */
void ph_worker_supply(struct ph_worker *worker, uint64_t max_age_ns, struct ph_supply *supply);

/* strict.c: requests that wait for host time */
void ph_stricts_pursue(struct ph_worker *worker);
/* Answers in the place of the owner, who did not. */
void ph_strict_stand_in(struct ph_worker *worker, struct ph_connection *connection, uint32_t message_id,
                        const struct ph_fallback *fallback);
void ph_strict_forget(struct ph_worker *worker, struct ph_connection *connection);

/* connection.c */
enum ph_outcome { PH_DONE, PH_WAIT, PH_CLOSE };
struct ph_connection *ph_connection_open(struct ph_worker *worker, int fd, enum ph_source_kind kind);
void ph_connection_close(struct ph_worker *worker, struct ph_connection *connection);
void ph_connection_ready(struct ph_worker *worker, struct ph_connection *connection, uint32_t events);
void ph_connection_send(struct ph_worker *worker, struct ph_connection *connection, const uint8_t *data, size_t length);
void ph_connection_send_error(struct ph_worker *worker, struct ph_connection *connection, uint32_t message_id, int code,
                              const char *detail);
/* Its input may be served again (a sibling answered): in this round of the loop. */
void ph_connection_requeue(struct ph_worker *worker, struct ph_connection *connection);
/* Goes on with requests that had to wait, those that waited longest first. */
void ph_connections_resume(struct ph_worker *worker);
void ph_connections_check_deadlines(struct ph_worker *worker);
void ph_connections_bury(struct ph_worker *worker);
void ph_listener_ready(struct ph_worker *worker, struct ph_source *listener);

/* ring.c */
int ph_ring_attach(struct ph_worker *worker, struct ph_connection *connection, uint64_t max_age_ns);
void ph_ring_detach(struct ph_worker *worker, struct ph_ring_owner *ring);
void ph_ring_rung(struct ph_worker *worker, struct ph_ring_owner *ring);
/* Gives each ring that lacks ticks its share of a new millisecond, before the connections that wait take theirs. */
void ph_rings_feed_in_turn(struct ph_worker *worker);
/* Shares out all that there is. */
void ph_rings_feed(struct ph_worker *worker);
void ph_rings_poll(struct ph_worker *worker);

/* methods.c */
enum ph_outcome ph_method_call(struct ph_worker *worker, struct ph_connection *connection, struct ph_request *request,
                               struct ph_writer *writer);

/* link.c */
#define PH_LINK_FULL (-1)
/*
 * Passes a request on to a sibling or to the router, as `@method`; its reply comes back on the connection later. When
 * there is none after patience_ms this worker stands in, or without a fallback sends an error. 0, an error's code, or
 * FULL.
 */
int ph_link_forward(struct ph_worker *worker, struct ph_connection *connection, uint32_t target, const char *method,
                    const struct ph_request *request, uint64_t patience_ms, const struct ph_fallback *fallback);
/* Whether a sibling has just failed to answer in time. */
int ph_link_suspect(const struct ph_worker *worker, uint32_t coordinator);
void ph_link_reply(struct ph_worker *worker, struct ph_link *link, const struct ph_request *reply);
void ph_link_lost(struct ph_worker *worker, struct ph_link *link);
void ph_link_forget(struct ph_worker *worker, struct ph_connection *connection);
void ph_links_check_deadlines(struct ph_worker *worker);
void ph_links_hang_up(struct ph_worker *worker);
void ph_links_free(struct ph_worker *worker);

/* worker.c */
void ph_worker_log(struct ph_worker *worker, int level, const char *format, ...) __attribute__((format(printf, 3, 4)));
int ph_worker_watch(struct ph_worker *worker, struct ph_source *source, uint32_t events);
void ph_worker_yield_listener(struct ph_worker *worker, struct ph_source *listener);

static inline void ph_count(uint64_t *counter, uint64_t by) {
    ph_store_relaxed(counter, ph_load_relaxed(counter) + by);
}

#endif
