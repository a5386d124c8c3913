#include "engine/recovery.h"

#include <errno.h>
#include <unistd.h>

#include "durable/committer.h"
#include "engine/inspect.h"
#include "ph_errors.h"

static int visit(void *counters, const uint8_t *records, size_t length) {
    return ph_counters_apply(counters, records, length);
}

/* The file that a rewrite was filling goes on where the first one ends. */
static int open_next(struct ph_journal *next, const char *path, const struct ph_journal *base,
                     const struct ph_identity *identity, int writable, struct ph_counters *counters,
                     struct ph_fault *fault) {
    int code = ph_journal_open(next, path, identity, writable, visit, counters, fault);
    if (code == 0 && (next->id != base->id || next->first != base->number + 1)) {
        ph_journal_close(next);
        code = ph_fault_set(fault, PH_ERR_COUNTERS_CORRUPT, "%s does not go on where %s ends", path, base->path);
    }
    return code;
}

static int check_complete(const struct ph_counters *counters, const char *path, struct ph_fault *fault) {
    if (ph_counters_complete(counters)) {
        return 0;
    }
    return ph_fault_set(fault, PH_ERR_COUNTERS_CORRUPT, "%s: %u of %u counters have no name", path,
                        counters->size - counters->defined, counters->size);
}

int ph_recover_counters(const char *path, const struct ph_identity *identity, int writable,
                        struct ph_counters *counters, struct ph_journal *journal, int *rewriting,
                        struct ph_fault *fault) {
    char next_path[520];
    struct ph_journal base;
    struct ph_journal next = PH_NO_JOURNAL;
    ph_journal_next_path(next_path, sizeof next_path, path);
    int code = ph_journal_open(&base, path, identity, writable, visit, counters, fault);
    *rewriting = code == 0 && access(next_path, F_OK) == 0;
    if (code == 0 && !*rewriting && errno != ENOENT) { /* unknown is not absent */
        code = ph_cannot_open(next_path, fault);
    }
    if (*rewriting) {
        code = open_next(&next, next_path, &base, identity, writable, counters, fault);
    }
    code = code != 0 ? code : check_complete(counters, path, fault);
    if (code == 0 && writable) {
        code = ph_journal_settle(&base, fault);
        code = code != 0 || !*rewriting ? code : ph_journal_settle(&next, fault);
    }
    if (code != 0 || *rewriting) {
        ph_journal_close(&base);
    }
    if (code != 0) {
        ph_journal_close(&next);
    }
    *journal = *rewriting ? next : base;
    return code;
}

int ph_dense_inspect(const char *path, const struct ph_identity *identity, struct ph_dense_report *report,
                     struct ph_fault *fault) {
    struct ph_counters counters;
    struct ph_journal journal;
    int rewriting;
    ph_counters_init(&counters);
    int code = ph_recover_counters(path, identity, 0, &counters, &journal, &rewriting, fault);
    if (code == 0) {
        *report = (struct ph_dense_report){
            .id = journal.id, .batch = journal.number, .bytes = journal.at, .counters = counters.defined};
        for (uint32_t i = 0; i < counters.size; i++) {
            const struct ph_counter *counter = ph_counters_at(&counters, i);
            report->sessions += counter->sessions != NULL ? counter->sessions->count : 0;
        }
        ph_journal_close(&journal);
    }
    ph_counters_free(&counters);
    return code;
}
