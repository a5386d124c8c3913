/*
 * The bits of a Scarab id: milliseconds since the epoch | coordinator | sequence.
 *
 * A *tick* is the same value without the coordinator, `milliseconds << sequence_bits | sequence`: what an issuer
 * counts with. Ticks of one coordinator and its ids are in the same order.
 */
#ifndef PH_SCARAB_H
#define PH_SCARAB_H

#include <stdint.h>

#define PH_COORDINATOR_MAX 1024

struct ph_layout {
    uint8_t ms_bits;
    uint8_t coordinator_bits;
    uint8_t sequence_bits;
    uint64_t epoch_ms; /* Unix time of millisecond 0 */
};

static inline int ph_layout_valid(const struct ph_layout *layout) {
    return layout->ms_bits + layout->coordinator_bits + layout->sequence_bits == 64 && layout->ms_bits >= 38 &&
           layout->ms_bits <= 44 && layout->coordinator_bits <= 10 && layout->sequence_bits >= 8 &&
           layout->sequence_bits <= 16;
}

static inline uint64_t ph_sequence_count(const struct ph_layout *layout) {
    return UINT64_C(1) << layout->sequence_bits;
}

static inline uint64_t ph_tick_of_ms(const struct ph_layout *layout, uint64_t ms) {
    return ms << layout->sequence_bits;
}

static inline uint64_t ph_ms_of_tick(const struct ph_layout *layout, uint64_t tick) {
    return tick >> layout->sequence_bits;
}

/* The first tick that the layout cannot hold. */
static inline uint64_t ph_tick_end(const struct ph_layout *layout) {
    return UINT64_C(1) << (layout->ms_bits + layout->sequence_bits);
}

static inline uint64_t ph_id_of_tick(const struct ph_layout *layout, uint32_t coordinator, uint64_t tick) {
    uint64_t sequence = tick & (ph_sequence_count(layout) - 1);
    uint64_t ms = tick >> layout->sequence_bits;
    return (ms << (layout->coordinator_bits + layout->sequence_bits)) |
           ((uint64_t)coordinator << layout->sequence_bits) | sequence;
}

static inline uint64_t ph_tick_of_id(const struct ph_layout *layout, uint64_t id) {
    uint64_t sequence = id & (ph_sequence_count(layout) - 1);
    return ((id >> (layout->coordinator_bits + layout->sequence_bits)) << layout->sequence_bits) | sequence;
}

static inline uint32_t ph_coordinator_of_id(const struct ph_layout *layout, uint64_t id) {
    return (uint32_t)((id >> layout->sequence_bits) & ((UINT64_C(1) << layout->coordinator_bits) - 1));
}

#endif
