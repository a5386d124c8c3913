/* What a worker is told when it starts. */
#ifndef PH_CONFIG_H
#define PH_CONFIG_H

#include <stdint.h>

#include "base/host_page.h"
#include "base/stats.h"
#include "durable/obelisk.h"

struct ph_worker_config {
    struct ph_identity identity; /* what the Obelisk must say */
    const char *obelisk_path;
    const char *counters_path; /* the journal of dense counters, made when first needed */
    const char *reserve;       /* which counters reserve ahead: "kind" or "kind:pattern", each ended by NUL, then "" */
    const char *host;
    const char *cluster;
    const char *endpoints;         /* the directory of the sockets of single coordinators */
    const char *private_endpoints; /* the directory of the sockets of the daemon's own processes */
    const char *version;
    int listen_fd;
    int own_fd;
    int private_fd;
    int control_fd;
    struct ph_stats_header *stats;
    uint32_t slot;
    struct ph_host_page *host_page;
    int64_t *clock_offset_ns; /* test facility, or NULL */

    uint64_t window_ms;
    uint64_t jump_ms_max;
    uint64_t after_ms_max;
    uint64_t slew_per_mille;
    uint64_t reserve_ahead;
    uint64_t counters_max;
    uint64_t commit_spin_us;
    uint64_t spin_us;
    uint64_t rings_max;
    uint64_t connections_max;
    uint64_t connections_per_uid_max;
    uint64_t output_bytes_max;
    /* May change while it runs: ph_worker_reload(). */
    uint64_t max_age_ms;
    uint64_t strict_spin_us;
    uint64_t frame_deadline_ms;
    uint64_t stall_ms_max;
};

#endif
