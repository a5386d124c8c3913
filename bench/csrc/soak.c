/*
 * One client of a soak: as fast as it can, for a long time, in memory that does not grow.
 *
 *   soak ring|strict BITMAP BASE_MS SECONDS SLICES GRANTS_FD CLIENT_FD DOORBELL_FD MAX_AGE_MS
 *   soak socket      BITMAP BASE_MS SECONDS SLICES SOCKET CONNECTIONS DEPTH
 *   soak stdin       BITMAP BASE_MS SECONDS SLICES        ids as eight bytes each, in this machine's order
 *
 * All clients share BITMAP, one bit for each id that the coordinator can issue from BASE_MS on; to find one set is to have
 * found an id that came twice, whoever had it before. Prints how many ids came and, per slice of the time, how many and
 * how long each request took.
 */
#define _GNU_SOURCE
#include "bench.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "ph_ring.h"
#include "ph_scarab.h"

#define SLICES_MAX 1000
#define STEPS 16 /* of the histogram, to each doubling */
#define BUCKETS (40 * STEPS)
#define WAIT_NS NS_PER_S
#define TAKE 4096
#define CONNECTIONS_MAX 256
#define DEPTH_MAX 64
#define REPLY_BYTES 13

static const struct ph_layout layout = {41, 10, 13, 0}; /* the default; only differences of times matter */

static struct {
    _Atomic uint64_t *words;
    uint64_t first_tick, ticks;
} bitmap;

static struct {
    uint64_t start_ns, end_ns, slice_ns, slices;
    uint64_t ids[SLICES_MAX];
    uint32_t latency[SLICES_MAX][BUCKETS];
} run;

static void open_bitmap(const char *path, uint64_t base_ms) {
    struct stat status;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &status) != 0) {
        fail("no bitmap");
    }
    bitmap.words = mmap(NULL, (size_t)status.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (bitmap.words == MAP_FAILED) {
        fail("the bitmap cannot be mapped");
    }
    bitmap.first_tick = ph_tick_of_ms(&layout, base_ms);
    bitmap.ticks = 8 * (uint64_t)status.st_size;
}

static void mark_bits(uint64_t word, uint64_t mask, uint64_t id) {
    if (atomic_fetch_or_explicit(&bitmap.words[word], mask, memory_order_relaxed) & mask) {
        fprintf(stderr, "an id came twice: %" PRIu64 " or one of the 63 beside it\n", id);
        exit(1);
    }
}

/* Takes note of ids `first` … `first` + `count` - 1, all of one millisecond. */
static void mark(uint64_t first, uint64_t count) {
    uint64_t tick = ph_tick_of_id(&layout, first) - bitmap.first_tick;
    if (tick >= bitmap.ticks || bitmap.ticks - tick < count) {
        fprintf(stderr, "an id from outside the soak: %" PRIu64 "\n", first);
        exit(1);
    }
    for (uint64_t left = count; left > 0;) {
        uint64_t bit = tick % 64, here = 64 - bit < left ? 64 - bit : left;
        uint64_t mask = here == 64 ? UINT64_MAX : ((UINT64_C(1) << here) - 1) << bit;
        mark_bits(tick / 64, mask, first);
        tick += here;
        left -= here;
    }
}

static uint64_t slice_at(uint64_t at_ns) {
    uint64_t slice = (at_ns - run.start_ns) / run.slice_ns;
    return slice < run.slices ? slice : run.slices - 1;
}

static size_t bucket_of(uint64_t ns) {
    uint64_t value = ns + STEPS; /* below STEPS each value has a bucket */
    unsigned doubling = 63 - (unsigned)__builtin_clzll(value);
    size_t bucket = (size_t)(doubling - 4) * STEPS + (value >> (doubling - 4)) - STEPS;
    return bucket < BUCKETS ? bucket : BUCKETS - 1;
}

static uint64_t bucket_ns(size_t bucket) {
    uint64_t doubling = bucket / STEPS;
    return ((bucket % STEPS + STEPS) << doubling) - STEPS;
}

