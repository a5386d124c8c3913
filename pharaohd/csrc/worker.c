/* A worker's life and its loop. */
#define _GNU_SOURCE
#include "worker.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "dense.h"
#include "ph_errors.h"

#define EVENTS_PER_WAIT 64
#define LINES_PER_SECOND 10
#define HEARTBEAT_NS UINT64_C(1000000000)
#define CEILING_RETRY_NS UINT64_C(10000000)
#define FORWARD_CHECK_NS UINT64_C(10000000)
#define NS_PER_MS UINT64_C(1000000)

/* A client may cause lines, but not a flood of them: the first few of each second, and how many more there were. */
void ph_worker_log(struct ph_worker *worker, int level, const char *format, ...) {
    if (worker->event_count == PH_EVENTS_MAX || worker->lines_this_second == LINES_PER_SECOND) {
        worker->lines_left_out++;
        return;
    }
    worker->lines_this_second++;
    struct ph_event *event = &worker->events[worker->event_count++];
    event->kind = PH_EVENT_LOG;
    event->level = level;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(event->text, sizeof event->text, format, arguments);
    va_end(arguments);
}

int ph_worker_watch(struct ph_worker *worker, struct ph_source *source, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = source};
    return epoll_ctl(worker->epoll_fd, EPOLL_CTL_ADD, source->fd, &event);
}

/*
 * The kernel wakes one of the workers that wait on the shared listener: the one that has been in its queue for longest.
 * Who has accepted goes to the queue's end, so that connections go round; otherwise one worker would get them all.
 */
void ph_worker_yield_listener(struct ph_worker *worker, struct ph_source *listener) {
    if (listener == &worker->listeners[0]) {
        epoll_ctl(worker->epoll_fd, EPOLL_CTL_DEL, listener->fd, NULL);
        ph_worker_watch(worker, listener, EPOLLIN | EPOLLEXCLUSIVE);
    }
}

static int take_obelisk(struct ph_worker *worker, struct ph_fault *fault) {
    const struct ph_worker_config *config = &worker->config;
    struct ph_clock_source source = {ph_clock_read_system, config->clock_offset_ns};
    int code = ph_obelisk_open(&worker->obelisk, config->obelisk_path, PH_OBELISK_OWN, fault);
    if (code != 0) {
        return code;
    }
    ph_mint_init(&worker->mint, config->host_page, &config->identity.layout, config->identity.coordinator,
                 config->window_ms, config->after_ms_max);
    ph_host_clock_init(&worker->mint.clock, config->host_page, config->identity.coordinator, source,
                       (int64_t)config->jump_ms_max * PH_NS_PER_MS, (int64_t)config->slew_per_mille);
    worker->mint.syncer = &worker->syncer;
    code = ph_obelisk_check(&worker->obelisk, &config->identity, fault);
    code = code != 0 ? code : ph_mint_take_over(&worker->mint, &worker->obelisk, fault);
    if (code != 0) {
        ph_obelisk_close(&worker->obelisk);
    }
    return code;
}

static int watch_sources(struct ph_worker *worker) {
    sigset_t stop_signals;
    sigemptyset(&stop_signals);
    sigaddset(&stop_signals, SIGTERM);
    sigprocmask(SIG_BLOCK, &stop_signals, NULL);
    worker->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    worker->reserve_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    worker->listeners[0] = (struct ph_source){PH_SOURCE_LISTENER, worker->config.listen_fd};
    worker->listeners[1] = (struct ph_source){PH_SOURCE_LISTENER, worker->config.own_fd};
    worker->control = (struct ph_source){PH_SOURCE_CONTROL, worker->config.control_fd};
    worker->signals = (struct ph_source){PH_SOURCE_SIGNAL, signalfd(-1, &stop_signals, SFD_NONBLOCK | SFD_CLOEXEC)};
    worker->sync_events = (struct ph_source){PH_SOURCE_SYNC, eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)};
    return worker->epoll_fd < 0 || worker->reserve_fd < 0 ||
           ph_worker_watch(worker, &worker->listeners[0], EPOLLIN | EPOLLEXCLUSIVE) != 0 ||
           ph_worker_watch(worker, &worker->listeners[1], EPOLLIN) != 0 ||
           ph_worker_watch(worker, &worker->control, EPOLLIN) != 0 ||
           ph_worker_watch(worker, &worker->signals, EPOLLIN) != 0 ||
           ph_worker_watch(worker, &worker->sync_events, EPOLLIN | EPOLLET) != 0;
}

static void find_slots(struct ph_worker *worker) {
    struct ph_stats_slot *slots = (struct ph_stats_slot *)(void *)(worker->config.stats + 1);
    worker->stats = worker->config.stats;
    worker->slot = &slots[worker->config.slot];
    for (uint64_t i = 0; i < worker->stats->slot_count; i++) {
        worker->slot_of[slots[i].coordinator] = (uint16_t)(i + 1);
    }
    worker->first = (uint32_t)slots[0].coordinator;
    ph_store_relaxed(&worker->slot->connections, 0);
    ph_store_relaxed(&worker->slot->rings, 0);
}

