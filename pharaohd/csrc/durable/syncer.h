/*
 * The sync thread: the only one that touches the Obelisk while a worker serves, so that a hanging disk hangs it alone.
 *
 * Invariants
 * - `durable_ceiling`, in the page that all workers share, is published (release) only after the fdatasync of its record
 *   has returned success; whoever issues does so only below the value that it loads (acquire).
 * - The first failure ends the process at once (`on_failure`, by default a line on stderr and _exit): nothing is issued
 *   on the strength of a sync that failed, and nothing is tried again on that handle.
 */
#ifndef PH_SYNCER_H
#define PH_SYNCER_H

#include <pthread.h>
#include <stdint.h>

#include "base/host_page.h"
#include "durable/obelisk.h"

struct ph_syncer {
    uint64_t *durable_ceiling;    /* of the coordinator's position */
    uint64_t durable_counters_id; /* the journal that the newest durable record names */
    uint64_t sync_count;
    uint64_t sync_ns_last;
    uint64_t sync_ns_max;

    struct ph_obelisk *obelisk;
    void (*on_failure)(const struct ph_fault *fault);
    int event_fd; /* readable after each completed sync */

    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t wanted;
    /* Under the mutex: what is asked for. */
    uint64_t ceiling;
    struct ph_clock_sample sample;
    uint64_t counters_id;
    uint64_t counters_batch;
    int pending;
    int stopping;
};

/* All but the thread: whoever calls ph_syncer_sync() stands in its place. */
void ph_syncer_init(struct ph_syncer *syncer, struct ph_obelisk *obelisk, struct ph_position *position, int event_fd);
/* Makes one record durable, in the calling thread, and publishes its ceiling. 0, or -1 after on_failure was called. */
int ph_syncer_sync(struct ph_syncer *syncer, uint64_t ceiling, const struct ph_clock_sample *sample);
/* Starts the thread; the Obelisk is its from now until ph_syncer_stop(). Returns 0 or an errno. */
int ph_syncer_start(struct ph_syncer *syncer, struct ph_obelisk *obelisk, struct ph_position *position, int event_fd);
/* Asks for a durable ceiling and returns at once. Asking again before it is reached replaces what is asked for. */
void ph_syncer_request(struct ph_syncer *syncer, uint64_t ceiling, const struct ph_clock_sample *sample);
/* Which journal, and which durable batch of it, the records from the next request on shall name. */
void ph_syncer_note_counters(struct ph_syncer *syncer, uint64_t counters_id, uint64_t counters_batch);
uint64_t ph_syncer_durable(const struct ph_syncer *syncer);
uint64_t ph_syncer_durable_counters_id(const struct ph_syncer *syncer);
/* Ends the thread after the sync that it is in. */
void ph_syncer_stop(struct ph_syncer *syncer);

/* What a failed write or sync comes to: a line on stderr, and the error's exit status at once. */
void ph_end_process(const struct ph_fault *fault);

#endif