static void note(uint64_t at_ns, uint64_t ids, uint64_t took_ns) {
    uint64_t slice = slice_at(at_ns);
    run.ids[slice] += ids;
    run.latency[slice][bucket_of(took_ns)]++;
}

static void print_report(void) {
    static const double shares[] = {0.5, 0.99, 0.999};
    printf("{\"slices\": [");
    for (uint64_t slice = 0; slice < run.slices; slice++) {
        uint64_t total = 0, seen = 0;
        size_t next = 0;
        for (size_t i = 0; i < BUCKETS; i++) {
            total += run.latency[slice][i];
        }
        printf("%s{\"ids\": %" PRIu64, slice > 0 ? ", " : "", run.ids[slice]);
        for (size_t i = 0; i < BUCKETS; i++) {
            seen += run.latency[slice][i];
            while (next < 3 && seen > 0 && (double)seen >= shares[next] * (double)total) {
                printf(", \"p%g_ns\": %" PRIu64, 100 * shares[next++], bucket_ns(i));
            }
        }
        printf("}");
    }
    printf("]}\n");
}

static struct ph_ring *open_ring(char **argv) {
    uint64_t max_age_ns = (uint64_t)atol(argv[3]) * 1000000;
    struct ph_ring *ring = ph_ring_open(atoi(argv[0]), atoi(argv[1]), atoi(argv[2]), 0, max_age_ns);
    if (ring == NULL) {
        fail("the ring cannot be mapped");
    }
    return ring;
}

/* Whole batches; how long one took tells how long the ring was empty. */
static void soak_ring(char **argv) {
    struct ph_ring *ring = open_ring(argv);
    uint64_t ids[TAKE], last = 0;
    for (uint64_t before_ns = run.start_ns; before_ns < run.end_ns;) {
        size_t taken = ph_ring_take(ring, ids, TAKE);
        for (size_t at = 0, end; at < taken; at = end) {
            for (end = at + 1; end < taken && ids[end] == ids[end - 1] + 1; end++) {
            }
            if (ids[at] <= last) {
                fail("a ring's id is not greater than the one before it");
            }
            last = ids[end - 1];
            mark(ids[at], end - at);
        }
        if (taken < TAKE && ph_ring_wait_locked(ring, WAIT_NS) != PH_RING_READY) {
            fail("the ring stays empty");
        }
        uint64_t after_ns = now_ns();
        note(after_ns, taken, after_ns - before_ns);
        before_ns = after_ns;
    }
}

static void soak_strict(char **argv) {
    struct ph_ring *ring = open_ring(argv);
    uint64_t last = 0;
    for (uint64_t before_ns = run.start_ns; before_ns < run.end_ns;) {
        uint64_t id = ph_ring_strict_locked(ring, ph_ring_coordinator(ring), last, WAIT_NS);
        if (id <= last) {
            fail("a strict request was not answered, or not with a greater id");
        }
        last = id;
        mark(id, 1);
        uint64_t after_ns = now_ns();
        note(after_ns, 1, after_ns - before_ns);
        before_ns = after_ns;
    }
}

struct connection {
    int fd;
    uint64_t asked_ns, last, buffered, missing;
    uint8_t buffer[DEPTH_MAX * REPLY_BYTES];
};

static void ask(struct connection *connection, uint64_t depth) {
    uint8_t out[DEPTH_MAX * 12];
    for (uint64_t i = 0; i < depth; i++) {
        memcpy(out + 12 * i, "\x94\x00\x00\xa7next_id\x90", 12);
    }
    connection->asked_ns = now_ns();
    connection->missing = depth;
    connection->buffered = 0;
    if (send(connection->fd, out, 12 * depth, MSG_NOSIGNAL) != (ssize_t)(12 * depth)) {
        fail("a request was not sent whole");
    }
}

static void take_reply(struct connection *connection, const uint8_t *reply) {
    static const uint8_t head[] = {0x94, 0x01, 0x00, 0xc0, 0xcf};
    uint64_t big_endian;
    if (memcmp(reply, head, sizeof head) != 0) {
        fail("not the reply to next_id");
    }
    memcpy(&big_endian, reply + sizeof head, 8);
    uint64_t id = be64toh(big_endian);
    if (id <= connection->last) {
        fail("an id is not greater than the one before it on its connection");
    }
    connection->last = id;
    mark(id, 1);
}

