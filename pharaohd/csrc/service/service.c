/* How the parts of the service hang together, and what a round of the loop does with those who wait. */
#include "service/service.h"

#include "base/clock.h"

static void find_slots(struct ph_service *service) {
    struct ph_stats_slot *slots = (struct ph_stats_slot *)(void *)(service->config->stats + 1);
    service->stats = service->config->stats;
    service->slot = &slots[service->config->slot];
    for (uint64_t i = 0; i < service->stats->slot_count; i++) {
        service->slot_of[slots[i].coordinator] = (uint16_t)(i + 1);
    }
    service->first = (uint32_t)slots[0].coordinator;
    ph_store_relaxed(&service->slot->connections, 0);
    ph_store_relaxed(&service->slot->rings, 0);
}

void ph_service_init(struct ph_service *service, const struct ph_worker_config *config, struct ph_reactor *reactor,
                     struct ph_events *events) {
    service->config = config;
    find_slots(service);
    ph_streams_init(&service->streams, reactor, events, service->slot, &service->mint.monotonic_ns, service);
    ph_links_init(&service->links, &service->streams, config->private_endpoints, ph_strict_stand_in, service);
    TAILQ_INIT(&service->rings.waiting);
    LIST_INIT(&service->rings.polled);
    TAILQ_INIT(&service->stricts.list);
    ph_service_reload(service);
}

void ph_service_reload(struct ph_service *service) {
    const struct ph_worker_config *config = service->config;
    struct ph_stream_limits limits = {
        .connections_max = config->settings.rpc_connections_max,
        .connections_per_uid_max = config->settings.rpc_connections_per_uid_max,
        .output_bytes_max = config->settings.rpc_output_bytes_max,
        .frame_deadline_ms = config->settings.rpc_frame_deadline_ms,
    };
    ph_streams_limit(&service->streams, &limits);
    ph_tally_set_stall(&service->tally, config->settings.rpc_stall_ms_max);
}

int ph_is_live(const struct ph_service *service, uint32_t coordinator) {
    const struct ph_stats_slot *slots = (const struct ph_stats_slot *)(const void *)(service->stats + 1);
    uint16_t slot = service->slot_of[coordinator];
    return slot != 0 && ph_load_relaxed(&slots[slot - 1].state) == PH_WORKER_LIVE;
}

int ph_service_has_waiting(const struct ph_service *service) {
    return service->streams.waiting_count + service->rings.waiting_count > 0;
}

void ph_service_resume(struct ph_service *service, int moved_on) {
    if (service->streams.waiting_count > 0 && service->rings.waiting_count > 0 && moved_on) {
        ph_rings_feed_in_turn(service);
    }
    if (service->streams.waiting_count > 0 && (moved_on || service->short_of_ceiling)) {
        ph_streams_resume(&service->streams);
    }
}

void ph_service_finish_round(struct ph_service *service, uint64_t next_tick_before) {
    ph_rings_poll(service);
    if (service->streams.resume_now) {
        service->short_of_ceiling = 0;
        ph_streams_resume(&service->streams);
    }
    if (service->rings.waiting_count > 0) {
        ph_rings_feed(service);
    }
    if (service->links.in_use > 0) {
        ph_links_check_deadlines(&service->links); /* before: it may hand strict requests over */
    }
    ph_stricts_pursue(service);
    if (ph_issuer_next(&service->mint.issuer) != next_tick_before) {
        ph_mint_renew(&service->mint);
    }
    ph_counting_answer(service);
    ph_tally_commit(&service->tally);
    if (service->turn_over) { /* all have had a turn */
        service->turn_over = 0;
        ph_streams_resume_soon(&service->streams);
    }
}

void ph_service_stop(struct ph_service *service) {
    service->stopping = 1;
    ph_tally_finish(&service->tally);
    ph_counting_answer(service);
    ph_streams_resume(&service->streams); /* those that wait are told */
    ph_links_hang_up(&service->links);
    ph_stricts_pursue(service);
    ph_streams_close(&service->streams);
    ph_links_free(&service->links);
}

/* What others keep count of, as the statistics page shows it. */
void ph_service_publish(struct ph_service *service) {
    struct ph_stats_slot *slot = service->slot;
    ph_store_relaxed(&slot->heartbeat_ns, service->mint.monotonic_ns);
    ph_store_relaxed(&slot->syncs, ph_load_relaxed(&service->mint.syncer->sync_count));
    ph_store_relaxed(&slot->sync_ns_last, ph_load_relaxed(&service->mint.syncer->sync_ns_last));
    ph_store_relaxed(&slot->sync_ns_max, ph_load_relaxed(&service->mint.syncer->sync_ns_max));
    ph_store_relaxed(&slot->ceiling, ph_syncer_durable(service->mint.syncer));
    ph_store_relaxed(&slot->next_tick, ph_issuer_next(&service->mint.issuer));
    ph_store_relaxed(&slot->ceiling_wait_ms, ph_mint_ceiling_wait_ms(&service->mint));
    ph_store_relaxed(&slot->virtual_ms, service->mint.now_ms);
    ph_store_relaxed(&slot->clock_ahead_ms, (uint64_t)(service->mint.clock.ahead_ns / (int64_t)PH_NS_PER_MS));
    ph_store_relaxed(&slot->clock_steps_back, service->mint.clock.steps_back);
    uint64_t jump_ms = (uint64_t)service->mint.clock.jump_ns / PH_NS_PER_MS;
    int tells = ph_load_relaxed(&service->stats->first_live) == service->mint.issuer.coordinator; /* one for the host */
    if (tells && jump_ms != 0 && ph_load_relaxed(&slot->clock_jump_ms) == 0) {
        ph_log(service->streams.events, PH_LOG_ERROR,
               "the wall clock jumped %llu ms ahead and is not followed; `pharaohctl clock accept` if it is right",
               (unsigned long long)jump_ms);
    }
    ph_store_relaxed(&slot->clock_jump_ms, jump_ms);
    const struct ph_batches *batches = service->tally.batches;
    if (batches != NULL) {
        const struct ph_committer *committer = &batches->committer;
        ph_store_relaxed(&slot->counters, batches->counters.defined);
        ph_store_relaxed(&slot->commits, ph_load_relaxed(&committer->commit_count));
        ph_store_relaxed(&slot->commit_ns_last, ph_load_relaxed(&committer->sync_ns_last));
        ph_store_relaxed(&slot->commit_ns_max, ph_load_relaxed(&committer->sync_ns_max));
    }
}
