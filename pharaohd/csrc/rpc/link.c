#define _GNU_SOURCE
#include "rpc/link.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/clock.h"
#include "ph_atomic.h"
#include "ph_errors.h"

#define UNHEALTHY_NS UINT64_C(1000000000)
#define ABANDON_NS UINT64_C(10000000000) /* after so long without any reply the link itself is given up */

/* The stream to another process, which knows its link. */
struct link_stream {
    struct ph_stream stream;
    struct ph_link *link;
    struct ph_links *links;
};

static uint64_t now_ns(const struct ph_links *links) { return *links->streams->now_ns; }

static int connect_to(const struct ph_links *links, uint32_t target) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t room = sizeof address.sun_path;
    int length = target == PH_ROUTER ? snprintf(address.sun_path, room, "%s/router.sock", links->directory)
                                     : snprintf(address.sun_path, room, "%s/%04u.sock", links->directory, target);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd >= 0 && (length >= (int)sizeof address.sun_path ||
                    connect(fd, (struct sockaddr *)(void *)&address, sizeof address) != 0)) {
        close(fd);
        return -1;
    }
    return fd;
}

static void take_reply(struct ph_stream *stream, const struct ph_request *reply);
static void link_lost(struct ph_stream *stream);

static const struct ph_stream_kind link_kind = {
    .bytes = sizeof(struct link_stream), .on_response = take_reply, .on_closed = link_lost};

static struct ph_link *link_to(struct ph_links *links, uint32_t target) {
    struct ph_link *link = links->to[target];
    if (link == NULL) {
        link = calloc(1, sizeof *link);
        if (link == NULL) {
            return NULL;
        }
        link->target = target;
        links->to[target] = link;
    }
    if (link->stream == NULL) {
        int fd = connect_to(links, target);
        link->stream = fd >= 0 ? ph_stream_open(links->streams, fd, &link_kind, NULL) : NULL;
        if (link->stream == NULL) {
            return NULL;
        }
        struct link_stream *own = (struct link_stream *)(void *)link->stream;
        own->link = link;
        own->links = links;
    }
    return link;
}

