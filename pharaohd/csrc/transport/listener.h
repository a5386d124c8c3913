/* Sockets that accept, and how many connections each user may have. */
#ifndef PH_LISTENER_H
#define PH_LISTENER_H

#include "transport/stream.h"

#define PH_LISTENERS_MAX 3

struct ph_listener {
    struct ph_source source;
    struct ph_listeners *of;
    const struct ph_stream_kind *kind; /* of the streams that come this way */
    uint8_t shared;                    /* other workers accept from it too */
    uint8_t is_private;                /* of the daemon's own processes: no quota holds */
    uint8_t missing;                   /* the reactor does not know it at the moment: ph_listeners_tend() tells it */
};

struct ph_listeners {
    struct ph_streams *streams;
    struct ph_listener list[PH_LISTENERS_MAX];
    uint32_t count;
    int reserve_fd; /* given up for a moment when there are no more descriptors */
};

/* 0, or -1 with errno. */
int ph_listeners_open(struct ph_listeners *listeners, struct ph_streams *streams);
/* Accepts from a listening socket, which stays the caller's. 0, or -1 with errno. */
int ph_listeners_add(struct ph_listeners *listeners, int fd, const struct ph_stream_kind *kind, int shared,
                     int is_private);
/* Once a second: those that want of descriptors or of memory has taken out accept again. */
void ph_listeners_tend(struct ph_listeners *listeners);
void ph_listeners_close(struct ph_listeners *listeners);

#endif
