/* What a worker is told when it starts. */
#ifndef PH_CONFIG_H
#define PH_CONFIG_H

#include <stdint.h>

#include "base/host_page.h"
#include "base/stats.h"
#include "durable/obelisk.h"
#include "service/settings.h"

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
    struct ph_settings settings;
};

#endif
