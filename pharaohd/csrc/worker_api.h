/* What Python calls. A worker serves inside ph_worker_run() and comes back only when there is something for Python. */
#ifndef PH_WORKER_API_H
#define PH_WORKER_API_H

#include <stdint.h>

#include "hosttime.h"
#include "obelisk.h"
#include "stats.h"

struct ph_worker;

struct ph_worker_config {
    struct ph_identity identity; /* what the Obelisk must say */
    const char *obelisk_path;
    const char *counters_path; /* the journal of dense counters, made when first needed */
    const char *reserve;       /* which counters reserve ahead: "kind" or "kind:pattern", each ended by NUL, then "" */
    const char *host;
    const char *cluster;
    const char *endpoints; /* the directory of the sockets of single coordinators */
    const char *version;
    int listen_fd;
    int own_fd;
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

enum ph_event_kind {
    PH_EVENT_LOG = 1,
    PH_EVENT_CONTROL = 2, /* control_fd is readable */
    PH_EVENT_STOP = 3,    /* SIGTERM */
};

enum ph_log_level { PH_LOG_INFO = 20, PH_LOG_WARNING = 30, PH_LOG_ERROR = 40 };

struct ph_event {
    int kind;
    int level;
    char text[240];
};

/*
 * Takes the Obelisk, makes a new ceiling durable and is then ready to serve. The strings and addresses in `config` must
 * outlive the worker. Returns NULL with `fault` filled in.
 */
struct ph_worker *ph_worker_open(const struct ph_worker_config *config, struct ph_fault *fault);
/* Serves until there is an event for Python. */
void ph_worker_run(struct ph_worker *worker, struct ph_event *event);
void ph_worker_reload(struct ph_worker *worker, uint64_t max_age_ms, uint64_t strict_spin_us,
                      uint64_t frame_deadline_ms, uint64_t stall_ms_max);
/* Hangs up, writes the exact position and gives the Obelisk back. Returns 0, or a code with `fault` filled in. */
int ph_worker_close(struct ph_worker *worker, struct ph_fault *fault);

/* What a journal of counters holds. */
struct ph_dense_report {
    uint64_t id;
    uint64_t batch;
    uint64_t bytes;
    uint64_t counters;
    uint64_t sessions;
};

/* Reads a journal that nobody serves meanwhile. Returns 0, or a code with `fault` filled in. */
int ph_dense_inspect(const char *path, const struct ph_identity *identity, struct ph_dense_report *report,
                     struct ph_fault *fault);

#endif
