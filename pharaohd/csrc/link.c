/*
 * Connections to siblings and to the router: a request that another process must serve goes there and its reply comes
 * back on the client's own connection. The request's number on the link is its place in the table; the reply is passed on
 * unread. When one hangs up or does not answer in time, this worker stands in for strict ids, and its clients get a
 * retryable error for the rest, never a hang; it is routed around for a while where another can serve.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "ph_errors.h"
#include "worker.h"

#define NS_PER_MS UINT64_C(1000000)
#define SUSPECT_NS UINT64_C(1000000000)
#define ABANDON_NS UINT64_C(10000000000) /* after so long without any reply the link itself is given up */

static int connect_sibling(const struct ph_worker *worker, uint32_t target) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const char *endpoints = worker->config.endpoints;
    size_t room = sizeof address.sun_path;
    int length = target == PH_ROUTER ? snprintf(address.sun_path, room, "%s/router.sock", endpoints)
                                     : snprintf(address.sun_path, room, "%s/%04u.sock", endpoints, target);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd >= 0 && (length >= (int)sizeof address.sun_path ||
                    connect(fd, (struct sockaddr *)(void *)&address, sizeof address) != 0)) {
        close(fd);
        return -1;
    }
    return fd;
}

static struct ph_link *link_to(struct ph_worker *worker, uint32_t target) {
    struct ph_link *link = worker->links[target];
    if (link == NULL) {
        link = calloc(1, sizeof *link);
        if (link == NULL) {
            return NULL;
        }
        link->target = target;
        worker->links[target] = link;
    }
    if (link->connection == NULL) {
        int fd = connect_sibling(worker, target);
        link->connection = fd >= 0 ? ph_connection_open(worker, fd, PH_SOURCE_LINK) : NULL;
        if (link->connection == NULL) {
            return NULL;
        }
        link->connection->link = link;
    }
    return link;
}

static struct ph_forwarded *free_entry(struct ph_link *link) {
    for (uint32_t tries = 0; tries < PH_IN_FLIGHT_MAX; tries++) {
        struct ph_forwarded *entry = &link->entries[link->next_entry++ % PH_IN_FLIGHT_MAX];
        if (entry->deadline_ns == 0) {
            return entry;
        }
    }
    return NULL;
}

int ph_link_forward(struct ph_worker *worker, struct ph_connection *connection, uint32_t target, const char *method,
                    const struct ph_request *request, uint64_t patience_ms, const struct ph_fallback *fallback) {
    struct ph_link *link = link_to(worker, target);
    struct ph_forwarded *entry = link != NULL ? free_entry(link) : NULL;
    size_t params_length = (size_t)(request->params.end - request->params.at);
    if (link == NULL || params_length > PH_FRAME_BYTES_MAX - 48) { /* 48: what stands before them, with room to spare */
        return PH_ERR_UNAVAILABLE;
    }
    if (entry == NULL && link->suspect_until_ns != 0) {
        return PH_ERR_UNAVAILABLE; /* no number will come free before it answers: others shall not wait behind this */
    }
    if (entry == NULL) {
        return PH_LINK_FULL;
    }
    struct ph_writer frame = {worker->passed_on, 0, sizeof worker->passed_on};
    ph_put_array(&frame, 4);
    ph_put_uint(&frame, PH_MESSAGE_REQUEST);
    ph_put_uint(&frame, (uint64_t)(entry - link->entries));
    ph_put_text(&frame, method);
    ph_put_array(&frame, request->param_count);
    ph_put_raw(&frame, request->params.at, params_length);
    *entry = (struct ph_forwarded){.connection = connection,
                                   .message_id = request->message_id,
                                   .fallback = fallback != NULL ? *fallback : (struct ph_fallback){0, 0},
                                   .deadline_ns = worker->mint.monotonic_ns + patience_ms * NS_PER_MS};
    link->in_use++;
    worker->forwarded_count++;
    connection->forwarded++;
    ph_count(&worker->slot->requests_forwarded, 1);
    ph_connection_send(worker, link->connection, frame.data, frame.length);
    return 0;
}

int ph_link_suspect(const struct ph_worker *worker, uint32_t coordinator) {
    const struct ph_link *link = worker->links[coordinator];
    return link != NULL && worker->mint.monotonic_ns < link->suspect_until_ns;
}

/* The client hears no more of this request; its number stays taken. Returns the client, if it is still there. */
static struct ph_connection *detach(struct ph_worker *worker, struct ph_forwarded *entry) {
    struct ph_connection *client = entry->connection;
    entry->connection = NULL;
    if (client != NULL) {
        client->forwarded--;
        ph_connection_requeue(worker, client);
    }
    return client;
}

