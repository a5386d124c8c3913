#define _GNU_SOURCE
#include "transport/stream.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "ph_atomic.h"
#include "ph_errors.h"

static void stream_ready(struct ph_source *source, uint32_t events);

static void stop_waiting(struct ph_stream *stream) {
    struct ph_streams *streams = stream->streams;
    if (stream->is_waiting) {
        TAILQ_REMOVE(&streams->waiting, stream, waiting);
        streams->waiting_count--;
        stream->is_waiting = 0;
    }
}

static void start_waiting(struct ph_stream *stream) {
    struct ph_streams *streams = stream->streams;
    if (!stream->is_waiting) {
        TAILQ_INSERT_TAIL(&streams->waiting, stream, waiting);
        streams->waiting_count++;
        stream->is_waiting = 1;
    }
}

/* Its input may be served again: in this round of the loop. */
static void requeue(struct ph_stream *stream) {
    if (stream->input_length > 0 || stream->peer_done || !stream->interest) {
        start_waiting(stream);
        stream->streams->resume_now = 1;
    }
}

/*
 * Whether more of it can be served. One that also answers, always: two processes that read no replies before the other
 * has read their requests would wait for each other. What it brings is bounded by what it was asked.
 */
static int may_serve(const struct ph_stream *stream) {
    if (stream->closed || stream->is_waiting || stream->deferred[PH_DEFERRED] >= PH_DEFERRED_MAX) {
        return 0;
    }
    return stream->kind->on_response != NULL ||
           stream->output_length - stream->output_at < stream->streams->limits.output_bytes_max;
}

/* What epoll should watch for follows from the state; the system call is made only when it changes. */
static void update_interest(struct ph_stream *stream) {
    uint32_t interest = 0;
    if (may_serve(stream) && !stream->peer_done) {
        interest |= EPOLLIN;
    }
    if (stream->output_length > stream->output_at) {
        interest |= EPOLLOUT;
    }
    if (interest != stream->interest) {
        ph_reactor_change(stream->streams->reactor, &stream->source, interest);
        stream->interest = interest;
    }
}

/* --- the table that tickets point into */

static int add_slots(struct ph_streams *streams) {
    uint32_t count = streams->slot_count > 0 ? 2 * streams->slot_count : 64;
    struct ph_stream_slot *grown = realloc(streams->slots, count * sizeof *grown);
    if (grown == NULL) {
        return 0;
    }
    for (uint32_t i = count; i > streams->slot_count; i--) {
        grown[i - 1] = (struct ph_stream_slot){.next_free = streams->first_free};
        streams->first_free = i;
    }
    streams->slots = grown;
    streams->slot_count = count;
    return 1;
}

static int take_slot(struct ph_stream *stream) {
    struct ph_streams *streams = stream->streams;
    if (streams->first_free == 0 && !add_slots(streams)) {
        return 0;
    }
    stream->slot = streams->first_free - 1;
    struct ph_stream_slot *slot = &streams->slots[stream->slot];
    streams->first_free = slot->next_free;
    slot->stream = stream;
    return 1;
}

static void give_slot_back(struct ph_stream *stream) {
    struct ph_streams *streams = stream->streams;
    streams->slots[stream->slot] = (struct ph_stream_slot){.generation = streams->slots[stream->slot].generation + 1,
                                                           .next_free = streams->first_free};
    streams->first_free = stream->slot + 1;
}

struct ph_stream *ph_stream_find(const struct ph_streams *streams, struct ph_ticket ticket) {
    const struct ph_stream_slot *slot = &streams->slots[ticket.slot];
    return slot->generation == ticket.generation ? slot->stream : NULL;
}

struct ph_ticket ph_stream_defer(struct ph_stream *stream, uint32_t message_id, enum ph_deferral why) {
    stream->deferred[why]++;
    return (struct ph_ticket){stream->slot, stream->streams->slots[stream->slot].generation, message_id, why};
}

struct ph_stream *ph_stream_settle(struct ph_streams *streams, struct ph_ticket ticket) {
    struct ph_stream *stream = ph_stream_find(streams, ticket);
    if (stream != NULL) {
        stream->deferred[ticket.why]--;
        requeue(stream);
    }
    return stream;
}

/* --- a life */

