/* A worker's life and its loop. */
#define _GNU_SOURCE
#include "worker.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "ph_errors.h"

#define EVENTS_PER_WAIT 64
#define HEARTBEAT_NS UINT64_C(1000000000)
#define CEILING_RETRY_NS UINT64_C(10000000)
#define REPLY_CHECK_NS UINT64_C(10000000)

/* --- opening */

static int take_obelisk(struct ph_worker *worker, struct ph_fault *fault) {
    const struct ph_worker_config *config = &worker->config;
    struct ph_clock_source source = {ph_clock_read_system, config->clock_offset_ns};
    int code = ph_obelisk_open(&worker->obelisk, config->obelisk_path, PH_OBELISK_OWN, fault);
    if (code != 0) {
        return code;
    }
    ph_mint_init(&worker->service.mint, config->host_page, &worker->syncer, &config->identity.layout,
                 config->identity.coordinator, config->settings.obelisk_window_ms, config->settings.clock_after_ms_max);
    ph_host_clock_init(&worker->service.mint.clock, config->host_page, config->identity.coordinator, source,
                       (int64_t)config->settings.clock_forward_jump_ms_max * PH_NS_PER_MS,
                       (int64_t)config->settings.clock_slew_per_mille);
    code = ph_obelisk_check(&worker->obelisk, &config->identity, fault);
    code = code != 0 ? code : ph_mint_take_over(&worker->service.mint, &worker->obelisk, fault);
    if (code != 0) {
        ph_obelisk_close(&worker->obelisk);
    }
    return code;
}

static void control_ready(struct ph_source *source, uint32_t events) {
    (void)events;
    ph_events_add(&((struct ph_own_source *)(void *)source)->worker->events, PH_EVENT_CONTROL);
}

static void signal_ready(struct ph_source *source, uint32_t events) {
    (void)events;
    ph_events_add(&((struct ph_own_source *)(void *)source)->worker->events, PH_EVENT_STOP);
}

/* Edge-triggered: never read; the durable ceiling is looked at in each round. */
static void sync_ready(struct ph_source *source, uint32_t events) {
    (void)events;
    ph_streams_resume_soon(&((struct ph_own_source *)(void *)source)->worker->service.streams);
}

static int watch_one(struct ph_worker *worker, struct ph_own_source *own, int fd,
                     void (*ready)(struct ph_source *source, uint32_t events), uint32_t events) {
    *own = (struct ph_own_source){{fd, ready}, worker};
    return ph_reactor_add(&worker->reactor, &own->source, events);
}

static int watch_sources(struct ph_worker *worker) {
    const struct ph_worker_config *config = &worker->config;
    struct ph_listeners *listeners = &worker->listeners;
    sigset_t stop_signals;
    sigemptyset(&stop_signals);
    sigaddset(&stop_signals, SIGTERM);
    sigprocmask(SIG_BLOCK, &stop_signals, NULL);
    int signals = signalfd(-1, &stop_signals, SFD_NONBLOCK | SFD_CLOEXEC);
    int syncs = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    return ph_reactor_open(&worker->reactor) != 0 || ph_listeners_open(listeners, &worker->service.streams) != 0 ||
           ph_listeners_add(listeners, config->listen_fd, &ph_application_kind, 1, 0) != 0 ||
           ph_listeners_add(listeners, config->own_fd, &ph_application_kind, 0, 0) != 0 ||
           ph_listeners_add(listeners, config->private_fd, &ph_private_kind, 0, 1) != 0 ||
           watch_one(worker, &worker->control, config->control_fd, control_ready, EPOLLIN) != 0 ||
           watch_one(worker, &worker->signals, signals, signal_ready, EPOLLIN) != 0 ||
           watch_one(worker, &worker->sync_events, syncs, sync_ready, EPOLLIN | EPOLLET) != 0;
}

