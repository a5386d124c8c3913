/* The only place that names memory orders. docs/internals/memory-ordering.md lists every pair that is built from these. */
#ifndef PH_ATOMIC_H
#define PH_ATOMIC_H

#include <stdint.h>

/* Data whose publication is ordered by another word. */
static inline uint64_t ph_load_relaxed(const uint64_t *word) { return __atomic_load_n(word, __ATOMIC_RELAXED); }
static inline void ph_store_relaxed(uint64_t *word, uint64_t value) { __atomic_store_n(word, value, __ATOMIC_RELAXED); }

/* A word that publishes what was stored before it, and its reader. */
static inline uint64_t ph_load_acquire(const uint64_t *word) { return __atomic_load_n(word, __ATOMIC_ACQUIRE); }
static inline void ph_store_release(uint64_t *word, uint64_t value) { __atomic_store_n(word, value, __ATOMIC_RELEASE); }

/* "I store mine, then look at yours" on both sides: at least one of the two sees the other's store. */
static inline uint64_t ph_load_seq_cst(const uint64_t *word) { return __atomic_load_n(word, __ATOMIC_SEQ_CST); }
static inline void ph_store_seq_cst(uint64_t *word, uint64_t value) { __atomic_store_n(word, value, __ATOMIC_SEQ_CST); }

/* Puts `value` in the place of `expected`; returns whether that was there. It publishes, and sees, what came before. */
static inline int ph_exchange_if(uint64_t *word, uint64_t expected, uint64_t value) {
    return __atomic_compare_exchange_n(word, &expected, value, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

/* Returns what the word was before. */
static inline uint64_t ph_set_bits(uint64_t *word, uint64_t bits) {
    return __atomic_fetch_or(word, bits, __ATOMIC_SEQ_CST);
}
static inline uint64_t ph_clear_bits(uint64_t *word, uint64_t bits) {
    return __atomic_fetch_and(word, ~bits, __ATOMIC_SEQ_CST);
}

/* Keeps the compiler from moving memory accesses across; orders this thread against its own signal handlers and fork. */
static inline void ph_compiler_barrier(void) { __asm__ volatile("" ::: "memory"); }

static inline void ph_cpu_relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#else
    ph_compiler_barrier();
#endif
}

/* A lock word between the threads of one process. */
static inline int ph_lock_try(uint64_t *word) { return __atomic_exchange_n(word, 1, __ATOMIC_ACQUIRE) == 0; }
static inline void ph_lock_release(uint64_t *word) { __atomic_store_n(word, 0, __ATOMIC_RELEASE); }

/* Of a counter that one thread alone writes. */
static inline void ph_count(uint64_t *counter, uint64_t by) {
    ph_store_relaxed(counter, ph_load_relaxed(counter) + by);
}

#endif