struct ph_stream *ph_stream_open(struct ph_streams *streams, int fd, const struct ph_stream_kind *kind,
                                 struct ph_user *user) {
    struct ph_stream *stream = calloc(1, kind->bytes);
    if (stream == NULL) {
        close(fd);
        return NULL;
    }
    stream->source = (struct ph_source){fd, stream_ready};
    stream->streams = streams;
    stream->kind = kind;
    stream->user = user;
    stream->interest = EPOLLIN;
    if (!take_slot(stream)) {
        close(fd);
        free(stream);
        return NULL;
    }
    if (ph_reactor_add(streams->reactor, &stream->source, EPOLLIN) != 0) {
        give_slot_back(stream);
        close(fd);
        free(stream);
        return NULL;
    }
    if (user != NULL) {
        user->connections++;
        ph_count(&streams->stats->connections, 1);
    }
    LIST_INSERT_HEAD(&streams->all, stream, all);
    return stream;
}

void ph_stream_close(struct ph_stream *stream) {
    struct ph_streams *streams = stream->streams;
    if (stream->closed) {
        return;
    }
    stream->closed = 1;
    stop_waiting(stream);
    give_slot_back(stream);
    stream->kind->on_closed(stream);
    if (stream->user != NULL) {
        stream->user->bytes -= stream->kept_bytes;
        stream->user->connections--;
        ph_count(&streams->stats->connections, UINT64_MAX);
    }
    close(stream->source.fd);
    LIST_REMOVE(stream, all);
    LIST_INSERT_HEAD(&streams->closed, stream, all);
}

void ph_streams_free_closed(struct ph_streams *streams) {
    while (!LIST_EMPTY(&streams->closed)) {
        struct ph_stream *stream = LIST_FIRST(&streams->closed);
        LIST_REMOVE(stream, all);
        if (stream->kind->on_freed != NULL) {
            stream->kind->on_freed(stream);
        }
        free(stream->input);
        free(stream->output);
        free(stream);
    }
}

void ph_streams_init(struct ph_streams *streams, struct ph_reactor *reactor, struct ph_events *events,
                     struct ph_stats_slot *stats, const uint64_t *now_ns, void *owner) {
    streams->reactor = reactor;
    streams->events = events;
    streams->stats = stats;
    streams->now_ns = now_ns;
    streams->owner = owner;
    LIST_INIT(&streams->all);
    LIST_INIT(&streams->closed);
    TAILQ_INIT(&streams->waiting);
}

void ph_streams_limit(struct ph_streams *streams, const struct ph_stream_limits *limits) { streams->limits = *limits; }

void ph_streams_close(struct ph_streams *streams) {
    while (!LIST_EMPTY(&streams->all)) {
        ph_stream_close(LIST_FIRST(&streams->all));
    }
    ph_streams_free_closed(streams);
    free(streams->slots);
}

/* --- bytes out */

/* Hangs up on a peer that broke a rule, and says so. */
static void violation(struct ph_stream *stream, const char *what) {
    struct ucred peer = {.uid = (uid_t)-1};
    socklen_t length = sizeof peer;
    getsockopt(stream->source.fd, SOL_SOCKET, SO_PEERCRED, &peer, &length);
    ph_count(&stream->streams->stats->violations, 1);
    ph_log(stream->streams->events, PH_LOG_WARNING, "connection of uid %u, pid %d closed: %s", (unsigned)peer.uid,
           (int)peer.pid, what);
    ph_stream_close(stream);
}

/* Keeps count of what a user makes this process hold; the connection that is one too many is closed. */
static void account(struct ph_stream *stream) {
    struct ph_user *user = stream->user;
    if (user == NULL || stream->closed) {
        return;
    }
    uint64_t kept_bytes = stream->input_length + stream->output_length;
    user->bytes += kept_bytes - stream->kept_bytes;
    stream->kept_bytes = kept_bytes;
    if (user->bytes > PH_UID_BYTES_MAX) {
        violation(stream, "this user's connections hold too much");
    }
}

static int keep_output(struct ph_stream *stream, const uint8_t *data, size_t length) {
    size_t pending = stream->output_length - stream->output_at;
    if (stream->output_at > 0) {
        memmove(stream->output, stream->output + stream->output_at, pending);
    }
    uint8_t *grown = realloc(stream->output, pending + length);
    if (grown == NULL) {
        ph_stream_close(stream);
        return 0;
    }
    memcpy(grown + pending, data, length);
    if (pending == 0) {
        stream->output_moved_ns = *stream->streams->now_ns;
    }
    stream->output = grown;
    stream->output_at = 0;
    stream->output_length = pending + length;
    account(stream);
    return !stream->closed;
}

