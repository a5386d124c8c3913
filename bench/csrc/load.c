/*
 * Load over a Unix socket, the same for both sides: each connection keeps `depth` requests in flight, replies are
 * checked byte by byte, and ids must rise on each connection and be unique over all of them.
 *
 *   load pharaoh|dense|spread|redis|etcd SOCKET CONNECTIONS DEPTH SECONDS [NAMES]
 *
 * pharaoh: next_id. dense: assign_offset of one partition; together the offsets must have no gap. spread: assign_offset of
 * partitions chosen at random, "name 0" to "name NAMES-1"; the caller has to check their sum. redis: INCR.
 * etcd: a put through its JSON gateway, whose revision is the id; one in flight; SOCKET is a port of 127.0.0.1.
 */
#define _GNU_SOURCE
#include "bench.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define DEPTH_MAX 64
#define REPLY_BYTES_MAX 32
#define REQUEST_BYTES_MAX 128
#define REPLIES_PER_SECOND_MAX 12000000
#define WARM_UP_NS (NS_PER_S / 10)
#define GIVE_UP_MS 5000

struct connection {
    int fd;
    uint64_t sent, received; /* requests, replies */
    uint64_t last_id;
    size_t buffered;
    uint8_t buffer[2 * DEPTH_MAX * REPLY_BYTES_MAX];
    uint64_t sent_ns[DEPTH_MAX];
};

/* request: writes one, returns its bytes. reply: reads one, returns its bytes, or 0 when there is more to come. */
struct protocol {
    size_t (*request)(uint8_t *out, uint64_t number);
    size_t (*reply)(const uint8_t *in, size_t length, uint64_t number, uint64_t *id);
};

static size_t pharaoh_request(uint8_t *out, uint64_t number) {
    memcpy(out, "\x94\x00\x00\xa7next_id\x90", 12);
    out[2] = number % DEPTH_MAX;
    return 12;
}

static size_t pharaoh_reply(const uint8_t *in, size_t length, uint64_t number, uint64_t *id) {
    if (length < 13) {
        return 0;
    }
    const uint8_t head[] = {0x94, 0x01, number % DEPTH_MAX, 0xc0, 0xcf};
    if (memcmp(in, head, sizeof head) != 0) {
        fail("not the reply to next_id");
    }
    uint64_t big_endian;
    memcpy(&big_endian, in + 5, 8);
    *id = be64toh(big_endian);
    return 13;
}

static size_t dense_request(uint8_t *out, uint64_t number) {
    memcpy(out,
           "\x94\x00\x00\xad"
           "assign_offset\x91\xa1k",
           20);
    out[2] = number % DEPTH_MAX;
    return 20;
}

/* The offset plus one: 0 is an offset, but no id. */
static size_t dense_reply(const uint8_t *in, size_t length, uint64_t number, uint64_t *id) {
    const uint8_t head[] = {0x94, 0x01, number % DEPTH_MAX, 0xc0};
    if (length < 5) {
        return 0;
    }
    if (memcmp(in, head, sizeof head) != 0 || (in[4] > 0x7f && (in[4] < 0xcc || in[4] > 0xcf))) {
        fail("not the reply to assign_offset");
    }
    size_t bytes = in[4] <= 0x7f ? 0 : (size_t)1 << (in[4] - 0xcc);
    if (length < 5 + bytes) {
        return 0;
    }
    uint64_t value = bytes == 0 ? in[4] : 0;
    for (size_t i = 0; i < bytes; i++) {
        value = value << 8 | in[5 + i];
    }
    *id = value + 1;
    return 5 + bytes;
}

static uint64_t names; /* of the spread load */

static size_t spread_request(uint8_t *out, uint64_t number) {
    static uint64_t state = 1;
    char name[24];
    state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407); /* Knuth's MMIX */
    int length = snprintf(name, sizeof name, "name %" PRIu64, (state >> 33) % names);
    memcpy(out,
           "\x94\x00\x00\xad"
           "assign_offset\x91",
           18);
    out[2] = number % DEPTH_MAX;
    out[18] = (uint8_t)(0xa0 | length);
    memcpy(out + 19, name, (size_t)length);
    return 19 + (size_t)length;
}

