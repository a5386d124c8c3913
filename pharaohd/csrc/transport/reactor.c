#define _GNU_SOURCE
#include "transport/reactor.h"

#include <errno.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"

#define NS_PER_S UINT64_C(1000000000)

int ph_reactor_open(struct ph_reactor *reactor) {
    reactor->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    return reactor->epoll_fd < 0 ? -1 : 0;
}

void ph_reactor_close(struct ph_reactor *reactor) { close(reactor->epoll_fd); }

int ph_reactor_add(struct ph_reactor *reactor, struct ph_source *source, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = source};
    return epoll_ctl(reactor->epoll_fd, EPOLL_CTL_ADD, source->fd, &event);
}

void ph_reactor_change(struct ph_reactor *reactor, struct ph_source *source, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = source};
    epoll_ctl(reactor->epoll_fd, EPOLL_CTL_MOD, source->fd, &event);
}

void ph_reactor_remove(struct ph_reactor *reactor, const struct ph_source *source) {
    epoll_ctl(reactor->epoll_fd, EPOLL_CTL_DEL, source->fd, NULL);
}

int ph_reactor_wait(struct ph_reactor *reactor, struct epoll_event *events, int max, uint64_t ns) {
    if (ns > 0 && !reactor->whole_ms_only) {
        struct timespec timeout = {(time_t)(ns / NS_PER_S), (long)(ns % NS_PER_S)};
        int count = (int)syscall(SYS_epoll_pwait2, reactor->epoll_fd, events, max, &timeout, NULL, 0);
        if (count >= 0 || errno != ENOSYS) {
            return count;
        }
        reactor->whole_ms_only = 1;
    }
    return epoll_wait(reactor->epoll_fd, events, max, (int)((ns + PH_NS_PER_MS - 1) / PH_NS_PER_MS));
}
