/*
 * Requests that another process of this host must serve: a sibling worker, or the router. The request's number on the
 * link is its place in the table; the reply is passed on unread to whoever holds its ticket. When a sibling hangs up or
 * does not answer in time, the layer above stands in for it, or the client gets a retryable error, never a hang; others
 * serve its keys for a while.
 */
#ifndef PH_LINK_H
#define PH_LINK_H

#include "ph_scarab.h"
#include "transport/stream.h"

#define PH_ROUTER PH_COORDINATOR_MAX /* the link to the router process */
#define PH_LINKS_MAX (PH_COORDINATOR_MAX + 1)
#define PH_LINK_FULL (-1)

/* What the layer above needs to stand in for who was asked. */
struct ph_fallback {
    uint64_t after;
    int64_t noted_ns; /* host time when the request came to this host; 0: nobody can stand in, the client is told */
};

/* A request passed on, by the number that it has there. The number stays taken until its reply has come. */
struct ph_forwarded {
    struct ph_ticket ticket;
    struct ph_fallback fallback;
    uint8_t told;         /* its client has been answered in another way */
    uint8_t late;         /* no reply came in time */
    uint64_t deadline_ns; /* 0: free */
};

struct ph_link {
    struct ph_stream *stream; /* NULL: not connected */
    uint32_t target;          /* a coordinator, or PH_ROUTER */
    uint32_t next_entry;
    uint32_t in_use;
    uint64_t unhealthy_until_ns; /* it did not answer in time: others serve its keys meanwhile; 0 once it answers */
    struct ph_forwarded entries[PH_IN_FLIGHT_MAX];
};

struct ph_links {
    struct ph_streams *streams;
    const char *directory; /* of the sockets */
    /* Answers in the place of who was asked. */
    void (*stand_in)(void *owner, struct ph_ticket ticket, const struct ph_fallback *fallback);
    void *owner;
    struct ph_link *to[PH_LINKS_MAX];
    uint32_t in_use;
    uint8_t frame[PH_FRAME_BYTES_MAX + 64]; /* on its way to a sibling, or back */
};

/* directory: where the sockets lie. stand_in: see struct ph_links. */
void ph_links_init(struct ph_links *links, struct ph_streams *streams, const char *directory,
                   void (*stand_in)(void *owner, struct ph_ticket ticket, const struct ph_fallback *fallback),
                   void *owner);
/*
 * Passes a request on as `method`; its reply comes back on the stream later. When there is none after timeout_ms the
 * layer above stands in, or without a fallback the client gets an error. 0, an error's code, or FULL.
 */
int ph_link_forward(struct ph_links *links, struct ph_stream *stream, uint32_t target, const char *method,
                    const struct ph_request *request, uint64_t timeout_ms, const struct ph_fallback *fallback);
/* Whether a sibling has just failed to answer in time. */
int ph_link_is_unhealthy(const struct ph_links *links, uint32_t coordinator);
void ph_links_check_deadlines(struct ph_links *links);
/* Those that wait for a reply are told that this worker stops. */
void ph_links_hang_up(struct ph_links *links);
void ph_links_free(struct ph_links *links);

#endif
