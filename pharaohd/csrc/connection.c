/* Sockets and frames: bytes in, requests to methods.c, bytes out. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "ph_errors.h"
#include "worker.h"

#define NS_PER_MS UINT64_C(1000000)

/* The entry of a user, made if need be; NULL when there are too many users. */
static struct ph_user *user_of(struct ph_worker *worker, uid_t uid) {
    struct ph_user *unused = NULL;
    for (size_t i = 0; i < PH_UIDS_MAX; i++) {
        if (worker->users[i].connections > 0 && worker->users[i].uid == uid) {
            return &worker->users[i];
        }
        if (worker->users[i].connections == 0 && unused == NULL) {
            unused = &worker->users[i];
        }
    }
    if (unused != NULL) {
        *unused = (struct ph_user){.uid = uid};
    }
    return unused;
}

static struct ucred peer_of(int fd) {
    struct ucred peer = {.uid = (uid_t)-1};
    socklen_t length = sizeof peer;
    getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length);
    return peer;
}

/*
 * Whether more of it can be served. A link always: two processes that read no replies before the other has read their
 * requests would wait for each other. What it brings is bounded by its numbers.
 */
static int may_serve(const struct ph_worker *worker, const struct ph_connection *connection) {
    if (connection->closed || connection->is_waiting || connection->forwarded >= PH_FORWARDED_MAX) {
        return 0;
    }
    return connection->source.kind == PH_SOURCE_LINK ||
           connection->output_length - connection->output_at < worker->config.output_bytes_max;
}

/* What epoll should watch for follows from the state; the system call is made only when it changes. */
static void update_interest(struct ph_worker *worker, struct ph_connection *connection) {
    uint32_t interest = 0;
    if (may_serve(worker, connection) && !connection->peer_done) {
        interest |= EPOLLIN;
    }
    if (connection->output_length > connection->output_at) {
        interest |= EPOLLOUT;
    }
    if (interest != connection->interest) {
        struct epoll_event event = {.events = interest, .data.ptr = &connection->source};
        epoll_ctl(worker->epoll_fd, EPOLL_CTL_MOD, connection->source.fd, &event);
        connection->interest = interest;
    }
}

struct ph_connection *ph_connection_open(struct ph_worker *worker, int fd, enum ph_source_kind kind) {
    struct ph_connection *connection = calloc(1, sizeof *connection);
    if (connection == NULL) {
        close(fd);
        return NULL;
    }
    connection->source = (struct ph_source){kind, fd};
    connection->interest = EPOLLIN;
    if (ph_worker_watch(worker, &connection->source, EPOLLIN) != 0) {
        close(fd);
        free(connection);
        return NULL;
    }
    LIST_INSERT_HEAD(&worker->connections, connection, all);
    return connection;
}

static void stop_waiting(struct ph_worker *worker, struct ph_connection *connection) {
    if (connection->is_waiting) {
        TAILQ_REMOVE(&worker->waiting, connection, waiting);
        worker->waiting_count--;
        connection->is_waiting = 0;
    }
}

static void start_waiting(struct ph_worker *worker, struct ph_connection *connection) {
    if (!connection->is_waiting) {
        TAILQ_INSERT_TAIL(&worker->waiting, connection, waiting);
        worker->waiting_count++;
        connection->is_waiting = 1;
    }
}

void ph_connection_requeue(struct ph_worker *worker, struct ph_connection *connection) {
    if (!connection->closed && (connection->input_length > 0 || connection->peer_done || !connection->interest)) {
        start_waiting(worker, connection);
        worker->resume_now = 1;
    }
}

void ph_connection_close(struct ph_worker *worker, struct ph_connection *connection) {
    if (connection->closed) {
        return;
    }
    connection->closed = 1;
    stop_waiting(worker, connection);
    if (connection->ring != NULL) {
        ph_ring_detach(worker, connection->ring);
    }
    if (connection->source.kind == PH_SOURCE_LINK) {
        ph_link_lost(worker, connection->link);
    } else {
        ph_strict_forget(worker, connection);
        ph_link_forget(worker, connection);
        connection->user->bytes -= connection->kept_bytes;
        connection->user->connections--;
        ph_count(&worker->slot->connections, UINT64_MAX);
    }
    close(connection->source.fd);
    LIST_REMOVE(connection, all);
    LIST_INSERT_HEAD(&worker->graveyard, connection, all);
}

