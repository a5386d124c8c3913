#define _GNU_SOURCE
#include "durable/syncer.h"

#include <stdio.h>
#include <unistd.h>

#include "ph_atomic.h"
#include "ph_errors.h"

void ph_end_process(const struct ph_fault *fault) {
    const struct ph_error_info *info = ph_error_info(fault->code);
    dprintf(STDERR_FILENO, "pharaohd: %s: %s: %s\n  remedy: %s\n", info->name, info->message, fault->detail,
            info->hint);
    _exit(info->exit_status);
}

static int next_request(struct ph_syncer *syncer, uint64_t *ceiling, struct ph_clock_sample *sample) {
    pthread_mutex_lock(&syncer->mutex);
    while (!syncer->pending && !syncer->stopping) {
        pthread_cond_wait(&syncer->wanted, &syncer->mutex);
    }
    int wanted = !syncer->stopping;
    *ceiling = syncer->ceiling;
    *sample = syncer->sample;
    syncer->obelisk->counters_id = syncer->counters_id;
    syncer->obelisk->counters_batch = syncer->counters_batch;
    syncer->pending = 0;
    pthread_mutex_unlock(&syncer->mutex);
    return wanted;
}

int ph_syncer_sync(struct ph_syncer *syncer, uint64_t ceiling, const struct ph_clock_sample *sample) {
    struct ph_fault fault;
    uint64_t started_ns = ph_monotonic_ns();
    if (ph_obelisk_check_path(syncer->obelisk, &fault) != 0 ||
        ph_obelisk_write(syncer->obelisk, ceiling, sample, 0, &fault) != 0) {
        syncer->on_failure(&fault);
        return -1;
    }
    uint64_t took_ns = ph_monotonic_ns() - started_ns;
    ph_store_relaxed(&syncer->sync_ns_last, took_ns);
    if (took_ns > ph_load_relaxed(&syncer->sync_ns_max)) {
        ph_store_relaxed(&syncer->sync_ns_max, took_ns);
    }
    ph_store_relaxed(&syncer->sync_count, ph_load_relaxed(&syncer->sync_count) + 1);
    ph_store_release(&syncer->durable_counters_id, syncer->obelisk->counters_id);
    ph_store_release(syncer->durable_ceiling, ceiling); /* each pairs with the function that returns it */
    uint64_t one = 1;
    ssize_t written = write(syncer->event_fd, &one, sizeof one);
    (void)written;
    return 0;
}

static void *sync_thread(void *argument) {
    struct ph_syncer *syncer = argument;
    uint64_t ceiling;
    struct ph_clock_sample sample;
    pthread_setname_np(pthread_self(), "sync");
    while (next_request(syncer, &ceiling, &sample) && ph_syncer_sync(syncer, ceiling, &sample) == 0) {
    }
    return NULL;
}

void ph_syncer_init(struct ph_syncer *syncer, struct ph_obelisk *obelisk, struct ph_position *position, int event_fd) {
    *syncer = (struct ph_syncer){.obelisk = obelisk, .event_fd = event_fd, .on_failure = ph_end_process};
    syncer->durable_ceiling = &position->durable_ceiling;
    ph_store_release(syncer->durable_ceiling, obelisk->newest.ceiling);
    syncer->counters_id = syncer->durable_counters_id = obelisk->counters_id;
    syncer->counters_batch = obelisk->counters_batch;
    pthread_mutex_init(&syncer->mutex, NULL);
    pthread_cond_init(&syncer->wanted, NULL);
}

int ph_syncer_start(struct ph_syncer *syncer, struct ph_obelisk *obelisk, struct ph_position *position, int event_fd) {
    ph_syncer_init(syncer, obelisk, position, event_fd);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 64 * 1024);
    int error = pthread_create(&syncer->thread, &attributes, sync_thread, syncer);
    pthread_attr_destroy(&attributes);
    return error;
}

void ph_syncer_request(struct ph_syncer *syncer, uint64_t ceiling, const struct ph_clock_sample *sample) {
    pthread_mutex_lock(&syncer->mutex);
    syncer->ceiling = ceiling;
    syncer->sample = *sample;
    syncer->pending = 1;
    pthread_cond_signal(&syncer->wanted);
    pthread_mutex_unlock(&syncer->mutex);
}

void ph_syncer_note_counters(struct ph_syncer *syncer, uint64_t counters_id, uint64_t counters_batch) {
    pthread_mutex_lock(&syncer->mutex);
    syncer->counters_id = counters_id;
    syncer->counters_batch = counters_batch;
    pthread_mutex_unlock(&syncer->mutex);
}

uint64_t ph_syncer_durable(const struct ph_syncer *syncer) { return ph_load_acquire(syncer->durable_ceiling); }

uint64_t ph_syncer_durable_counters_id(const struct ph_syncer *syncer) {
    return ph_load_acquire(&syncer->durable_counters_id);
}

void ph_syncer_stop(struct ph_syncer *syncer) {
    pthread_mutex_lock(&syncer->mutex);
    syncer->stopping = 1;
    pthread_cond_signal(&syncer->wanted);
    pthread_mutex_unlock(&syncer->mutex);
    pthread_join(syncer->thread, NULL);
    pthread_mutex_destroy(&syncer->mutex);
    pthread_cond_destroy(&syncer->wanted);
}
