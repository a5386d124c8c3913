/*
 * The consumer's side of a ring of grants.
 *
 * A handle is for one process. Its private state lies in a page that the kernel wipes in a forked child
 * (MADV_WIPEONFORK), so a child, however it was made, finds PH_RING_FORKED instead of its parent's grants.
 *
 * Threads: the plain functions need one caller at a time; those named _locked take the handle's own lock.
 * Values: an id is never 0; 0 means "none", and ph_ring_status() says why.
 */
#ifndef PH_RING_H
#define PH_RING_H

#include <stddef.h>
#include <stdint.h>

struct ph_ring;

enum ph_ring_status {
    PH_RING_READY = 0,
    PH_RING_EMPTY = 1,   /* no fresh grant at the moment: ph_ring_wait(), then the socket */
    PH_RING_FORKED = 2,  /* this process is a child of the one that attached: attach anew */
    PH_RING_REVOKED = 3, /* the worker closed the ring: attach anew */
    PH_RING_DAMAGED = 4, /* the segment breaks its own rules: not a Pharaoh worker */
    /* Of strict requests only: */
    PH_RING_ELSEWHERE = 5, /* not to be had by this ring now: ask by socket */
    PH_RING_REFUSED = 6,   /* ph_ring_strict_detail() is the error's code */
    PH_RING_TIMED_OUT = 7,
};

/*
 * Maps two descriptors of an `attach` reply, which may be closed afterwards. The doorbell stays the caller's, who keeps
 * it open until after ph_ring_close(), and who alone can close it in a forked child.
 * skew_ns is added to every deadline: non-zero only when client and worker see different monotonic clocks.
 * Returns NULL with errno set; EPROTO when the segment is not a ring of this version.
 */
struct ph_ring *ph_ring_open(int grants_fd, int client_fd, int doorbell_fd, int64_t skew_ns, uint64_t max_age_ns);
void ph_ring_close(struct ph_ring *ring);

/* The next id, or 0. About 5 ns when a grant is at hand. */
uint64_t ph_ring_next(struct ph_ring *ring);
uint64_t ph_ring_next_locked(struct ph_ring *ring);

/* Writes up to `count` ids, increasing, to `out`; returns how many. */
size_t ph_ring_take(struct ph_ring *ring, uint64_t *out, size_t count);
size_t ph_ring_take_locked(struct ph_ring *ring, uint64_t *out, size_t count);

/* Rings the doorbell and sleeps until there is something to take or timeout_ns has passed. Returns a status. */
int ph_ring_wait_locked(struct ph_ring *ring, uint64_t timeout_ns);

#define PH_RING_KEYLESS UINT32_MAX

/*
 * A strict id: asked for now, answered now, greater than `after` (an id, or 0). It is the one of the coordinator that
 * owns the key, whichever worker the ring is of; PH_RING_KEYLESS without a key. What has been prefetched stays, and may
 * be lower: whoever wants one order of both raises the floor. Returns 0 on anything but success; see
 * ph_ring_strict_status(), and ph_ring_status() for a lost ring.
 */
uint64_t ph_ring_strict_locked(struct ph_ring *ring, uint32_t coordinator, uint64_t after, uint64_t timeout_ns);

/* From now on only ids greater than `id` are handed out (prefetched ones below it burn). */
void ph_ring_raise_floor_locked(struct ph_ring *ring, uint64_t id);

int ph_ring_status(const struct ph_ring *ring);
/* How this handle's last strict request ended (another thread's, if it came later). */
int ph_ring_strict_status(const struct ph_ring *ring);
uint64_t ph_ring_strict_detail(const struct ph_ring *ring);
uint32_t ph_ring_coordinator(const struct ph_ring *ring);

#endif