static size_t redis_request(uint8_t *out, uint64_t number) {
    (void)number;
    memcpy(out, "*2\r\n$4\r\nINCR\r\n$1\r\nk\r\n", 21);
    return 21;
}

static size_t redis_reply(const uint8_t *in, size_t length, uint64_t number, uint64_t *id) {
    (void)number;
    if (length > 0 && in[0] != ':') {
        fail("not the reply to INCR");
    }
    uint64_t value = 0;
    for (size_t at = 1; at < length && at < REPLY_BYTES_MAX; at++) {
        if (in[at] == '\r') {
            *id = value;
            return at + 2 <= length ? at + 2 : 0;
        }
        value = value * 10 + (uint64_t)(in[at] - '0');
    }
    return 0;
}

/* A fixed body: {"key":"k","value":"1"}, each in base 64. */
static size_t etcd_request(uint8_t *out, uint64_t number) {
    static const char text[] = "POST /v3/kv/put HTTP/1.1\r\nHost: e\r\nContent-Length: 29\r\n\r\n"
                               "{\"key\":\"aw==\",\"value\":\"MQ==\"}";
    (void)number;
    memcpy(out, text, sizeof text - 1);
    return sizeof text - 1;
}

static size_t etcd_reply(const uint8_t *in, size_t length, uint64_t number, uint64_t *id) {
    char text[2048];
    (void)number;
    if (length == 0 || length >= sizeof text) {
        return 0;
    }
    memcpy(text, in, length);
    text[length] = '\0';
    if (strncmp(text, "HTTP/1.1 200", length < 12 ? length : 12) != 0) {
        fail("etcd refused a put");
    }
    const char *body = strstr(text, "\r\n\r\n"), *bytes = strstr(text, "Content-Length: ");
    if (body == NULL) {
        return 0;
    }
    size_t whole = (size_t)(body + 4 - text) + (bytes != NULL ? (size_t)atol(bytes + 16) : 0);
    const char *revision = strstr(body, "\"revision\":\"");
    if (length < whole) {
        return 0;
    }
    if (bytes == NULL || revision == NULL) {
        fail("not the reply to a put");
    }
    *id = strtoull(revision + 12, NULL, 10);
    return whole;
}

static int connect_to_port(const char *port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port))};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) != 0 ||
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) != 0) {
        fail("cannot connect");
    }
    return fd;
}

static int connect_to(const char *path) {
    if (path[0] != '/') {
        return connect_to_port(path);
    }
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) != 0) {
        fail("cannot connect");
    }
    return fd;
}

static void ask(struct connection *connection, const struct protocol *protocol, uint64_t count, uint64_t at_ns) {
    uint8_t out[DEPTH_MAX * REQUEST_BYTES_MAX];
    size_t length = 0;
    for (uint64_t i = 0; i < count; i++) {
        connection->sent_ns[connection->sent % DEPTH_MAX] = at_ns;
        length += protocol->request(out + length, connection->sent++);
    }
    if (send(connection->fd, out, length, MSG_NOSIGNAL) != (ssize_t)length) {
        fail("a request was not sent whole");
    }
}

struct run {
    const struct protocol *protocol;
    struct record ids, latencies_ns;
    uint64_t start_ns, end_ns; /* of what counts */
    uint64_t replies;          /* between the two */
};

/* Takes what has arrived; returns how many replies that was. */
static uint64_t take_replies(struct run *run, struct connection *connection, uint64_t at_ns) {
    uint64_t before = connection->received, id = 0;
    size_t at = 0, length;
    while (connection->received < connection->sent &&
           (length = run->protocol->reply(connection->buffer + at, connection->buffered - at, connection->received,
                                          &id)) > 0) {
        at += length;
        if (id <= connection->last_id && names == 0) {
            fail("an id is not greater than the one before it on its connection");
        }
        connection->last_id = id;
        record_add(&run->ids, id);
        if (at_ns >= run->start_ns && at_ns < run->end_ns) {
            run->replies++;
            record_add(&run->latencies_ns, at_ns - connection->sent_ns[connection->received % DEPTH_MAX]);
        }
        connection->received++;
    }
    connection->buffered -= at;
    memmove(connection->buffer, connection->buffer + at, connection->buffered);
    return connection->received - before;
}