/* Pages of its own, which take memory when they are touched: most of its buffers never are. */
static struct ph_worker *new_worker(void) {
    void *pages = mmap(NULL, sizeof(struct ph_worker), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return pages != MAP_FAILED ? pages : NULL;
}

static void free_worker(struct ph_worker *worker) { munmap(worker, sizeof *worker); }

static int open_tally(struct ph_worker *worker, struct ph_fault *fault) {
    const struct ph_worker_config *config = &worker->config;
    struct ph_tally_config tally = {
        .identity = config->identity,
        .path = config->counters_path,
        .reserve = config->reserve,
        .reserve_ahead = config->settings.counters_reserve_ahead,
        .counters_max = config->settings.counters_counters_max,
        .commit_spin_us = config->settings.counters_commit_spin_us,
        .event_fd = worker->sync_events.source.fd,
    };
    return ph_tally_open(&worker->service.tally, &tally, &worker->service.mint, &worker->obelisk.newest, fault);
}

struct ph_worker *ph_worker_open(const struct ph_worker_config *config, struct ph_fault *fault) {
    struct ph_worker *worker = new_worker();
    if (worker == NULL) {
        ph_fault_set(fault, PH_ERR_INTERNAL, "out of memory");
        return NULL;
    }
    worker->config = *config;
    ph_service_init(&worker->service, &worker->config, &worker->reactor, &worker->events);
    prctl(PR_SET_TIMERSLACK, 1000);
    if (take_obelisk(worker, fault) != 0) {
        free_worker(worker);
        return NULL;
    }
    /* From here on an error ends the process, and with it all that it holds. */
    if (watch_sources(worker) != 0) {
        ph_fault_set(fault, PH_ERR_INTERNAL, "starting to serve: %s", strerror(errno));
        return NULL;
    }
    if (open_tally(worker, fault) != 0) {
        return NULL;
    }
    struct ph_position *position = &config->host_page->positions[config->identity.coordinator];
    int error = ph_syncer_start(&worker->syncer, &worker->obelisk, position, worker->sync_events.source.fd);
    if (error != 0) {
        ph_fault_set(fault, PH_ERR_INTERNAL, "starting to serve: %s", strerror(error));
        return NULL;
    }
    return worker;
}

/* --- once a second */

static void heartbeat(struct ph_worker *worker) {
    struct ph_mint *mint = &worker->service.mint;
    if (mint->monotonic_ns < worker->heartbeat_due_ns) {
        return;
    }
    worker->heartbeat_due_ns = mint->monotonic_ns + HEARTBEAT_NS;
    ph_log_tend(&worker->events);
    ph_mint_tend(mint);
    ph_service_publish(&worker->service);
    ph_streams_check_deadlines(&worker->service.streams);
    ph_listeners_tend(&worker->listeners);
}

/* --- the loop */

/* How long there is nothing to do unless something happens: a second at most, for the heartbeat. */
static uint64_t sleep_ns(const struct ph_worker *worker) {
    const struct ph_service *service = &worker->service;
    const struct ph_mint *mint = &service->mint;
    if (!LIST_EMPTY(&service->rings.polled) || service->streams.resume_now) {
        return 0;
    }
    uint64_t ns = worker->heartbeat_due_ns > mint->monotonic_ns ? worker->heartbeat_due_ns - mint->monotonic_ns : 0;
    if (ph_service_has_waiting(service)) {
        ns = ph_sooner(ns, service->short_of_ceiling ? CEILING_RETRY_NS : ph_mint_until_next_ms(mint));
    }
    if (!TAILQ_EMPTY(&service->stricts.list)) {
        int64_t left_ns = service->stricts.due_ns - mint->host_ns;
        ns = ph_sooner(ns, left_ns > 0 ? (uint64_t)left_ns : 0);
    }
    int replies_due = service->links.in_use > 0 || ph_tally_is_awaited(&service->tally);
    return replies_due ? ph_sooner(ns, REPLY_CHECK_NS) : ns;
}

/*
 * To be woken from sleep takes longer than to serve a request: while the next one, or the end of a commit, is likely to
 * come at once, the loop looks for it without sleeping, and lets whoever wants the processor have it meanwhile
 * (docs/decisions/0014-watching.md). Returns how many events there are.
 */
static int watch(struct ph_worker *worker, struct epoll_event *events) {
    int committing = ph_tally_is_committing(&worker->service.tally);
    uint64_t start_ns = worker->service.mint.monotonic_ns;
    uint64_t until_ns = start_ns;
    if (committing) {
        until_ns = worker->service.tally.batches->handed_ns + worker->config.settings.counters_commit_spin_us * 1000;
    } else if (worker->last_wait_ns < worker->config.settings.rpc_spin_us * 1000) {
        until_ns = start_ns + worker->config.settings.rpc_spin_us * 1000;
    }
    int count = 0;
    for (uint64_t now_ns = start_ns; count == 0 && now_ns < until_ns; now_ns = ph_monotonic_ns()) {
        sched_yield();
        count = ph_reactor_wait(&worker->reactor, events, EVENTS_PER_WAIT, 0);
        if (committing && !ph_tally_is_committing(&worker->service.tally)) {
            break;
        }
    }
    return count;
}

static int wait_for_events(struct ph_worker *worker, struct epoll_event *events) {
    struct ph_service *service = &worker->service;
    int committing = ph_tally_is_committing(&service->tally);
    if (ph_rings_take_woken(service)) {
        sched_yield(); /* a client that sleeps while this loop looks for its next request may have this core only */
    }
    int count = sleep_ns(worker) > 0 ? watch(worker, events) : 0;
    if (count == 0 && (!committing || ph_tally_is_committing(&service->tally))) {
        count = ph_reactor_wait(&worker->reactor, events, EVENTS_PER_WAIT, sleep_ns(worker));
    }
    if (!committing) { /* also when nothing came: after a second's sleep nothing is likely to come at once */
        worker->last_wait_ns = ph_monotonic_ns() - service->mint.monotonic_ns;
    }
    return count;
}

/* One round: wait, handle what happened, then serve those who wait for time, ticks or a ceiling. */
static void round_of_loop(struct ph_worker *worker) {
    struct epoll_event events[EVENTS_PER_WAIT];
    struct ph_service *service = &worker->service;
    uint64_t next_tick_before = ph_issuer_next(&service->mint.issuer);
    int count = wait_for_events(worker, events);
    ph_mint_read(&service->mint);
    ph_streams_take_received(&service->streams); /* host time is newer than all that has come so far */
    ph_count(&service->slot->wakeups, 1);
    /* Not since this round began: strict requests read host time in the middle of a round. */
    int moved_on = service->mint.now_ms != worker->resumed_ms || service->streams.resume_now;
    worker->resumed_ms = service->mint.now_ms;
    ph_service_resume(service, moved_on);
    for (int i = 0; i < count; i++) {
        ph_reactor_dispatch(&events[i]);
    }
    ph_service_finish_round(service, next_tick_before);
    heartbeat(worker);
    ph_streams_free_closed(&service->streams);
}

void ph_worker_run(struct ph_worker *worker, struct ph_event *event) {
    while (worker->events.count == 0) {
        round_of_loop(worker);
    }
    ph_events_take(&worker->events, event);
}

void ph_worker_reload(struct ph_worker *worker, const struct ph_settings *settings) {
    worker->config.settings = *settings;
    ph_service_reload(&worker->service);
}

int ph_worker_close(struct ph_worker *worker, struct ph_fault *fault) {
    uint64_t journal_id, last_batch;
    ph_service_stop(&worker->service);
    ph_syncer_stop(&worker->syncer);
    ph_tally_close(&worker->service.tally, &journal_id, &last_batch);
    if (journal_id != 0) { /* the last record says exactly how far the journal has come */
        ph_obelisk_name_counters(&worker->obelisk, journal_id, last_batch);
    }
    int code = ph_mint_hand_over(&worker->service.mint, &worker->obelisk, fault);
    ph_obelisk_close(&worker->obelisk);
    ph_listeners_close(&worker->listeners);
    ph_reactor_close(&worker->reactor);
    close(worker->signals.source.fd);
    close(worker->sync_events.source.fd);
    free_worker(worker);
    return code;
}
