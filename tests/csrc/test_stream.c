/*
 * Connections that come and go while replies are still to come: each reply finds the stream of its request, or nothing.
 * F12, F37, F41.
 *
 * Invariants
 * - What a peer reads answers what it asked, once.
 * - The ticket of a stream that is gone finds nothing, whoever has its place by then.
 * - No stream has more than PH_DEFERRED_MAX replies to come; what is behind them is served once they have come.
 */
#define _GNU_SOURCE
#include "transport/stream.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "random.h"

#define PEERS 24
#define OPEN_TICKETS_MAX 4096
#define STEPS 60000

struct peer {
    int fd; /* -1: none */
    struct ph_stream *stream;
    uint32_t asked, answered; /* how many; its message ids are first, first + 1, … */
    uint32_t first;
    uint8_t bytes[4096];
    size_t length;
};

static struct random chances;
static struct ph_reactor reactor;
static struct ph_events events;
static struct ph_stats_slot stats;
static struct ph_streams streams;
static uint64_t now_ns = 1;
static struct peer peers[PEERS];
static struct ph_ticket tickets[OPEN_TICKETS_MAX];
static uint32_t ticket_count, next_id, replies, lost;

static uint64_t below(uint64_t end) { return random_below(&chances, end); }

static enum ph_outcome defer(struct ph_stream *stream, struct ph_request *request, struct ph_writer *writer) {
    (void)writer;
    REQUIRE(ticket_count < OPEN_TICKETS_MAX);
    CHECK(stream->deferred[PH_DEFERRED] < PH_DEFERRED_MAX);
    tickets[ticket_count++] = ph_stream_defer(stream, request->message_id, PH_DEFERRED);
    return PH_DONE;
}

static void closed(struct ph_stream *stream) {
    for (int i = 0; i < PEERS; i++) {
        if (peers[i].stream == stream) {
            peers[i].stream = NULL;
        }
    }
}

static const struct ph_stream_kind kind = {.bytes = sizeof(struct ph_stream), .on_request = defer, .on_closed = closed};

static void open_peer(struct peer *peer) {
    int fds[2];
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds) == 0);
    *peer = (struct peer){.fd = fds[0], .stream = ph_stream_open(&streams, fds[1], &kind, NULL), .first = next_id};
    REQUIRE(peer->stream != NULL);
    next_id += 1000000;
}

static void ask(struct peer *peer) {
    uint8_t bytes[64];
    struct ph_writer frame = {bytes, 0, sizeof bytes};
    ph_put_array(&frame, 4);
    ph_put_uint(&frame, PH_MESSAGE_REQUEST);
    ph_put_uint(&frame, peer->first + peer->asked);
    ph_put_text(&frame, "anything");
    ph_put_array(&frame, 0);
    if (send(peer->fd, frame.data, frame.length, MSG_NOSIGNAL) == (ssize_t)frame.length) {
        peer->asked++;
    }
}

/* A reply is the request's number, in four bytes. */
static void answer(uint32_t which) {
    struct ph_ticket ticket = tickets[which];
    tickets[which] = tickets[--ticket_count];
    struct ph_stream *found = ph_stream_find(&streams, ticket);
    struct ph_stream *stream = ph_stream_settle(&streams, ticket);
    CHECK(stream == found);
    lost += stream == NULL;
    if (stream != NULL) {
        uint8_t bytes[4];
        memcpy(bytes, &ticket.message_id, sizeof bytes);
        ph_stream_send(stream, bytes, sizeof bytes);
    }
}

static void read_replies(struct peer *peer) {
    ssize_t got = recv(peer->fd, peer->bytes + peer->length, sizeof peer->bytes - peer->length, 0);
    peer->length += got > 0 ? (size_t)got : 0;
    size_t at = 0;
    for (; at + 4 <= peer->length; at += 4) {
        uint32_t id;
        memcpy(&id, peer->bytes + at, 4);
        CHECK(id - peer->first < peer->asked); /* its own */
        peer->answered++;
        replies++;
    }
    CHECK(peer->answered <= peer->asked);
    memmove(peer->bytes, peer->bytes + at, peer->length - at);
    peer->length -= at;
}

static void round_of_loop(void) {
    struct epoll_event ready[16];
    int count = ph_reactor_wait(&reactor, ready, 16, 0);
    now_ns += 1000;
    for (int i = 0; i < count; i++) {
        ph_reactor_dispatch(&ready[i]);
    }
    if (streams.resume_now) {
        ph_streams_resume(&streams);
    }
    ph_streams_free_closed(&streams);
}

static void step(void) {
    struct peer *peer = &peers[below(PEERS)];
    switch (below(8)) {
    case 0:
        if (peer->fd < 0) {
            open_peer(peer);
        } else if (below(20) == 0) { /* hangs up, or is hung up on */
            close(peer->fd);
            if (peer->stream != NULL && below(2) == 0) {
                ph_stream_close(peer->stream);
            }
            peer->fd = -1;
        }
        break;
    case 1:
    case 2:
    case 3:
        for (uint64_t i = 1 + below(100); peer->fd >= 0 && i > 0; i--) {
            ask(peer);
        }
        break;
    case 4:
    case 5:
        for (uint64_t i = below(200); ticket_count > 0 && i > 0; i--) {
            answer((uint32_t)below(ticket_count));
        }
        break;
    default:
        if (peer->fd >= 0) {
            read_replies(peer);
        }
    }
    round_of_loop();
}

static void test_each_reply_finds_its_own(void) {
    struct ph_stream_limits limits = {.output_bytes_max = 1 << 20};
    REQUIRE(ph_reactor_open(&reactor) == 0);
    ph_streams_init(&streams, &reactor, &events, &stats, &now_ns, NULL);
    ph_streams_limit(&streams, &limits);
    for (int i = 0; i < PEERS; i++) {
        peers[i].fd = -1;
    }
    for (int i = 0; i < STEPS; i++) {
        step();
    }
    for (int rounds = 0; rounds < 2000; rounds++) { /* in the end nobody waits */
        while (ticket_count > 0) {
            answer(ticket_count - 1);
        }
        round_of_loop();
        for (int i = 0; i < PEERS; i++) {
            if (peers[i].fd >= 0) {
                read_replies(&peers[i]);
            }
        }
    }
    for (int i = 0; i < PEERS; i++) {
        CHECK(peers[i].fd < 0 || peers[i].answered == peers[i].asked);
    }
    CHECK(replies > 10000 && lost > 100);
    ph_streams_close(&streams);
    ph_reactor_close(&reactor);
}

int main(void) {
    chances = random_start();
    RUN(test_each_reply_finds_its_own);
    return check_report();
}
