/* What a journal of counters holds, for `pharaohctl obelisk verify`. */
#ifndef PH_INSPECT_H
#define PH_INSPECT_H

#include "durable/obelisk.h"

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