void ph_stream_send(struct ph_stream *stream, const uint8_t *data, size_t length) {
    if (stream->closed || length == 0) {
        return;
    }
    size_t sent = 0;
    if (stream->output_length == 0) {
        ssize_t result = send(stream->source.fd, data, length, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (result < 0 && errno != EAGAIN && errno != EINTR) {
            ph_stream_close(stream);
            return;
        }
        sent = result > 0 ? (size_t)result : 0;
    }
    if (sent < length && keep_output(stream, data + sent, length - sent)) {
        update_interest(stream);
    }
}

void ph_stream_send_error(struct ph_stream *stream, uint32_t message_id, int code, const char *detail) {
    uint8_t bytes[1024];
    struct ph_writer frame = {bytes, 0, sizeof bytes};
    ph_put_error(&frame, message_id, code, detail);
    ph_count(&stream->streams->stats->errors, 1);
    ph_stream_send(stream, frame.data, frame.length);
}

static void drain_output(struct ph_stream *stream) {
    size_t pending = stream->output_length - stream->output_at;
    ssize_t sent = send(stream->source.fd, stream->output + stream->output_at, pending, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && errno != EAGAIN && errno != EINTR) {
        ph_stream_close(stream);
        return;
    }
    if (sent > 0) {
        stream->output_at += (size_t)sent;
        stream->output_moved_ns = *stream->streams->now_ns;
    }
    if (stream->output_at == stream->output_length) {
        free(stream->output);
        stream->output = NULL;
        stream->output_at = stream->output_length = 0;
        account(stream);
    }
}

/* A message that may not come this way, or not in this form, is refused by the rule in message->broken. */
static enum ph_outcome serve_message(struct ph_stream *stream, enum ph_message_kind kind, struct ph_request *message,
                                     struct ph_writer *writer) {
    if (kind == PH_MESSAGE_REQUEST && stream->kind->on_request != NULL) {
        return stream->kind->on_request(stream, message, writer);
    }
    if (kind == PH_MESSAGE_RESPONSE && stream->kind->on_response != NULL) {
        stream->kind->on_response(stream, message);
        return PH_DONE;
    }
    if (kind == PH_MESSAGE_NOTIFICATION) {
        return PH_DONE; /* nothing that can be asked for is of use without an answer */
    }
    if (kind != PH_MESSAGE_BAD) {
        message->broken =
            kind == PH_MESSAGE_REQUEST ? "a sibling answers and does not ask" : "nobody asked for a reply";
    }
    return PH_CLOSE;
}

static void refuse(struct ph_stream *stream, const char *rule) {
    char what[128];
    snprintf(what, sizeof what, "malformed frame: %s", rule);
    violation(stream, what);
}

/* Serves whole frames; returns how many bytes they were. Replies of one batch leave in one write. */
static size_t serve_frames(struct ph_stream *stream, const uint8_t *data, size_t length) {
    struct ph_writer writer = {stream->streams->output, 0, sizeof stream->streams->output};
    size_t at = 0;
    while (at < length && may_serve(stream)) {
        struct ph_request message;
        enum ph_message_kind kind = ph_frame_next(&stream->scan, data + at, length - at, &message);
        if (kind == PH_MESSAGE_MORE) {
            break;
        }
        enum ph_outcome outcome = serve_message(stream, kind, &message, &writer);
        if (outcome == PH_WAIT) {
            if (stream->waiting_since_ns == 0) {
                stream->waiting_since_ns = *stream->streams->now_ns;
            }
            ph_frame_scan(&stream->scan, data + at, message.bytes); /* its end is known: not looked for each time */
            start_waiting(stream);
            break;
        }
        if (outcome == PH_CLOSE) {
            ph_stream_send(stream, writer.data, writer.length);
            refuse(stream, message.broken);
            return length;
        }
        at += message.bytes;
        stream->scan.position = 0;
        stream->waiting_since_ns = 0;
        if (writer.capacity - writer.length < PH_REPLY_BYTES_MAX) {
            ph_stream_send(stream, writer.data, writer.length);
            writer.length = 0;
        }
    }
    ph_stream_send(stream, writer.data, writer.length);
    return at;
}

/* Keeps what has arrived of an unfinished frame, and of those behind one that waits. */
static void keep_input(struct ph_stream *stream, const uint8_t *data, size_t length, int moved) {
    if (length == 0) {
        free(stream->input);
        stream->input = NULL;
    } else {
        uint8_t *kept = malloc(length);
        if (kept == NULL) {
            ph_stream_close(stream);
            return;
        }
        memcpy(kept, data, length);
        free(stream->input);
        stream->input = kept;
    }
    if (moved || stream->input_length == 0) {
        stream->frame_started_ns = *stream->streams->now_ns;
    }
    stream->input_length = (uint32_t)length;
    account(stream);
}

static void serve_input(struct ph_stream *stream, size_t length) {
    uint8_t *input = stream->streams->input;
    if (stream->kind->on_turn != NULL) {
        stream->kind->on_turn(stream);
    }
    size_t served = serve_frames(stream, input, length);
    if (!stream->closed) {
        keep_input(stream, input + served, length - served, served > 0);
    }
    if (!stream->closed) {
        update_interest(stream);
    }
}

static size_t unfinished_input(const struct ph_stream *stream) {
    if (stream->input_length > 0) {
        memcpy(stream->streams->input, stream->input, stream->input_length);
    }
    return stream->input_length;
}

static void read_input(struct ph_stream *stream) {
    size_t kept = unfinished_input(stream);
    struct ph_streams *streams = stream->streams;
    if (kept == sizeof streams->input) {
        return;
    }
    ssize_t got = recv(stream->source.fd, streams->input + kept, sizeof streams->input - kept, MSG_DONTWAIT);
    if (got < 0) {
        if (errno != EAGAIN && errno != EINTR) {
            ph_stream_close(stream);
        }
        return;
    }
    if (got == 0) {
        stream->peer_done = 1;
        update_interest(stream);
        return;
    }
    streams->received = 1;
    serve_input(stream, kept + (size_t)got);
}

/* A peer that has stopped sending is gone once everything that it can still expect has left. */
static int finished(const struct ph_stream *stream) {
    return stream->peer_done && !stream->is_waiting && stream->deferred[PH_DEFERRED] == 0 &&
           stream->deferred[PH_COMMITTING] == 0 && stream->output_length == 0;
}

static void stream_ready(struct ph_source *source, uint32_t events) {
    struct ph_stream *stream = (struct ph_stream *)(void *)source;
    if (stream->closed) {
        return;
    }
    if (events & EPOLLOUT) {
        drain_output(stream);
        /* room again for the replies to requests that are already here */
        if (!stream->closed && stream->input_length > 0 && may_serve(stream)) {
            serve_input(stream, unfinished_input(stream));
        }
    }
    if (!stream->closed && (events & EPOLLIN) && may_serve(stream)) {
        read_input(stream);
    }
    if (!stream->closed) {
        update_interest(stream);
    }
    if (!stream->closed && (finished(stream) || ((events & (EPOLLHUP | EPOLLERR)) && !(events & EPOLLIN)))) {
        ph_stream_close(stream);
    }
}

void ph_streams_resume(struct ph_streams *streams) {
    streams->resume_now = 0;
    for (uint32_t left = streams->waiting_count; left > 0 && !TAILQ_EMPTY(&streams->waiting); left--) {
        struct ph_stream *stream = TAILQ_FIRST(&streams->waiting);
        stop_waiting(stream);
        serve_input(stream, unfinished_input(stream));
        if (!stream->closed && finished(stream)) {
            ph_stream_close(stream);
        }
    }
}

void ph_streams_check_deadlines(struct ph_streams *streams) {
    uint64_t deadline_ns = streams->limits.frame_deadline_ms * PH_NS_PER_MS;
    struct ph_stream *stream = LIST_FIRST(&streams->all);
    while (stream != NULL && !stream->closed) { /* closing one may close the next: the rest a second later */
        struct ph_stream *next = LIST_NEXT(stream, all);
        int half_frame = stream->input_length > 0 && may_serve(stream) &&
                         *stream->streams->now_ns - stream->frame_started_ns > deadline_ns;
        int stuck = stream->output_length > 0 && *stream->streams->now_ns - stream->output_moved_ns > deadline_ns;
        if (half_frame || stuck) {
            violation(stream, half_frame ? "a frame was not completed in time" : "replies are not read");
        }
        stream = next;
    }
}