static uint64_t receive(struct run *run, struct connection *connection) {
    ssize_t got = recv(connection->fd, connection->buffer + connection->buffered,
                       sizeof connection->buffer - connection->buffered, MSG_DONTWAIT);
    if (got <= 0) {
        fail("the server hung up");
    }
    connection->buffered += (size_t)got;
    uint64_t at_ns = now_ns();
    uint64_t count = take_replies(run, connection, at_ns);
    if (count > 0 && at_ns < run->end_ns) {
        ask(connection, run->protocol, count, at_ns);
    }
    return count;
}

static void drive(struct run *run, struct connection *connections, size_t count, uint64_t depth) {
    int epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    uint64_t in_flight = 0;
    for (size_t i = 0; i < count; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &connections[i]};
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, connections[i].fd, &event);
        ask(&connections[i], run->protocol, depth, now_ns());
    }
    do {
        struct epoll_event events[256];
        int ready = epoll_wait(epoll_fd, events, 256, GIVE_UP_MS);
        if (ready <= 0 && errno != EINTR) {
            fail("no reply within 5 s");
        }
        for (int i = 0; i < ready; i++) {
            receive(run, events[i].data.ptr);
        }
        in_flight = 0;
        for (size_t i = 0; now_ns() >= run->end_ns && i < count; i++) {
            in_flight += connections[i].sent - connections[i].received;
        }
    } while (now_ns() < run->end_ns || in_flight > 0);
}

int main(int argc, char **argv) {
    static const struct protocol pharaoh = {pharaoh_request, pharaoh_reply}, dense = {dense_request, dense_reply},
                                 spread = {spread_request, dense_reply}, redis = {redis_request, redis_reply},
                                 etcd = {etcd_request, etcd_reply};
    int is_spread = argc == 7 && strcmp(argv[1], "spread") == 0;
    if (argc != 6 && !is_spread) {
        fail("usage: load pharaoh|dense|spread|redis|etcd SOCKET CONNECTIONS DEPTH SECONDS [NAMES]");
    }
    names = is_spread ? (uint64_t)atol(argv[6]) : 0;
    int is_dense = strcmp(argv[1], "dense") == 0;
    size_t count = (size_t)atol(argv[3]);
    uint64_t depth = (uint64_t)atol(argv[4]);
    double seconds = atof(argv[5]);
    if (count < 1 || depth < 1 || depth > DEPTH_MAX || seconds <= 0) {
        fail("out of range");
    }
    struct connection *connections = calloc(count, sizeof *connections);
    for (size_t i = 0; i < count; i++) {
        connections[i].fd = connect_to(argv[2]);
    }
    struct run run = {.protocol = strcmp(argv[1], "redis") == 0  ? &redis
                                  : strcmp(argv[1], "etcd") == 0 ? &etcd
                                  : is_dense                     ? &dense
                                  : is_spread                    ? &spread
                                                                 : &pharaoh};
    size_t capacity = (size_t)((seconds + 1) * REPLIES_PER_SECOND_MAX);
    run.ids = record_new(capacity);
    run.latencies_ns = record_new(capacity);
    run.start_ns = now_ns() + WARM_UP_NS;
    run.end_ns = run.start_ns + (uint64_t)(seconds * (double)NS_PER_S);
    drive(&run, connections, count, depth);
    printf("{");
    if (is_spread) {
        printf("\"ids\": %zu, \"first\": 0, \"last\": 0", run.ids.length);
    } else {
        print_verified(&run.ids);
    }
    if (is_dense && run.ids.values[run.ids.length - 1] - run.ids.values[0] != run.ids.length - 1) {
        fail("there is a gap among the offsets");
    }
    if (run.replies == 0) {
        fail("no reply came after warming up");
    }
    printf(", \"per_second\": %.1f, ", (double)run.replies / seconds);
    print_quantiles("latency_ns", &run.latencies_ns);
    printf("}\n");
    return 0;
}
