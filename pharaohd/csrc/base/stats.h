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

#include "base/stats_slot.h"

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

static_assert(sizeof(struct ph_stats_header) == 128, "header size is part of the page's version");
static_assert(sizeof(struct ph_stats_slot) == 512, "slot size is part of the page's version");

#endif
