/*
 * The descriptors that a worker waits for, each with the function that is called when it is ready.
 *
 * Invariant
 * - A source outlives the round in which its descriptor is closed: it may be among the events that were fetched already.
 */
#ifndef PH_REACTOR_H
#define PH_REACTOR_H

#include <stdint.h>
#include <sys/epoll.h>

/* The first member of whatever owns the descriptor. */
struct ph_source {
    int fd;
    void (*ready)(struct ph_source *source, uint32_t events);
};

struct ph_reactor {
    int epoll_fd;
    uint8_t whole_ms_only; /* the kernel is older than Linux 5.11 */
};

/* 0, or -1 with errno. */
int ph_reactor_open(struct ph_reactor *reactor);
void ph_reactor_close(struct ph_reactor *reactor);
/* 0, or -1 with errno. */
int ph_reactor_add(struct ph_reactor *reactor, struct ph_source *source, uint32_t events);
void ph_reactor_change(struct ph_reactor *reactor, struct ph_source *source, uint32_t events);
/* Needed only where someone else may hold the descriptor's file open: otherwise to close it is enough. */
void ph_reactor_remove(struct ph_reactor *reactor, const struct ph_source *source);
/* Waits up to `ns` for events; 0: only looks. Returns how many there are, at most `max`; -1 when a signal came. */
int ph_reactor_wait(struct ph_reactor *reactor, struct epoll_event *events, int max, uint64_t ns);

static inline void ph_reactor_dispatch(const struct epoll_event *event) {
    struct ph_source *source = event->data.ptr;
    source->ready(source, event->events);
}

#endif