/* Returns whether all replies are here. */
static int receive(struct connection *connection) {
    ssize_t got = recv(connection->fd, connection->buffer + connection->buffered,
                       sizeof connection->buffer - connection->buffered, MSG_DONTWAIT);
    if (got <= 0) {
        fail("the server hung up");
    }
    connection->buffered += (uint64_t)got;
    if (connection->buffered < connection->missing * REPLY_BYTES) {
        return 0;
    }
    for (uint64_t i = 0; i < connection->missing; i++) {
        take_reply(connection, connection->buffer + i * REPLY_BYTES);
    }
    return 1;
}

static void soak_socket(char **argv) {
    static struct connection connections[CONNECTIONS_MAX];
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    uint64_t count = (uint64_t)atol(argv[1]), depth = (uint64_t)atol(argv[2]), busy = count;
    int epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    strncpy(address.sun_path, argv[0], sizeof address.sun_path - 1);
    if (count < 1 || count > CONNECTIONS_MAX || depth < 1 || depth > DEPTH_MAX) {
        fail("out of range");
    }
    for (uint64_t i = 0; i < count; i++) {
        connections[i].fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &connections[i]};
        if (connect(connections[i].fd, (struct sockaddr *)&address, sizeof address) != 0 ||
            epoll_ctl(epoll_fd, EPOLL_CTL_ADD, connections[i].fd, &event) != 0) {
            fail("cannot connect");
        }
        ask(&connections[i], depth);
    }
    while (busy > 0) {
        struct epoll_event events[64];
        int ready = epoll_wait(epoll_fd, events, 64, 5000);
        if (ready <= 0 && errno != EINTR) {
            fail("no reply within 5 s");
        }
        for (int i = 0; i < ready; i++) {
            struct connection *connection = events[i].data.ptr;
            if (!receive(connection)) {
                continue;
            }
            uint64_t at_ns = now_ns();
            note(at_ns, depth, at_ns - connection->asked_ns);
            if (at_ns < run.end_ns) {
                ask(connection, depth);
            } else {
                busy--;
            }
        }
    }
}

static void soak_stdin(void) {
    uint64_t ids[TAKE], last = 0;
    size_t got;
    while ((got = fread(ids, sizeof ids[0], TAKE, stdin)) > 0) {
        for (size_t i = 0; i < got; i++) {
            if (ids[i] <= last) {
                fail("an id is not greater than the one before it");
            }
            last = ids[i];
            mark(last, 1);
        }
        note(now_ns(), got, 0);
    }
}

int main(int argc, char **argv) {
    const char *kind = argc >= 6 ? argv[1] : "";
    int rings = strcmp(kind, "ring") == 0 || strcmp(kind, "strict") == 0, by_socket = strcmp(kind, "socket") == 0;
    if (argc != (rings ? 10 : by_socket ? 9 : 6) || (!rings && !by_socket && strcmp(kind, "stdin") != 0)) {
        fail("usage: soak ring|strict|socket|stdin BITMAP BASE_MS SECONDS SLICES …");
    }
    open_bitmap(argv[2], (uint64_t)atol(argv[3]));
    run.slices = (uint64_t)atol(argv[5]);
    if (run.slices < 1 || run.slices > SLICES_MAX || atof(argv[4]) <= 0) {
        fail("out of range");
    }
    run.slice_ns = (uint64_t)(atof(argv[4]) * (double)NS_PER_S) / run.slices;
    run.start_ns = now_ns();
    run.end_ns = run.start_ns + run.slices * run.slice_ns;
    if (strcmp(kind, "ring") == 0) {
        soak_ring(argv + 6);
    } else if (rings) {
        soak_strict(argv + 6);
    } else if (by_socket) {
        soak_socket(argv + 6);
    } else {
        soak_stdin();
    }
    print_report();
    return 0;
}
