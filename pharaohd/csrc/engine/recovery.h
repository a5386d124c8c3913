/*
 * From the journal's files to the counters in memory: at a worker's start, and for `pharaohctl obelisk verify`.
 *
 * Invariants
 * - A start that finds two files, since a rewrite was cut off, reads one after the other; they must fit together.
 * - What was read is durable before a batch is written behind it.
 */
#ifndef PH_RECOVERY_H
#define PH_RECOVERY_H

#include "durable/journal.h"
#include "engine/counters.h"

/*
 * Reads the journal at `path`, and what a rewrite has written so far, into `counters`, which are empty. `journal`: the
 * file that goes on, open. *rewriting: it is the rewrite's. `writable` 0: looks only. Returns 0, or a code with `fault`
 * filled in, and nothing is open.
 */
int ph_recover_counters(const char *path, const struct ph_identity *identity, int writable,
                        struct ph_counters *counters, struct ph_journal *journal, int *rewriting,
                        struct ph_fault *fault);

#endif