/* Pages of its own, which take memory when they are touched: most of its buffers never are. */
static struct ph_worker *new_worker(void) {
    void *pages = mmap(NULL, sizeof(struct ph_worker), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return pages != MAP_FAILED ? pages : NULL;
}

static void free_worker(struct ph_worker *worker) { munmap(worker, sizeof *worker); }

struct ph_worker *ph_worker_open(const struct ph_worker_config *config, struct ph_fault *fault) {
    struct ph_worker *worker = new_worker();
    if (worker == NULL) {
        ph_fault_set(fault, PH_ERR_INTERNAL, "out of memory");
        return NULL;
    }
    worker->config = *config;
    LIST_INIT(&worker->connections);
    LIST_INIT(&worker->graveyard);
    LIST_INIT(&worker->hot);
    TAILQ_INIT(&worker->waiting);
    TAILQ_INIT(&worker->starving);
    TAILQ_INIT(&worker->stricts);
    find_slots(worker);
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
    if (ph_dense_open(worker, fault) != 0) {
        return NULL;
    }
    if (ph_syncer_start(&worker->syncer, &worker->obelisk,
                        &worker->config.host_page->positions[worker->mint.issuer.coordinator],
                        worker->sync_events.fd) != 0) {
        ph_fault_set(fault, PH_ERR_INTERNAL, "starting to serve: %s", strerror(errno));
        return NULL;
    }
    return worker;
}

static void publish_gauges(struct ph_worker *worker) {
    struct ph_stats_slot *slot = worker->slot;
    ph_store_relaxed(&slot->heartbeat_ns, worker->mint.monotonic_ns);
    ph_store_relaxed(&slot->syncs, ph_load_relaxed(&worker->syncer.sync_count));
    ph_store_relaxed(&slot->sync_ns_last, ph_load_relaxed(&worker->syncer.sync_ns_last));
    ph_store_relaxed(&slot->sync_ns_max, ph_load_relaxed(&worker->syncer.sync_ns_max));
    ph_store_relaxed(&slot->ceiling, ph_syncer_durable(&worker->syncer));
    ph_store_relaxed(&slot->next_tick, ph_issuer_next(&worker->mint.issuer));
    ph_store_relaxed(&slot->ceiling_wait_ms, ph_mint_ceiling_wait_ms(&worker->mint));
    ph_store_relaxed(&slot->virtual_ms, worker->mint.now_ms);
    ph_store_relaxed(&slot->clock_ahead_ms, (uint64_t)(worker->mint.clock.ahead_ns / (int64_t)NS_PER_MS));
    ph_store_relaxed(&slot->clock_steps_back, worker->mint.clock.steps_back);
    uint64_t jump_ms = (uint64_t)worker->mint.clock.jump_ns / NS_PER_MS;
    int tells = ph_load_relaxed(&worker->stats->first_live) == worker->mint.issuer.coordinator; /* one for the host */
    if (tells && jump_ms != 0 && ph_load_relaxed(&slot->clock_jump_ms) == 0) {
        ph_worker_log(
            worker, PH_LOG_ERROR,
            "the wall clock jumped %llu ms ahead and is not followed; `pharaohctl clock accept` if it is right",
            (unsigned long long)jump_ms);
    }
    ph_store_relaxed(&slot->clock_jump_ms, jump_ms);
    if (worker->dense != NULL) {
        const struct ph_committer *committer = &worker->dense->committer;
        ph_store_relaxed(&slot->counters, worker->dense->counters.defined);
        ph_store_relaxed(&slot->commits, ph_load_relaxed(&committer->commit_count));
        ph_store_relaxed(&slot->commit_ns_last, ph_load_relaxed(&committer->sync_ns_last));
        ph_store_relaxed(&slot->commit_ns_max, ph_load_relaxed(&committer->sync_ns_max));
    }
}

static void heartbeat(struct ph_worker *worker) {
    if (worker->mint.monotonic_ns < worker->heartbeat_due_ns) {
        return;
    }
    worker->heartbeat_due_ns = worker->mint.monotonic_ns + HEARTBEAT_NS;
    worker->lines_this_second = 0;
    if (worker->lines_left_out > 0) {
        ph_worker_log(worker, PH_LOG_WARNING, "%llu more lines were left out",
                      (unsigned long long)worker->lines_left_out);
        worker->lines_left_out = 0;
    }
    ph_mint_tend(&worker->mint);
    publish_gauges(worker);
    ph_connections_check_deadlines(worker);
    if (worker->accept_paused) {
        worker->accept_paused = 0;
        ph_worker_watch(worker, &worker->listeners[0], EPOLLIN | EPOLLEXCLUSIVE);
        ph_worker_watch(worker, &worker->listeners[1], EPOLLIN);
    }
}

static void pause_accepting(struct ph_worker *worker) {
    if (worker->accept_paused) {
        epoll_ctl(worker->epoll_fd, EPOLL_CTL_DEL, worker->listeners[0].fd, NULL);
        epoll_ctl(worker->epoll_fd, EPOLL_CTL_DEL, worker->listeners[1].fd, NULL);
    }
}

static uint64_t earlier(uint64_t a, uint64_t b) { return a < b ? a : b; }

/* How long there is nothing to do unless something happens: a second at most, for the heartbeat. */
static uint64_t sleep_ns(const struct ph_worker *worker) {
    if (!LIST_EMPTY(&worker->hot) || worker->resume_now) {
        return 0;
    }
    uint64_t ns =
        worker->heartbeat_due_ns > worker->mint.monotonic_ns ? worker->heartbeat_due_ns - worker->mint.monotonic_ns : 0;
    if (worker->waiting_count > 0 || worker->starving_count > 0) {
        ns = earlier(ns, worker->short_of_ceiling ? CEILING_RETRY_NS : ph_mint_until_next_ms(&worker->mint));
    }
    if (!TAILQ_EMPTY(&worker->stricts)) {
        int64_t left_ns = worker->strict_due_ns - worker->mint.host_ns;
        ns = earlier(ns, left_ns > 0 ? (uint64_t)left_ns : 0);
    }
    int replies_due = worker->forwarded_count > 0 || (worker->dense != NULL && worker->dense->count > 0);
    return replies_due ? earlier(ns, FORWARD_CHECK_NS) : ns;
}

static int sleep_for_events(struct ph_worker *worker, struct epoll_event *events) {
    static int whole_ms_only;
    uint64_t ns = sleep_ns(worker);
    if (!whole_ms_only) {
        struct timespec timeout = {(time_t)(ns / HEARTBEAT_NS), (long)(ns % HEARTBEAT_NS)};
        int count = (int)syscall(SYS_epoll_pwait2, worker->epoll_fd, events, EVENTS_PER_WAIT, &timeout, NULL, 0);
        if (count >= 0 || errno != ENOSYS) {
            return count;
        }
        whole_ms_only = 1; /* before Linux 5.11 */
    }
    return epoll_wait(worker->epoll_fd, events, EVENTS_PER_WAIT, (int)((ns + NS_PER_MS - 1) / NS_PER_MS));
}

static int is_committing(const struct ph_worker *worker) {
    return worker->dense != NULL && ph_dense_is_committing(worker->dense);
}

/*
 * To be woken from sleep takes longer than to serve a request: while the next one, or the end of a commit, is likely to
 * come at once, the loop looks for it without sleeping, and lets whoever wants the processor have it meanwhile
 * (docs/decisions/0014-watching.md). Returns how many events there are.
 */
static int watch(struct ph_worker *worker, struct epoll_event *events) {
    int committing = is_committing(worker);
    uint64_t start_ns = worker->mint.monotonic_ns;
    uint64_t until_ns = start_ns;
    if (committing) {
        until_ns = worker->dense->handed_ns + worker->config.commit_spin_us * 1000;
    } else if (worker->last_wait_ns < worker->config.spin_us * 1000) {
        until_ns = start_ns + worker->config.spin_us * 1000;
    }
    int count = 0;
    for (uint64_t now_ns = start_ns; count == 0 && now_ns < until_ns; now_ns = ph_monotonic_ns()) {
        sched_yield();
        count = epoll_wait(worker->epoll_fd, events, EVENTS_PER_WAIT, 0);
        if (committing && !is_committing(worker)) {
            break;
        }
    }
    return count;
}

static int wait_for_events(struct ph_worker *worker, struct epoll_event *events) {
    int committing = is_committing(worker);
    if (worker->has_woken) {
        worker->has_woken = 0;
        sched_yield(); /* a client that sleeps while this loop looks for its next request may have this core only */
    }
    int count = sleep_ns(worker) > 0 ? watch(worker, events) : 0;
    if (count == 0 && (!committing || is_committing(worker))) {
        count = sleep_for_events(worker, events);
    }
    if (!committing) { /* also when nothing came: after a second's sleep nothing is likely to come at once */
        worker->last_wait_ns = ph_monotonic_ns() - worker->mint.monotonic_ns;
    }
    return count;
}

static void handle(struct ph_worker *worker, const struct epoll_event *event) {
    struct ph_source *source = event->data.ptr;
    switch (source->kind) {
    case PH_SOURCE_LISTENER:
        if (!worker->accept_paused) {
            ph_listener_ready(worker, source);
            pause_accepting(worker);
        }
        break;
    case PH_SOURCE_CONNECTION:
    case PH_SOURCE_LINK:
        ph_connection_ready(worker, (struct ph_connection *)(void *)source, event->events);
        break;
    case PH_SOURCE_RING:
        ph_ring_rung(worker, (struct ph_ring_owner *)(void *)source);
        break;
    case PH_SOURCE_SYNC: /* edge-triggered: never read; the durable ceiling is looked at in each round */
        worker->resume_now = 1;
        break;
    case PH_SOURCE_CONTROL:
    case PH_SOURCE_SIGNAL:
        if (worker->event_count < PH_EVENTS_MAX) {
            int kind = source->kind == PH_SOURCE_SIGNAL ? PH_EVENT_STOP : PH_EVENT_CONTROL;
            worker->events[worker->event_count++] = (struct ph_event){.kind = kind};
        }
        break;
    }
}

/* One round: wait, handle what happened, then serve those who wait for time, ticks or a ceiling. */
static void round_of_loop(struct ph_worker *worker) {
    struct epoll_event events[EVENTS_PER_WAIT];
    uint64_t next_tick_before = ph_issuer_next(&worker->mint.issuer);
    int count = wait_for_events(worker, events);
    ph_mint_read(&worker->mint);
    worker->time_is_old = 0;
    ph_count(&worker->slot->wakeups, 1);
    /* Not since this round began: strict requests read host time in the middle of a round. */
    int moved_on = worker->mint.now_ms != worker->resumed_ms || worker->resume_now;
    worker->resumed_ms = worker->mint.now_ms;
    if (worker->waiting_count > 0 && worker->starving_count > 0 && moved_on) {
        ph_rings_feed_in_turn(worker);
    }
    if (worker->waiting_count > 0 && (moved_on || worker->short_of_ceiling)) {
        ph_connections_resume(worker);
    }
    for (int i = 0; i < count; i++) {
        handle(worker, &events[i]);
    }
    ph_rings_poll(worker);
    if (worker->resume_now) {
        worker->short_of_ceiling = 0;
        ph_connections_resume(worker);
    }
    if (worker->starving_count > 0) {
        ph_rings_feed(worker);
    }
    if (worker->forwarded_count > 0) {
        ph_links_check_deadlines(worker); /* before: it may hand strict requests over */
    }
    ph_stricts_pursue(worker);
    if (ph_issuer_next(&worker->mint.issuer) != next_tick_before) {
        ph_mint_renew(&worker->mint);
    }
    if (worker->dense != NULL) {
        ph_dense_round(worker);
    }
    heartbeat(worker);
    ph_connections_bury(worker);
    worker->resume_now |= worker->turn_over; /* all have had a turn */
    worker->turn_over = 0;
}

void ph_worker_run(struct ph_worker *worker, struct ph_event *event) {
    while (worker->event_count == 0) {
        round_of_loop(worker);
    }
    *event = worker->events[0];
    worker->event_count--;
    memmove(&worker->events[0], &worker->events[1], worker->event_count * sizeof worker->events[0]);
}

void ph_worker_reload(struct ph_worker *worker, uint64_t max_age_ms, uint64_t strict_spin_us,
                      uint64_t frame_deadline_ms, uint64_t stall_ms_max) {
    worker->config.max_age_ms = max_age_ms;
    worker->config.strict_spin_us = strict_spin_us;
    worker->config.frame_deadline_ms = frame_deadline_ms;
    worker->config.stall_ms_max = stall_ms_max;
}

/* The last record says exactly how far the journal has come. */
static void name_journal(struct ph_worker *worker) {
    if (worker->dense != NULL) {
        worker->obelisk.counters_id = worker->dense->committer.journal_id;
        worker->obelisk.counters_batch = worker->dense->handed;
        ph_dense_free(worker);
    }
}

int ph_worker_close(struct ph_worker *worker, struct ph_fault *fault) {
    worker->stopping = 1;
    if (worker->dense != NULL) {
        ph_dense_finish(worker);
    }
    ph_connections_resume(worker); /* those that wait are told */
    ph_links_hang_up(worker);
    ph_stricts_pursue(worker);
    while (!LIST_EMPTY(&worker->connections)) {
        ph_connection_close(worker, LIST_FIRST(&worker->connections));
    }
    ph_connections_bury(worker);
    ph_links_free(worker);
    ph_syncer_stop(&worker->syncer);
    name_journal(worker);
    int code = ph_mint_hand_over(&worker->mint, &worker->obelisk, fault);
    ph_obelisk_close(&worker->obelisk);
    close(worker->epoll_fd);
    close(worker->reserve_fd);
    close(worker->signals.fd);
    close(worker->sync_events.fd);
    free_worker(worker);
    return code;
}
