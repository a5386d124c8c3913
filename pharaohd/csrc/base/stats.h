/*
 * The statistics page: one header, then one slot per owned coordinator, in shared memory.
 *
 * Invariants
 * - The header's words are written by the supervisor alone; a slot's counters by its worker alone, except `state`,
 *   `pid`, `restart_count`, `exit_code` and `started_ns`, which the supervisor writes.
 * - Every word is 64 bits and is loaded and stored whole. Nothing here is needed for correctness of ids.
 */
#ifndef PH_STATS_H
#define PH_STATS_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#define PH_STATS_MAGIC UINT64_C(0x3153544154534850)
#define PH_STATS_VERSION 1
#define PH_NO_COORDINATOR UINT64_C(0xffffffff)

enum ph_worker_state {
    PH_WORKER_DOWN = 0,
    PH_WORKER_STARTING = 1,
    PH_WORKER_LIVE = 2,
    PH_WORKER_STOPPING = 3,
    PH_WORKER_FAILED = 4, /* will not be started again: see exit_code */
};

struct ph_stats_header {
    uint64_t magic; /* stored last */
    uint64_t version;
    uint64_t slot_count;
    uint64_t slot_bytes;
    uint64_t modulus;
    uint64_t supervisor_pid;
    uint64_t started_ns;      /* CLOCK_REALTIME */
    uint64_t first_live;      /* lowest live coordinator, or PH_NO_COORDINATOR */
    uint64_t settings_serial; /* raised by each reload */
    uint64_t reload_failures; /* reloads refused because the new settings were not valid */
    uint8_t pad[48];
};

struct ph_stats_slot {
    uint64_t coordinator;
    uint64_t state; /* enum ph_worker_state */
    uint64_t pid;
    uint64_t restart_count;
    uint64_t exit_code; /* of the last worker that ended, or 0 */
    uint64_t started_ns;
    uint64_t heartbeat_ns; /* CLOCK_MONOTONIC */
    uint64_t pad0;

    uint64_t ids_ring;   /* granted to rings */
    uint64_t ids_socket; /* issued by next_id and next_ids */
    uint64_t ids_strict; /* issued by get_timestamp and its kin, over either path */
    uint64_t grants;
    uint64_t requests;
    uint64_t requests_forwarded;
    uint64_t errors;     /* error replies */
    uint64_t violations; /* connections closed for malformed frames or damaged rings */
    uint64_t accepts;
    uint64_t connections; /* gauge */
    uint64_t rings;       /* gauge */
    uint64_t wakeups;

    uint64_t syncs;
    uint64_t sync_ns_last;
    uint64_t sync_ns_max;
    uint64_t stalls; /* times that a request had to wait for a ceiling */

    uint64_t ceiling; /* durable, a tick */
    uint64_t next_tick;
    uint64_t virtual_ms;       /* host time, since the epoch of the layout */
    uint64_t clock_ahead_ms;   /* how far host time is ahead of the wall clock */
    uint64_t clock_jump_ms;    /* a forward jump that is not followed (alarm), or 0 */
    uint64_t clock_steps_back; /* backward steps seen */
    uint64_t ids_dense;        /* values of dense counters handed out */
    uint64_t counters;         /* dense counters held */
    uint64_t commits;          /* batches of them made durable */
    uint64_t commit_ns_last;
    uint64_t commit_ns_max;
    uint64_t ceiling_wait_ms; /* for how long a ceiling that was asked for is not durable; 0: none is under way */
    uint8_t pad1[224];
};

static_assert(sizeof(struct ph_stats_header) == 128, "header size is part of the page's version");
static_assert(sizeof(struct ph_stats_slot) == 512, "slot size is part of the page's version");

#endif
