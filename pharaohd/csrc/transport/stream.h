/*
 * Connections: frames in, frames out, and what each of them may hold. What a frame means is the business of the layer
 * above, which gives each kind of stream its functions.
 *
 * Invariants
 * - What a peer may make this process hold is bounded: input by the frame limit, output by output_bytes_max, connections
 *   by count and what a user's hold together by bytes.
 * - A stream that is closed while events are handled is freed after them: ph_streams_free_closed().
 * - A reply that comes later finds its stream by a ticket. The ticket of a stream that is gone finds nothing, for no
 *   place of the table has the same generation twice.
 */
#ifndef PH_STREAM_H
#define PH_STREAM_H

#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>
#include <sys/types.h>

#include "base/events.h"
#include "base/frame.h"
#include "base/stats.h"
#include "base/ticket.h"
#include "transport/reactor.h"

#define PH_INPUT_BYTES (2 * PH_FRAME_BYTES_MAX)
#define PH_OUTPUT_BYTES (4 * PH_REPLY_BYTES_MAX)

enum ph_outcome { PH_DONE, PH_WAIT, PH_CLOSE };

/* Why a reply comes later. */
enum ph_deferral {
    PH_DEFERRED,  /* someone else answers, or it waits for host time: PH_DEFERRED_MAX at a time */
    PH_COMMITTING /* its batch is not durable yet: as many as the layer above lets through */
};
#define PH_DEFERRALS 2

struct ph_stream;

/* What the layer above does for one kind of stream. */
struct ph_stream_kind {
    size_t bytes; /* of the struct that begins with the stream */
    /* WAIT: the same frame again later. CLOSE: it is refused by the rule in message->broken. NULL: none may come. */
    enum ph_outcome (*on_request)(struct ph_stream *stream, struct ph_request *request, struct ph_writer *writer);
    void (*on_response)(struct ph_stream *stream, const struct ph_request *response);
    /* Before frames that are here are served in one go; or NULL. */
    void (*on_turn)(struct ph_stream *stream);
    void (*on_closed)(struct ph_stream *stream);
    void (*on_freed)(struct ph_stream *stream); /* after the round; or NULL */
};

/* What the connections of one user hold together. */
struct ph_user {
    uid_t uid;
    uint32_t connections; /* 0: the entry is free */
    uint32_t rings;       /* counted by the layer above: ph_user_count_ring() */
    uint64_t bytes;       /* input and output that is kept */
};

struct ph_stream {
    struct ph_source source;
    const struct ph_stream_kind *kind;
    struct ph_streams *streams;
    LIST_ENTRY(ph_stream) all;
    TAILQ_ENTRY(ph_stream) waiting; /* for time, a ceiling or its turn */
    struct ph_user *user;           /* NULL: nobody's; no quota holds for it */
    uint32_t slot;
    uint32_t interest; /* what epoll watches for */
    uint8_t is_waiting;
    uint8_t peer_done; /* it will send no more */
    uint8_t closed;
    uint32_t deferred[PH_DEFERRALS]; /* replies that come later */

    struct ph_scan scan;
    uint8_t *input;
    uint32_t input_length;
    uint64_t frame_started_ns;
    uint64_t waiting_since_ns; /* the first frame of its input waits since then, or 0 */

    uint8_t *output;
    size_t output_at;
    size_t output_length;
    uint64_t output_moved_ns;
    uint64_t kept_bytes; /* of input and output, as counted for the user */
};

struct ph_stream_limits {
    uint64_t connections_max;
    uint64_t connections_per_uid_max;
    uint64_t output_bytes_max;
    uint64_t frame_deadline_ms;
};

/* A place of the table that tickets point into. */
struct ph_stream_slot {
    struct ph_stream *stream; /* NULL: free */
    uint32_t generation;
    uint32_t next_free; /* 1 + a place, or 0 */
};

LIST_HEAD(ph_stream_list, ph_stream);
TAILQ_HEAD(ph_waiting_list, ph_stream);

/* All streams of a worker, and what they share. */
struct ph_streams {
    struct ph_reactor *reactor;
    struct ph_events *events;
    struct ph_stats_slot *stats;
    const uint64_t *now_ns; /* CLOCK_MONOTONIC, as last read */
    void *owner;            /* of the functions in ph_stream_kind */
    struct ph_stream_limits limits;

    struct ph_stream_list all;
    struct ph_stream_list closed;
    struct ph_waiting_list waiting;
    uint32_t waiting_count;
    uint8_t resume_now; /* some waiting stream may go on although neither time nor ceiling has moved */
    uint8_t received;   /* something has come since ph_streams_take_received() */
    struct ph_stream_slot *slots;
    uint32_t slot_count;
    uint32_t first_free; /* 1 + a place, or 0 */
    struct ph_user users[PH_UIDS_MAX];
    uint8_t input[PH_INPUT_BYTES];
    uint8_t output[PH_OUTPUT_BYTES]; /* also the layer above's, between two calls of this one */
};

/* now_ns: see struct ph_streams; it, and what the other addresses lead to, outlives the streams. */
void ph_streams_init(struct ph_streams *streams, struct ph_reactor *reactor, struct ph_events *events,
                     struct ph_stats_slot *stats, const uint64_t *now_ns, void *owner);
void ph_streams_limit(struct ph_streams *streams, const struct ph_stream_limits *limits);
/* Hangs up on all. */
void ph_streams_close(struct ph_streams *streams);
/* Goes on with requests that had to wait, those that waited longest first. */
void ph_streams_resume(struct ph_streams *streams);
void ph_streams_check_deadlines(struct ph_streams *streams);
void ph_streams_free_closed(struct ph_streams *streams);

/* Takes over a connected descriptor. `user`: whose account it is on, or NULL. NULL: out of memory; fd is closed. */
struct ph_stream *ph_stream_open(struct ph_streams *streams, int fd, const struct ph_stream_kind *kind,
                                 struct ph_user *user);
void ph_stream_close(struct ph_stream *stream);
void ph_stream_send(struct ph_stream *stream, const uint8_t *data, size_t length);
void ph_stream_send_error(struct ph_stream *stream, uint32_t message_id, int code, const char *detail);

/* The reply to this request comes later. */
struct ph_ticket ph_stream_defer(struct ph_stream *stream, uint32_t message_id, enum ph_deferral why);
/* The reply is here: returns the stream that waits for it, whose input may go on, or NULL when it is gone. */
struct ph_stream *ph_stream_settle(struct ph_streams *streams, struct ph_ticket ticket);
/* Likewise, but the reply is still to come. */
struct ph_stream *ph_stream_find(const struct ph_streams *streams, struct ph_ticket ticket);

static inline void ph_user_count_ring(struct ph_user *user, int by) { user->rings += (uint32_t)by; }

/* Its request moves on: the deadline is for standing still. */
static inline void ph_stream_restart_wait(struct ph_stream *stream) {
    if (stream->waiting_since_ns != 0) {
        stream->waiting_since_ns = *stream->streams->now_ns;
    }
}

static inline int ph_streams_take_received(struct ph_streams *streams) {
    int received = streams->received;
    streams->received = 0;
    return received;
}

static inline void ph_streams_resume_soon(struct ph_streams *streams) { streams->resume_now = 1; }

#endif