/* One that is still counting stays until its batches are durable: their replies know it. */
void ph_connections_bury(struct ph_worker *worker) {
    struct ph_connection *next;
    for (struct ph_connection *connection = LIST_FIRST(&worker->graveyard); connection != NULL; connection = next) {
        next = LIST_NEXT(connection, all);
        if (connection->counting > 0) {
            continue;
        }
        LIST_REMOVE(connection, all);
        free(connection->ring);
        free(connection->input);
        free(connection->output);
        free(connection);
    }
}

static void violation(struct ph_worker *worker, struct ph_connection *connection, const char *what) {
    struct ucred peer = peer_of(connection->source.fd);
    ph_count(&worker->slot->violations, 1);
    ph_worker_log(worker, PH_LOG_WARNING, "connection of uid %u, pid %d closed: %s", (unsigned)peer.uid, (int)peer.pid,
                  what);
    ph_connection_close(worker, connection);
}

/* Keeps count of what a user makes this process hold; the connection that is one too many is closed. */
static void account(struct ph_worker *worker, struct ph_connection *connection) {
    struct ph_user *user = connection->user;
    if (user == NULL || connection->closed) {
        return;
    }
    uint64_t kept_bytes = connection->input_length + connection->output_length;
    user->bytes += kept_bytes - connection->kept_bytes;
    connection->kept_bytes = kept_bytes;
    if (user->bytes > PH_UID_BYTES_MAX) {
        violation(worker, connection, "this user's connections hold too much");
    }
}

static int keep_output(struct ph_worker *worker, struct ph_connection *connection, const uint8_t *data, size_t length) {
    size_t pending = connection->output_length - connection->output_at;
    if (connection->output_at > 0) {
        memmove(connection->output, connection->output + connection->output_at, pending);
    }
    uint8_t *grown = realloc(connection->output, pending + length);
    if (grown == NULL) {
        ph_connection_close(worker, connection);
        return 0;
    }
    memcpy(grown + pending, data, length);
    if (pending == 0) {
        connection->output_moved_ns = worker->mint.monotonic_ns;
    }
    connection->output = grown;
    connection->output_at = 0;
    connection->output_length = pending + length;
    account(worker, connection);
    return !connection->closed;
}

