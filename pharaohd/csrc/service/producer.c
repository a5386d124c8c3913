#define _GNU_SOURCE
#include "service/producer.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "ph_atomic.h"

#define WANT_MILLISECONDS 4 /* the most that a ring holds ahead, in full milliseconds of ticks */
#define FAST_SHARE 4        /* a ring that is half empty after this part of a grant's life should hold more */

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

static void futex_wake_all(uint64_t *word) {
    syscall(SYS_futex, (uint32_t *)(void *)word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

static int make_segment(const char *name, int protection, int seals, void **mapping) {
    int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    *mapping = MAP_FAILED;
    if (fd < 0) {
        return -1;
    }
    /* Allocated, not only sized: a full memory is an error here, not a SIGBUS later. */
    errno = posix_fallocate(fd, 0, PH_RING_SEGMENT_BYTES);
    if (errno == 0) {
        *mapping = mmap(NULL, PH_RING_SEGMENT_BYTES, protection, MAP_SHARED, fd, 0);
    }
    if (*mapping == MAP_FAILED || fcntl(fd, F_ADD_SEALS, seals) != 0) {
        int error = errno;
        close(fd);
        errno = error;
        return -1;
    }
    return fd;
}

static void write_header(struct ph_producer *producer, const struct ph_issuer *issuer) {
    struct ph_grants_segment *grants = producer->grants;
    grants->slot_count = PH_RING_SLOTS;
    grants->coordinator = issuer->coordinator;
    grants->ms_bits = issuer->layout.ms_bits;
    grants->coordinator_bits = issuer->layout.coordinator_bits;
    grants->sequence_bits = issuer->layout.sequence_bits;
    grants->epoch_ms = issuer->layout.epoch_ms;
    ph_store_release(&grants->magic, PH_RING_MAGIC); /* pairs with segment_understood() in ph_ring.c */
}

int ph_producer_open(struct ph_producer *producer, const struct ph_issuer *issuer, uint64_t max_age_ns) {
    void *grants;
    void *client;
    memset(producer, 0, sizeof *producer);
    int fixed = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
    producer->grants_fd = make_segment("pharaoh-grants", PROT_READ | PROT_WRITE, fixed | F_SEAL_FUTURE_WRITE, &grants);
    producer->client_fd = make_segment("pharaoh-client", PROT_READ, fixed, &client);
    producer->doorbell_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    producer->grants = grants;
    producer->client = client;
    if (producer->grants_fd < 0 || producer->client_fd < 0 || producer->doorbell_fd < 0) {
        int error = errno;
        ph_producer_close(producer);
        return error;
    }
    write_header(producer, issuer);
    producer->max_age_ns = max_age_ns;
    producer->want = PH_WANT_MIN;
    producer->want_max = WANT_MILLISECONDS * ph_sequence_count(&issuer->layout);
    return 0;
}

void ph_producer_close(struct ph_producer *producer) {
    if (producer->grants != MAP_FAILED) {
        ph_store_release(&producer->grants->state, PH_RING_CLOSED); /* pairs with open_grant() in ph_ring.c */
        futex_wake_all(&producer->grants->head);
        futex_wake_all(&producer->grants->answer_number);
        munmap(producer->grants, PH_RING_SEGMENT_BYTES);
    }
    if (producer->client != MAP_FAILED) {
        munmap((void *)(uintptr_t)producer->client, PH_RING_SEGMENT_BYTES);
    }
    int fds[] = {producer->grants_fd, producer->client_fd, producer->doorbell_fd};
    for (size_t i = 0; i < sizeof fds / sizeof fds[0]; i++) {
        if (fds[i] >= 0) {
            close(fds[i]);
        }
    }
}

static uint64_t fresh_count(const struct ph_producer *producer, uint64_t monotonic_ns) {
    uint64_t count = 0;
    for (uint64_t i = producer->cursor; i != producer->head; i++) {
        if (producer->deadlines_ns[i % PH_RING_SLOTS] > monotonic_ns) {
            count += producer->counts[i % PH_RING_SLOTS];
        }
    }
    return count;
}

/*
 * Once the client has opened all that it was given: more next time if it took half of it in a small part of its life,
 * less if most of it was left to expire. A client that lies about what it took gets its own share wrong, no more.
 */
static void adapt(struct ph_producer *producer, uint64_t monotonic_ns) {
    if (producer->cursor != producer->head || producer->given == 0) {
        return;
    }
    uint64_t taken = ph_load_relaxed(&producer->client->taken);
    uint64_t used = taken - producer->taken;
    if (used >= producer->given / 2 && monotonic_ns - producer->refilled_ns < producer->max_age_ns / FAST_SHARE) {
        producer->want = producer->want * 2 < producer->want_max ? producer->want * 2 : producer->want_max;
    } else if (used < producer->given / 4) {
        producer->want = producer->want / 2 > PH_WANT_MIN ? producer->want / 2 : PH_WANT_MIN;
    }
    producer->taken = taken;
    producer->given = 0;
}

int64_t ph_producer_demand(struct ph_producer *producer, uint64_t monotonic_ns) {
    uint64_t cursor = ph_load_acquire(&producer->client->cursor); /* pairs with open_grant() in ph_ring.c */
    if (producer->head - cursor > PH_RING_SLOTS) {
        return -1;
    }
    if (producer->head - cursor < producer->head - producer->cursor) {
        producer->cursor = cursor;
    }
    adapt(producer, monotonic_ns);
    uint64_t fresh = fresh_count(producer, monotonic_ns);
    if (producer->head - producer->cursor == PH_RING_SLOTS) {
        return 0; /* no room: nothing that the worker could do would help */
    }
    return producer->want > fresh ? (int64_t)(producer->want - fresh) : 0;
}

static void write_slot(struct ph_producer *producer, const struct ph_run *run, uint64_t deadline_ns) {
    struct ph_grant *slot = &producer->grants->slots[producer->head % PH_RING_SLOTS];
    producer->counts[producer->head % PH_RING_SLOTS] = run->count;
    producer->deadlines_ns[producer->head % PH_RING_SLOTS] = deadline_ns;
    ph_store_relaxed(&slot->first_tick, run->first_tick);
    ph_store_relaxed(&slot->count, run->count);
    ph_store_relaxed(&slot->deadline_ns, deadline_ns);
    producer->head++;
}

/* Makes the slots up to `head` visible and wakes a client that sleeps on the head before. */
static void publish(struct ph_producer *producer, uint64_t head_before) {
    ph_store_seq_cst(&producer->grants->head, producer->head); /* pairs with open_grant() in ph_ring.c */
    /* pairs with grant_at_hand() in ph_ring.c: either it sees the new head or this sees that it waits */
    if (ph_load_seq_cst(&producer->client->waiting) == head_before + 1) {
        futex_wake_all(&producer->grants->head);
    }
}

uint64_t ph_producer_refill(struct ph_producer *producer, struct ph_supply *supply, uint64_t count) {
    uint64_t head_before = producer->head;
    uint64_t given = 0;
    while (given < count && producer->head - producer->cursor < PH_RING_SLOTS) {
        struct ph_run run =
            ph_issuer_take(supply->issuer, supply->floor_tick, supply->limit_tick, supply->ceiling_tick, count - given);
        if (run.count == 0) {
            break;
        }
        uint64_t ms = ph_ms_of_tick(&supply->issuer->layout, run.first_tick);
        uint64_t whole_ms = supply->now_ms > ms ? supply->now_ms - ms : 0;
        uint64_t age_ns = whole_ms * PH_NS_PER_MS + supply->ns_into_ms;
        write_slot(producer, &run, supply->monotonic_ns + producer->max_age_ns - age_ns);
        given += run.count;
    }
    if (given > 0) {
        producer->refilled_ns = supply->monotonic_ns;
        producer->given += given;
        publish(producer, head_before);
    }
    return given;
}

int ph_producer_request(const struct ph_producer *producer, struct ph_strict_request *request) {
    request->number = ph_load_seq_cst(&producer->client->request_number); /* pairs with exchange() in ph_ring.c */
    request->after = ph_load_relaxed(&producer->client->request_after);
    request->flags = ph_load_relaxed(&producer->client->request_flags);
    request->coordinator = ph_load_relaxed(&producer->client->request_coordinator);
    return request->number != producer->answered;
}

int ph_producer_answer(struct ph_producer *producer, const struct ph_strict_request *request,
                       enum ph_strict_status status, uint64_t value) {
    struct ph_grants_segment *grants = producer->grants;
    producer->answered = request->number;
    ph_store_relaxed(&grants->answer_status, status);
    ph_store_relaxed(&grants->answer_value, value);
    ph_store_seq_cst(&grants->answer_number, request->number); /* pairs with answered() in ph_ring.c */
    /* pairs with await_answer() in ph_ring.c: either it sees the answer or this sees that it waits */
    int sleeps = ph_load_seq_cst(&producer->client->request_waiting) == request->number;
    if (sleeps) {
        futex_wake_all(&grants->answer_number);
    }
    return sleeps;
}

void ph_producer_set_polling(struct ph_producer *producer, int polling) {
    ph_store_seq_cst(&producer->grants->polling, (uint64_t)polling); /* pairs with exchange() in ph_ring.c */
}
