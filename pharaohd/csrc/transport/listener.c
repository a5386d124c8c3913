#define _GNU_SOURCE
#include "transport/listener.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "ph_atomic.h"

static int watch(struct ph_listener *listener) {
    struct ph_reactor *reactor = listener->of->streams->reactor;
    int result = ph_reactor_add(reactor, &listener->source, EPOLLIN | (listener->shared ? EPOLLEXCLUSIVE : 0U));
    listener->missing = result != 0;
    return result;
}

/*
 * The kernel wakes one of the workers that wait on the shared listener: the one that has been in its queue for longest.
 * Who has accepted goes to the queue's end, so that connections go round; otherwise one worker would get them all.
 */
static void yield(struct ph_listener *listener) {
    if (listener->shared) {
        ph_reactor_remove(listener->of->streams->reactor, &listener->source);
        watch(listener);
    }
}

/* The entry of a user, made if need be; NULL when there are too many users. */
static struct ph_user *user_of(struct ph_streams *streams, uid_t uid) {
    struct ph_user *unused = NULL;
    for (size_t i = 0; i < PH_UIDS_MAX; i++) {
        if (streams->users[i].connections > 0 && streams->users[i].uid == uid) {
            return &streams->users[i];
        }
        if (streams->users[i].connections == 0 && unused == NULL) {
            unused = &streams->users[i];
        }
    }
    if (unused != NULL) {
        *unused = (struct ph_user){.uid = uid};
    }
    return unused;
}

static uid_t peer_uid(int fd) {
    struct ucred peer = {.uid = (uid_t)-1};
    socklen_t length = sizeof peer;
    getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length);
    return peer.uid;
}

static void admit(struct ph_listener *listener, int fd) {
    struct ph_streams *streams = listener->of->streams;
    if (listener->is_private) {
        ph_stream_open(streams, fd, listener->kind, NULL);
        return;
    }
    uid_t uid = peer_uid(fd);
    struct ph_user *user = user_of(streams, uid);
    if (streams->stats->connections >= streams->limits.connections_max || user == NULL ||
        user->connections >= streams->limits.connections_per_uid_max) {
        ph_log(streams->events, PH_LOG_WARNING, "connection of uid %u refused: too many connections", (unsigned)uid);
        close(fd);
        return;
    }
    ph_stream_open(streams, fd, listener->kind, user);
}

static int accept_one(const struct ph_listener *listener) {
    return accept4(listener->source.fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
}

/* Out of descriptors: the reserve one lets the oldest caller be told (by a hang-up) rather than left in the queue. */
static void shed_one(struct ph_listener *listener) {
    struct ph_listeners *listeners = listener->of;
    close(listeners->reserve_fd);
    int fd = accept_one(listener);
    if (fd >= 0) {
        close(fd);
    }
    listeners->reserve_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    for (uint32_t i = 0; i < listeners->count; i++) { /* until ph_listeners_tend(): no spin */
        ph_reactor_remove(listeners->streams->reactor, &listeners->list[i].source);
        listeners->list[i].missing = 1;
    }
    ph_log(listeners->streams->events, PH_LOG_ERROR, "out of file descriptors: connections are refused for a second");
}

static void listener_ready(struct ph_source *source, uint32_t events) {
    struct ph_listener *listener = (struct ph_listener *)(void *)source;
    (void)events;
    if (listener->missing) {
        return; /* it was taken out in this round */
    }
    int fd = accept_one(listener);
    if (fd >= 0) {
        ph_count(&listener->of->streams->stats->accepts, 1);
        admit(listener, fd);
        yield(listener);
    } else if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
        shed_one(listener);
    }
}

int ph_listeners_open(struct ph_listeners *listeners, struct ph_streams *streams) {
    listeners->streams = streams;
    listeners->reserve_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    return listeners->reserve_fd < 0 ? -1 : 0;
}

int ph_listeners_add(struct ph_listeners *listeners, int fd, const struct ph_stream_kind *kind, int shared,
                     int is_private) {
    struct ph_listener *listener = &listeners->list[listeners->count++];
    *listener = (struct ph_listener){.source = {fd, listener_ready},
                                     .of = listeners,
                                     .kind = kind,
                                     .shared = (uint8_t)shared,
                                     .is_private = (uint8_t)is_private};
    return watch(listener);
}

void ph_listeners_tend(struct ph_listeners *listeners) {
    for (uint32_t i = 0; i < listeners->count; i++) {
        if (listeners->list[i].missing) {
            watch(&listeners->list[i]);
        }
    }
}

void ph_listeners_close(struct ph_listeners *listeners) { close(listeners->reserve_fd); }