static void release(struct ph_worker *worker, struct ph_link *link, struct ph_forwarded *entry) {
    entry->deadline_ns = 0;
    link->in_use--;
    worker->forwarded_count--;
}

void ph_link_reply(struct ph_worker *worker, struct ph_link *link, const struct ph_request *reply) {
    struct ph_forwarded *entry = &link->entries[reply->message_id % PH_IN_FLIGHT_MAX];
    if (entry->deadline_ns == 0) {
        return; /* nobody waits under this number */
    }
    struct ph_connection *client = detach(worker, entry);
    size_t rest = (size_t)(reply->params.end - reply->params.at);
    release(worker, link, entry);
    link->suspect_until_ns = 0;
    if (client == NULL) {
        return;
    }
    struct ph_writer frame = {worker->passed_on, 0, sizeof worker->passed_on};
    ph_put_array(&frame, 4);
    ph_put_uint(&frame, PH_MESSAGE_RESPONSE);
    ph_put_uint(&frame, entry->message_id);
    ph_put_raw(&frame, reply->params.at, rest);
    ph_connection_send(worker, client, frame.data, frame.length);
}

static void give_up(struct ph_worker *worker, struct ph_forwarded *entry, const char *why) {
    struct ph_connection *client = detach(worker, entry);
    if (client == NULL) {
        return;
    }
    if (entry->fallback.noted_ns != 0) {
        ph_strict_stand_in(worker, client, entry->message_id, &entry->fallback);
    } else {
        ph_connection_send_error(worker, client, entry->message_id, PH_ERR_UNAVAILABLE, why);
    }
}

void ph_link_lost(struct ph_worker *worker, struct ph_link *link) {
    link->connection = NULL;
    for (uint32_t i = 0; i < PH_IN_FLIGHT_MAX && link->in_use > 0; i++) {
        if (link->entries[i].deadline_ns != 0) {
            give_up(worker, &link->entries[i], "the coordinator hung up");
            release(worker, link, &link->entries[i]);
        }
    }
}

void ph_link_forget(struct ph_worker *worker, struct ph_connection *connection) {
    for (uint32_t c = 0; c < PH_LINKS_MAX && connection->forwarded > 0; c++) {
        struct ph_link *link = worker->links[c];
        for (uint32_t i = 0; link != NULL && connection->forwarded > 0 && i < PH_IN_FLIGHT_MAX; i++) {
            if (link->entries[i].connection == connection) {
                link->entries[i].connection = NULL; /* the number stays taken until its reply, or the link's end */
                connection->forwarded--;
            }
        }
    }
}

/*
 * Whoever asked may have gone meanwhile: the sibling is slow all the same. Returns 0 when no reply has come for so long
 * that the link is given up.
 */
static int check_deadline(struct ph_worker *worker, struct ph_link *link, struct ph_forwarded *entry) {
    if (entry->deadline_ns == 0 || worker->mint.monotonic_ns <= entry->deadline_ns) {
        return 1;
    }
    if (entry->late) {
        return 0;
    }
    entry->late = 1;
    entry->deadline_ns = worker->mint.monotonic_ns + ABANDON_NS;
    if (worker->mint.monotonic_ns >= link->suspect_until_ns) {
        ph_worker_log(worker, PH_LOG_WARNING, "%s %04u did not answer in time",
                      link->target == PH_ROUTER ? "router" : "coordinator", link->target);
    }
    link->suspect_until_ns = worker->mint.monotonic_ns + SUSPECT_NS;
    give_up(worker, entry, "no answer in time");
    return 1;
}

void ph_links_check_deadlines(struct ph_worker *worker) {
    for (uint32_t c = 0; c < PH_LINKS_MAX && worker->forwarded_count > 0; c++) {
        struct ph_link *link = worker->links[c];
        for (uint32_t i = 0; link != NULL && link->in_use > 0 && i < PH_IN_FLIGHT_MAX; i++) {
            if (!check_deadline(worker, link, &link->entries[i]) && link->connection != NULL) {
                ph_connection_close(worker, link->connection);
                break;
            }
        }
    }
}

/* Those that wait for a sibling's reply are told that this worker stops. */
void ph_links_hang_up(struct ph_worker *worker) {
    for (uint32_t c = 0; c < PH_LINKS_MAX; c++) {
        if (worker->links[c] != NULL && worker->links[c]->connection != NULL) {
            ph_connection_close(worker, worker->links[c]->connection);
        }
    }
}

void ph_links_free(struct ph_worker *worker) {
    for (uint32_t c = 0; c < PH_LINKS_MAX; c++) {
        free(worker->links[c]);
    }
}
