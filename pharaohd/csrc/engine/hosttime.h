/*
 * Host time, and the page in memory that all workers of a host share: the mapped half of their Obelisks.
 *
 * Host time V is one value for the host. It is the wall clock W. After a backward step of W it goes on by boottime B and
 * runs slower by `slew_per_mille` until they meet. No id lies ahead of V, and nothing that anybody sends moves V.
 *
 * The page lies on a tmpfs, in a file of the state directory's daemon. It outlives every process of the daemon and ends
 * with the boot. It is never a mapping of the disk's file: a store into that hangs when the disk hangs.
 *
 * Invariants
 * - V never steps back by a millisecond's number, whoever reads it, and across every death of a process in one boot.
 *   A reader that sees V in a new millisecond publishes the moment {V, B, W} before it uses V.
 * - A moment is published in one atomic step: it is written to one of the two entries of its writer that is not
 *   current, then `current` is exchanged. So a writer that dies or pauses anywhere holds nobody up and breaks nothing.
 * - A forward jump of W against V by more than `jump_ns_max` is not followed until an operator accepts it.
 * - `next_tick` of a coordinator's position moves on before anything below it leaves: strict id, grant and socket alike.
 *   Its owner, who holds the Obelisk's lock, and its siblings move it by compare and exchange, and nobody lowers it.
 * - `durable_ceiling` of a position is stored when a record of its Obelisk is durable that names it or a later one, and
 *   no owner's record names an earlier one while the host start lasts. So a sibling may issue below it, whatever the
 *   owner does meanwhile. Its owner's last act closes the position before it writes down where it stands.
 * - `magic` is stored last: an unfinished page is no evidence.
 * Source: host-time rules 3, 4, 10, 11; tests/model/host_time.pml; tests/csrc/test_hosttime.c, test_hosttime_steps.c.
 */
#ifndef PH_HOSTTIME_H
#define PH_HOSTTIME_H

#include <stdint.h>

#include "base/clock.h"
#include "base/host_page.h"

/* One process's view of host time. */
struct ph_host_clock {
    struct ph_host_page *page;
    struct ph_clock_source source;
    int64_t jump_ns_max;
    int64_t slew_per_mille;
    uint32_t writer; /* a coordinator, or PH_SUPERVISOR_WRITER */

    /* Of the newest reading. */
    int64_t host_ns;
    int64_t realtime_ns;
    int64_t boottime_ns;
    int64_t ahead_ns;    /* host time minus wall clock, when positive */
    int64_t jump_ns;     /* a forward jump that is not followed, or 0 */
    uint64_t steps_back; /* backward steps of the wall clock of more than a millisecond that this process saw */
};

void ph_host_clock_init(struct ph_host_clock *clock, struct ph_host_page *page, uint32_t writer,
                        struct ph_clock_source source, int64_t jump_ns_max, int64_t slew_per_mille);

/* Reads the source and computes V from it and the newest moment; returns V, in nanoseconds since 1970. */
int64_t ph_host_clock_read(struct ph_host_clock *clock);

/* The operator says that the wall clock is right: the next reading, of whichever process, follows it. */
void ph_host_clock_accept(struct ph_host_page *page);

/* The newest moment of a page. */
void ph_host_page_moment(const struct ph_host_page *page, struct ph_moment *moment);
/* Publishes a moment whatever the newest one is: at a host start, when nobody else writes. */
void ph_host_page_set_moment(struct ph_host_page *page, const struct ph_moment *moment);

/* What a copy of a file has not in common with it. birth_ns is 0 where the file system does not tell. 0, or -1. */
int ph_file_birth(int fd, uint64_t *inode, int64_t *birth_ns);

/* V after `elapsed_ns` of boottime without a look at the wall clock: on, but slower. */
int64_t ph_slewed(int64_t host_ns, int64_t elapsed_ns, int64_t slew_per_mille);

#endif