void ph_links_init(struct ph_links *links, struct ph_streams *streams, const char *directory,
                   void (*stand_in)(void *owner, struct ph_ticket ticket, const struct ph_fallback *fallback),
                   void *owner) {
    links->streams = streams;
    links->directory = directory;
    links->stand_in = stand_in;
    links->owner = owner;
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

int ph_link_forward(struct ph_links *links, struct ph_stream *stream, uint32_t target, const char *method,
                    const struct ph_request *request, uint64_t timeout_ms, const struct ph_fallback *fallback) {
    struct ph_link *link = link_to(links, target);
    struct ph_forwarded *entry = link != NULL ? free_entry(link) : NULL;
    size_t params_length = (size_t)(request->params.end - request->params.at);
    if (link == NULL || params_length > PH_FRAME_BYTES_MAX - 48) { /* 48: what stands before them, with room to spare */
        return PH_ERR_UNAVAILABLE;
    }
    if (entry == NULL && link->unhealthy_until_ns != 0) {
        return PH_ERR_UNAVAILABLE; /* no number will come free before it answers: others shall not wait behind this */
    }
    if (entry == NULL) {
        return PH_LINK_FULL;
    }
    struct ph_writer frame = {links->frame, 0, sizeof links->frame};
    ph_put_array(&frame, 4);
    ph_put_uint(&frame, PH_MESSAGE_REQUEST);
    ph_put_uint(&frame, (uint64_t)(entry - link->entries));
    ph_put_text(&frame, method);
    ph_put_array(&frame, request->param_count);
    ph_put_raw(&frame, request->params.at, params_length);
    *entry = (struct ph_forwarded){.ticket = ph_stream_defer(stream, request->message_id, PH_DEFERRED),
                                   .fallback = fallback != NULL ? *fallback : (struct ph_fallback){0, 0},
                                   .deadline_ns = now_ns(links) + timeout_ms * PH_NS_PER_MS};
    link->in_use++;
    links->in_use++;
    ph_count(&links->streams->stats->requests_forwarded, 1);
    ph_stream_send(link->stream, frame.data, frame.length);
    return 0;
}

int ph_link_is_unhealthy(const struct ph_links *links, uint32_t coordinator) {
    const struct ph_link *link = links->to[coordinator];
    return link != NULL && now_ns(links) < link->unhealthy_until_ns;
}

static void release(struct ph_links *links, struct ph_link *link, struct ph_forwarded *entry) {
    entry->deadline_ns = 0;
    link->in_use--;
    links->in_use--;
}

/* The stream that still waits for this reply, or NULL. */
static struct ph_stream *waiting_for(struct ph_links *links, const struct ph_forwarded *entry) {
    return entry->told ? NULL : ph_stream_settle(links->streams, entry->ticket);
}

static void take_reply(struct ph_stream *stream, const struct ph_request *reply) {
    struct ph_links *links = ((struct link_stream *)(void *)stream)->links;
    struct ph_link *link = ((struct link_stream *)(void *)stream)->link;
    struct ph_forwarded *entry = &link->entries[reply->message_id % PH_IN_FLIGHT_MAX];
    if (entry->deadline_ns == 0) {
        return; /* nobody waits under this number */
    }
    struct ph_stream *client = waiting_for(links, entry);
    size_t rest = (size_t)(reply->params.end - reply->params.at);
    release(links, link, entry);
    link->unhealthy_until_ns = 0;
    if (client == NULL) {
        return;
    }
    struct ph_writer frame = {links->frame, 0, sizeof links->frame};
    ph_put_array(&frame, 4);
    ph_put_uint(&frame, PH_MESSAGE_RESPONSE);
    ph_put_uint(&frame, entry->ticket.message_id);
    ph_put_raw(&frame, reply->params.at, rest);
    ph_stream_send(client, frame.data, frame.length);
}

/* Its client hears nothing more from there; the number stays taken. */
static void give_up(struct ph_links *links, struct ph_forwarded *entry, const char *why) {
    if (entry->told) {
        return;
    }
    entry->told = 1;
    if (entry->fallback.noted_ns != 0) {
        links->stand_in(links->owner, entry->ticket, &entry->fallback);
        return;
    }
    struct ph_stream *client = ph_stream_settle(links->streams, entry->ticket);
    if (client != NULL) {
        ph_stream_send_error(client, entry->ticket.message_id, PH_ERR_UNAVAILABLE, why);
    }
}

static void link_lost(struct ph_stream *stream) {
    struct ph_links *links = ((struct link_stream *)(void *)stream)->links;
    struct ph_link *link = ((struct link_stream *)(void *)stream)->link;
    link->stream = NULL;
    for (uint32_t i = 0; i < PH_IN_FLIGHT_MAX && link->in_use > 0; i++) {
        if (link->entries[i].deadline_ns != 0) {
            give_up(links, &link->entries[i], "the coordinator hung up");
            release(links, link, &link->entries[i]);
        }
    }
}

/*
 * Whoever asked may have gone meanwhile: the sibling is slow all the same. Returns 0 when no reply has come for so long
 * that the link is given up.
 */
static int check_deadline(struct ph_links *links, struct ph_link *link, struct ph_forwarded *entry) {
    if (entry->deadline_ns == 0 || now_ns(links) <= entry->deadline_ns) {
        return 1;
    }
    if (entry->late) {
        return 0;
    }
    entry->late = 1;
    entry->deadline_ns = now_ns(links) + ABANDON_NS;
    if (now_ns(links) >= link->unhealthy_until_ns) {
        ph_log(links->streams->events, PH_LOG_WARNING, "%s %04u did not answer in time",
               link->target == PH_ROUTER ? "router" : "coordinator", link->target);
    }
    link->unhealthy_until_ns = now_ns(links) + UNHEALTHY_NS;
    give_up(links, entry, "no answer in time");
    return 1;
}

void ph_links_check_deadlines(struct ph_links *links) {
    for (uint32_t c = 0; c < PH_LINKS_MAX && links->in_use > 0; c++) {
        struct ph_link *link = links->to[c];
        for (uint32_t i = 0; link != NULL && link->in_use > 0 && i < PH_IN_FLIGHT_MAX; i++) {
            if (!check_deadline(links, link, &link->entries[i]) && link->stream != NULL) {
                ph_stream_close(link->stream);
                break;
            }
        }
    }
}

void ph_links_hang_up(struct ph_links *links) {
    for (uint32_t c = 0; c < PH_LINKS_MAX; c++) {
        if (links->to[c] != NULL && links->to[c]->stream != NULL) {
            ph_stream_close(links->to[c]->stream);
        }
    }
}

void ph_links_free(struct ph_links *links) {
    for (uint32_t c = 0; c < PH_LINKS_MAX; c++) {
        free(links->to[c]);
    }
}