void ph_connection_send(struct ph_worker *worker, struct ph_connection *connection, const uint8_t *data,
                        size_t length) {
    if (connection->closed || length == 0) {
        return;
    }
    size_t sent = 0;
    if (connection->output_length == 0) {
        ssize_t result = send(connection->source.fd, data, length, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (result < 0 && errno != EAGAIN && errno != EINTR) {
            ph_connection_close(worker, connection);
            return;
        }
        sent = result > 0 ? (size_t)result : 0;
    }
    if (sent < length && keep_output(worker, connection, data + sent, length - sent)) {
        update_interest(worker, connection);
    }
}

void ph_connection_send_error(struct ph_worker *worker, struct ph_connection *connection, uint32_t message_id, int code,
                              const char *detail) {
    uint8_t bytes[1024];
    struct ph_writer frame = {bytes, 0, sizeof bytes};
    ph_put_error(&frame, message_id, code, detail);
    ph_count(&worker->slot->errors, 1);
    ph_connection_send(worker, connection, frame.data, frame.length);
}

static void drain_output(struct ph_worker *worker, struct ph_connection *connection) {
    size_t pending = connection->output_length - connection->output_at;
    ssize_t sent =
        send(connection->source.fd, connection->output + connection->output_at, pending, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && errno != EAGAIN && errno != EINTR) {
        ph_connection_close(worker, connection);
        return;
    }
    if (sent > 0) {
        connection->output_at += (size_t)sent;
        connection->output_moved_ns = worker->mint.monotonic_ns;
    }
    if (connection->output_at == connection->output_length) {
        free(connection->output);
        connection->output = NULL;
        connection->output_at = connection->output_length = 0;
        account(worker, connection);
    }
}

/* A message that may not come this way, or not in this form, is refused by the rule in message->broken. */
static enum ph_outcome serve_message(struct ph_worker *worker, struct ph_connection *connection,
                                     enum ph_message_kind kind, struct ph_request *message, struct ph_writer *writer) {
    int is_link = connection->source.kind == PH_SOURCE_LINK;
    if (kind == PH_MESSAGE_REQUEST && !is_link) {
        return ph_method_call(worker, connection, message, writer);
    }
    if (kind == PH_MESSAGE_RESPONSE && is_link) {
        ph_link_reply(worker, connection->link, message);
        return PH_DONE;
    }
    if (kind == PH_MESSAGE_NOTIFICATION) {
        return PH_DONE; /* nothing that can be asked for is of use without an answer */
    }
    if (kind != PH_MESSAGE_BAD) {
        message->broken = is_link ? "a sibling answers and does not ask" : "nobody asked for a reply";
    }
    return PH_CLOSE;
}

static void refuse(struct ph_worker *worker, struct ph_connection *connection, const char *rule) {
    char what[128];
    snprintf(what, sizeof what, "malformed frame: %s", rule);
    violation(worker, connection, what);
}

/* Serves whole frames; returns how many bytes they were. Replies of one batch leave in one write. */
static size_t serve_frames(struct ph_worker *worker, struct ph_connection *connection, const uint8_t *data,
                           size_t length) {
    struct ph_writer writer = {worker->output, 0, sizeof worker->output};
    size_t at = 0;
    while (at < length && may_serve(worker, connection)) {
        struct ph_request message;
        enum ph_message_kind kind = ph_frame_next(&connection->scan, data + at, length - at, &message);
        if (kind == PH_MESSAGE_MORE) {
            break;
        }
        enum ph_outcome outcome = serve_message(worker, connection, kind, &message, &writer);
        if (outcome == PH_WAIT) {
            if (connection->waiting_since_ns == 0) {
                connection->waiting_since_ns = worker->mint.monotonic_ns;
            }
            ph_frame_scan(&connection->scan, data + at, message.bytes); /* its end is known: not looked for each time */
            start_waiting(worker, connection);
            break;
        }
        if (outcome == PH_CLOSE) {
            ph_connection_send(worker, connection, writer.data, writer.length);
            refuse(worker, connection, message.broken);
            return length;
        }
        at += message.bytes;
        connection->scan.position = 0;
        connection->waiting_since_ns = 0;
        if (writer.capacity - writer.length < PH_REPLY_BYTES_MAX) {
            ph_connection_send(worker, connection, writer.data, writer.length);
            writer.length = 0;
        }
    }
    ph_connection_send(worker, connection, writer.data, writer.length);
    return at;
}

/* Keeps what has arrived of an unfinished frame, and of those behind one that waits. */
static void keep_input(struct ph_worker *worker, struct ph_connection *connection, const uint8_t *data, size_t length,
                       int moved) {
    if (length == 0) {
        free(connection->input);
        connection->input = NULL;
    } else {
        uint8_t *kept = malloc(length);
        if (kept == NULL) {
            ph_connection_close(worker, connection);
            return;
        }
        memcpy(kept, data, length);
        free(connection->input);
        connection->input = kept;
    }
    if (moved || connection->input_length == 0) {
        connection->frame_started_ns = worker->mint.monotonic_ns;
    }
    connection->input_length = (uint32_t)length;
    account(worker, connection);
}

static void serve_input(struct ph_worker *worker, struct ph_connection *connection, size_t length) {
    int others_wait = worker->waiting_count + worker->starving_count > 0;
    worker->turn_left = others_wait ? ph_worker_share(worker) : UINT64_MAX;
    size_t served = serve_frames(worker, connection, worker->input, length);
    if (!connection->closed) {
        keep_input(worker, connection, worker->input + served, length - served, served > 0);
    }
    if (!connection->closed) {
        update_interest(worker, connection);
    }
}

static size_t unfinished_input(struct ph_worker *worker, const struct ph_connection *connection) {
    if (connection->input_length > 0) {
        memcpy(worker->input, connection->input, connection->input_length);
    }
    return connection->input_length;
}

static void read_input(struct ph_worker *worker, struct ph_connection *connection) {
    size_t kept = unfinished_input(worker, connection);
    if (kept == sizeof worker->input) {
        return;
    }
    ssize_t got = recv(connection->source.fd, worker->input + kept, sizeof worker->input - kept, MSG_DONTWAIT);
    if (got < 0) {
        if (errno != EAGAIN && errno != EINTR) {
            ph_connection_close(worker, connection);
        }
        return;
    }
    if (got == 0) {
        connection->peer_done = 1;
        update_interest(worker, connection);
        return;
    }
    worker->time_is_old = 1;
    serve_input(worker, connection, kept + (size_t)got);
}

/* A peer that has stopped sending is gone once everything that it can still expect has left. */
static int finished(const struct ph_connection *connection) {
    return connection->peer_done && !connection->is_waiting && connection->forwarded == 0 &&
           connection->counting == 0 && connection->output_length == 0;
}

void ph_connection_ready(struct ph_worker *worker, struct ph_connection *connection, uint32_t events) {
    if (connection->closed) {
        return;
    }
    if (events & EPOLLOUT) {
        drain_output(worker, connection);
        /* room again for the replies to requests that are already here */
        if (!connection->closed && connection->input_length > 0 && may_serve(worker, connection)) {
            serve_input(worker, connection, unfinished_input(worker, connection));
        }
    }
    if (!connection->closed && (events & EPOLLIN) && may_serve(worker, connection)) {
        read_input(worker, connection);
    }
    if (!connection->closed) {
        update_interest(worker, connection);
    }
    if (!connection->closed && (finished(connection) || ((events & (EPOLLHUP | EPOLLERR)) && !(events & EPOLLIN)))) {
        ph_connection_close(worker, connection);
    }
}

void ph_connections_resume(struct ph_worker *worker) {
    worker->resume_now = 0;
    for (uint32_t left = worker->waiting_count; left > 0 && !TAILQ_EMPTY(&worker->waiting); left--) {
        struct ph_connection *connection = TAILQ_FIRST(&worker->waiting);
        stop_waiting(worker, connection);
        serve_input(worker, connection, unfinished_input(worker, connection));
        if (!connection->closed && finished(connection)) {
            ph_connection_close(worker, connection);
        }
    }
}

void ph_connections_check_deadlines(struct ph_worker *worker) {
    uint64_t deadline_ns = worker->config.frame_deadline_ms * NS_PER_MS;
    struct ph_connection *connection = LIST_FIRST(&worker->connections);
    while (connection != NULL && !connection->closed) { /* closing one may close the next: the rest a second later */
        struct ph_connection *next = LIST_NEXT(connection, all);
        int half_frame = connection->input_length > 0 && may_serve(worker, connection) &&
                         worker->mint.monotonic_ns - connection->frame_started_ns > deadline_ns;
        int stuck =
            connection->output_length > 0 && worker->mint.monotonic_ns - connection->output_moved_ns > deadline_ns;
        if (half_frame || stuck) {
            violation(worker, connection, half_frame ? "a frame was not completed in time" : "replies are not read");
        }
        connection = next;
    }
}

static void admit(struct ph_worker *worker, int fd) {
    uid_t uid = peer_of(fd).uid;
    struct ph_user *user = user_of(worker, uid);
    if (worker->slot->connections >= worker->config.connections_max || user == NULL ||
        user->connections >= worker->config.connections_per_uid_max) {
        ph_worker_log(worker, PH_LOG_WARNING, "connection of uid %u refused: too many connections", (unsigned)uid);
        close(fd);
        return;
    }
    struct ph_connection *connection = ph_connection_open(worker, fd, PH_SOURCE_CONNECTION);
    if (connection != NULL) {
        connection->user = user;
        user->connections++;
        ph_count(&worker->slot->connections, 1);
    }
}

/* Out of descriptors: the reserve one lets the oldest caller be told (by a hang-up) rather than left in the queue. */
static void shed_one(struct ph_worker *worker, struct ph_source *listener) {
    close(worker->reserve_fd);
    int fd = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd >= 0) {
        close(fd);
    }
    worker->reserve_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    worker->accept_paused = 1; /* until the next heartbeat: no spin */
    ph_worker_log(worker, PH_LOG_ERROR, "out of file descriptors: connections are refused for a second");
}

void ph_listener_ready(struct ph_worker *worker, struct ph_source *listener) {
    int fd = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd >= 0) {
        ph_count(&worker->slot->accepts, 1);
        admit(worker, fd);
        ph_worker_yield_listener(worker, listener);
    } else if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
        shed_one(worker, listener);
    }
}
