/*
 * Connections to siblings: a request that another coordinator must serve goes there and its reply comes back on the
 * client's own connection. The request's number on the link is its place in the table; the reply is passed on unread.
 * A sibling that hangs up or does not answer in time costs its clients a retryable error, never a hang.
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

#define DEADLINE_NS UINT64_C(300000000)

static int connect_sibling(const struct ph_worker *worker, uint32_t coordinator) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int length =
        snprintf(address.sun_path, sizeof address.sun_path, "%s/%04u.sock", worker->config.endpoints, coordinator);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd >= 0 && (length >= (int)sizeof address.sun_path ||
                    connect(fd, (struct sockaddr *)(void *)&address, sizeof address) != 0)) {
        close(fd);
        return -1;
    }
    return fd;
}

static struct ph_link *link_to(struct ph_worker *worker, uint32_t coordinator) {
    struct ph_link *link = worker->links[coordinator];
    if (link == NULL) {
        link = calloc(1, sizeof *link);
        if (link == NULL) {
            return NULL;
        }
        link->coordinator = coordinator;
        worker->links[coordinator] = link;
    }
    if (link->connection == NULL) {
        int fd = connect_sibling(worker, coordinator);
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

int ph_link_forward(struct ph_worker *worker, struct ph_connection *connection, uint32_t coordinator,
                    uint32_t message_id, const char *method, const struct ph_reader *params, uint32_t param_count) {
    struct ph_link *link = link_to(worker, coordinator);
    struct ph_forwarded *entry = link != NULL ? free_entry(link) : NULL;
    size_t params_length = (size_t)(params->end - params->at);
    if (link == NULL || params_length > PH_REPLY_BYTES_MAX / 2) {
        return PH_ERR_UNAVAILABLE;
    }
    if (entry == NULL) {
        return PH_LINK_FULL;
    }
    uint8_t bytes[PH_REPLY_BYTES_MAX];
    struct ph_writer frame = {bytes, 0, sizeof bytes};
    ph_put_array(&frame, 4);
    ph_put_uint(&frame, PH_MESSAGE_REQUEST);
    ph_put_uint(&frame, (uint64_t)(entry - link->entries));
    ph_put_text(&frame, method);
    ph_put_array(&frame, param_count);
    ph_put_raw(&frame, params->at, params_length);
    *entry = (struct ph_forwarded){connection, message_id, worker->monotonic_ns + DEADLINE_NS};
    link->in_use++;
    worker->forwarded_count++;
    connection->forwarded++;
    ph_count(&worker->slot->requests_forwarded, 1);
    ph_connection_send(worker, link->connection, frame.data, frame.length);
    return 0;
}

/* Frees an entry; returns the client that waits for it, if it is still there. */
static struct ph_connection *release(struct ph_worker *worker, struct ph_link *link, struct ph_forwarded *entry) {
    struct ph_connection *client = entry->connection;
    entry->connection = NULL;
    entry->deadline_ns = 0;
    link->in_use--;
    worker->forwarded_count--;
    if (client != NULL) {
        client->forwarded--;
        ph_connection_requeue(worker, client);
    }
    return client;
}

void ph_link_reply(struct ph_worker *worker, struct ph_link *link, const struct ph_request *reply) {
    struct ph_forwarded *entry = &link->entries[reply->message_id % PH_IN_FLIGHT_MAX];
    if (entry->deadline_ns == 0) {
        return; /* it came after its deadline */
    }
    uint32_t message_id = entry->message_id;
    struct ph_connection *client = release(worker, link, entry);
    size_t rest = (size_t)(reply->params.end - reply->params.at);
    if (client == NULL || rest > PH_REPLY_BYTES_MAX - 16) {
        return;
    }
    uint8_t bytes[PH_REPLY_BYTES_MAX];
    struct ph_writer frame = {bytes, 0, sizeof bytes};
    ph_put_array(&frame, 4);
    ph_put_uint(&frame, PH_MESSAGE_RESPONSE);
    ph_put_uint(&frame, message_id);
    ph_put_raw(&frame, reply->params.at, rest);
    ph_connection_send(worker, client, frame.data, frame.length);
}

static void give_up(struct ph_worker *worker, struct ph_link *link, struct ph_forwarded *entry, const char *why) {
    uint32_t message_id = entry->message_id;
    struct ph_connection *client = release(worker, link, entry);
    if (client == NULL) {
        return;
    }
    uint8_t bytes[1024];
    struct ph_writer frame = {bytes, 0, sizeof bytes};
    ph_put_error(&frame, message_id, PH_ERR_UNAVAILABLE, why);
    ph_count(&worker->slot->errors, 1);
    ph_connection_send(worker, client, frame.data, frame.length);
}

void ph_link_lost(struct ph_worker *worker, struct ph_link *link) {
    link->connection = NULL;
    for (uint32_t i = 0; i < PH_IN_FLIGHT_MAX && link->in_use > 0; i++) {
        if (link->entries[i].deadline_ns != 0) {
            give_up(worker, link, &link->entries[i], "the coordinator hung up");
        }
    }
}

void ph_link_forget(struct ph_worker *worker, const struct ph_connection *connection) {
    for (uint32_t c = 0; c < PH_COORDINATOR_MAX && connection->forwarded > 0; c++) {
        struct ph_link *link = worker->links[c];
        for (uint32_t i = 0; link != NULL && i < PH_IN_FLIGHT_MAX; i++) {
            if (link->entries[i].connection == connection) {
                link->entries[i].connection = NULL; /* the number stays taken until its reply or its deadline */
            }
        }
    }
}

/*
 * A link on which a reply is overdue is dropped: its table may not be used again while replies to old numbers can
 * still arrive.
 */
void ph_links_check_deadlines(struct ph_worker *worker) {
    for (uint32_t c = 0; c < PH_COORDINATOR_MAX && worker->forwarded_count > 0; c++) {
        struct ph_link *link = worker->links[c];
        for (uint32_t i = 0; link != NULL && i < PH_IN_FLIGHT_MAX; i++) {
            uint64_t deadline_ns = link->entries[i].deadline_ns;
            if (deadline_ns != 0 && worker->monotonic_ns > deadline_ns && link->connection != NULL) {
                ph_worker_log(worker, PH_LOG_WARNING, "coordinator %04u did not answer in 300 ms", link->coordinator);
                ph_connection_close(worker, link->connection);
                break;
            }
        }
    }
}

void ph_links_free(struct ph_worker *worker) {
    for (uint32_t c = 0; c < PH_COORDINATOR_MAX; c++) {
        free(worker->links[c]);
    }
}
