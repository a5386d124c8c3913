/*
 * A server that does nothing but answer: no parsing, no order, no clock, no file. What the kernel's sockets and the load
 * generator allow, whoever serves.
 *
 *   bare SOCKET
 *
 * Takes twelve bytes for a request to next_id and replies with the next number. One thread, one recv and one send for
 * what has arrived on a connection, no system call besides but an epoll_wait for all of them.
 */
#define _GNU_SOURCE
#include "bench.h"

#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define REQUEST_BYTES 12
#define REPLY_BYTES 13
#define REQUESTS_MAX 1024

static int listen_at(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) != 0 || listen(fd, SOMAXCONN) != 0) {
        fail("cannot listen");
    }
    return fd;
}

static void answer(int fd) {
    static uint64_t number;
    uint8_t in[REQUESTS_MAX * REQUEST_BYTES], out[REQUESTS_MAX * REPLY_BYTES];
    ssize_t got = recv(fd, in, sizeof in, MSG_DONTWAIT);
    if (got <= 0) {
        close(fd);
        return;
    }
    if (got % REQUEST_BYTES != 0) {
        fail("half a request");
    }
    size_t count = (size_t)got / REQUEST_BYTES;
    for (size_t i = 0; i < count; i++) {
        uint8_t *reply = out + i * REPLY_BYTES;
        uint64_t big_endian = htobe64(UINT64_C(1) << 62 | ++number);
        memcpy(reply, (uint8_t[]){0x94, 0x01, in[i * REQUEST_BYTES + 2], 0xc0, 0xcf}, 5);
        memcpy(reply + 5, &big_endian, sizeof big_endian);
    }
    if (send(fd, out, count * REPLY_BYTES, MSG_NOSIGNAL | MSG_DONTWAIT) != (ssize_t)(count * REPLY_BYTES)) {
        fail("a reply was not sent whole");
    }
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fail("usage: bare SOCKET");
    }
    int listener = listen_at(argv[1]), epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        struct epoll_event events[256];
        int ready = epoll_wait(epoll_fd, events, 256, -1);
        for (int i = 0; i < ready; i++) {
            if (events[i].data.fd != listener) {
                answer(events[i].data.fd);
                continue;
            }
            event.data.fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
            epoll_ctl(epoll_fd, EPOLL_CTL_ADD, event.data.fd, &event);
        }
    }
}
