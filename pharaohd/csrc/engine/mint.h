/*
 * One coordinator's issuing: host time, ticks, the ceiling, and the waits of strict requests. It knows no connection.
 *
 * Invariants
 * - A tick is issued once: above all before it, below the durable ceiling, and not ahead of host time. The position in
 *   the host's page moves on before the tick leaves (issuer.h).
 * - A strict tick of a sibling's is issued in the same way from the sibling's position, below the sibling's durable
 *   ceiling. The sibling sees that its position moves and keeps a ceiling in reserve.
 * - A ceiling is asked for ahead of time. How far ahead follows the disk: at least four times its last sync,
 *   what the one under way has taken so far, and what a slow one a while ago took, less a thirty-second for each since.
 * - A strict tick is not below the first tick of the millisecond in which host time stood when its request had been
 *   taken: the caller reads host time (ph_mint_read) after it took the request, and not before.
 * - Who stands in for a key's owner picks a millisecond after it was asked, and answers when host time has left the
 *   millisecond of its tick. So its id is greater than every one that was answered before the request came, and smaller
 *   than every one that is asked for after its answer, whatever the owner does meanwhile: dead, stopped or back.
 * - `after` makes a request wait for host time; nothing that is asked for moves it.
 * Source: host-time rules 9, 12, 13; the order's rules T1 to T6 with an error of 0 between the workers of one host.
 */
#ifndef PH_MINT_H
#define PH_MINT_H

#include <stdint.h>

#include "durable/syncer.h"
#include "engine/hosttime.h"
#include "engine/issuer.h"

struct ph_mint {
    struct ph_issuer issuer;
    struct ph_host_clock clock;
    struct ph_syncer *syncer;
    uint8_t boot_id[16];
    uint64_t window_ms;
    uint64_t after_ms_max;
    uint64_t tend_ms; /* how often ph_mint_tend() is called */

    /* The newest reading. */
    int64_t host_ns;       /* since 1970 */
    uint64_t now_ms;       /* since the epoch */
    uint64_t monotonic_ns; /* for durations */

    uint64_t requested_ceiling;
    uint64_t durable_seen;     /* the durable ceiling when `requested_ns` was noted */
    uint64_t requested_ns;     /* since when a ceiling that was asked for is not durable; 0: none is under way */
    uint64_t slow_ms;          /* what a sync may take, by those that were */
    uint64_t durable_weighed;  /* the durable ceiling of the newest of them */
    int64_t recorded_ahead_ns; /* the lead over the wall clock that the records tell */
    uint64_t issued_ns;        /* when it last issued; 0: not since the last ph_mint_tend() */
    uint64_t issued_before_ns; /* and before that, whenever it was */
    uint8_t seldom;            /* since the last ph_mint_tend() two ids were far apart, for what is held in reserve */
    uint64_t tended_tick;      /* the position at the last ph_mint_tend() */
};

void ph_mint_init(struct ph_mint *mint, struct ph_host_page *page, struct ph_syncer *syncer,
                  const struct ph_layout *layout, uint32_t coordinator, uint64_t window_ms, uint64_t after_ms_max);

/* Reads host time; all that is issued until the next reading goes by it. */
void ph_mint_read(struct ph_mint *mint);

/* Whether host time is beyond what the layout can hold. */
int ph_mint_exhausted(const struct ph_mint *mint);
/* Nanoseconds until host time's next millisecond. */
uint64_t ph_mint_until_next_ms(const struct ph_mint *mint);

/*
 * A new owner's first acts, on a file that it has locked: the record that it found becomes durable again, then one of its
 * own, with a ceiling above its position. Whatever the file's ceiling is, it goes on at the position in the host's page.
 * 0, or an error's code with `fault` filled in.
 */
int ph_mint_take_over(struct ph_mint *mint, struct ph_obelisk *obelisk, struct ph_fault *fault);
/* An owner's last act, when the sync thread has ended: a record of the exact position. 0, or an error's code. */
int ph_mint_hand_over(struct ph_mint *mint, struct ph_obelisk *obelisk, struct ph_fault *fault);

/*
 * Up to `count` ticks of host time's present millisecond, at least floor_tick. None when there are less than `least`: it
 * may be less all the same when a sibling takes some in this moment. The last `kept_back` ticks of the millisecond are
 * left for others.
 */
struct ph_run ph_mint_take(struct ph_mint *mint, uint64_t floor_tick, uint64_t least, uint64_t count,
                           uint64_t kept_back);
/* Whether nothing can be issued in this millisecond for want of a ceiling. */
int ph_mint_lacks_ceiling(const struct ph_mint *mint);

/* After something was issued, or could not be: asks for the next ceiling when half of the reach is used up. */
void ph_mint_renew(struct ph_mint *mint);
/*
 * Once a second: a coordinator that is asked now and then keeps a ceiling in reserve, so that no id waits for a sync;
 * and when host time's lead over the wall clock has grown, a record says so, idle or not.
 */
void ph_mint_tend(struct ph_mint *mint);
/* Has a record written although no ceiling is due. */
void ph_mint_write_record(struct ph_mint *mint);
/* For how long a ceiling that was asked for has not become durable, in milliseconds; 0: none is under way. */
uint64_t ph_mint_ceiling_wait_ms(struct ph_mint *mint);

/* A strict request under way. */
struct ph_strict {
    uint64_t floor_tick;  /* its tick is not below this */
    int64_t pick_ns;      /* a stand-in picks no sooner */
    uint64_t tick;        /* picked; 0: not yet. No tick is 0: a start refuses host time at the epoch */
    uint32_t coordinator; /* whose tick */
    uint8_t stands_in;
};

/* coordinator: below PH_COORDINATOR_MAX; whose tick it is to be. after: an id that the answer must exceed, or 0.
   noted_ns: host time when a stand-in's request reached this host; 0 for the key's owner. 0, or an error's code. */
int ph_strict_begin(const struct ph_mint *mint, struct ph_strict *strict, uint32_t coordinator, uint64_t after,
                    int64_t noted_ns);
/* Goes on with it, by the newest reading. Returns 1 when strict->tick may be answered, else 0 with *due_ns: the host
   time before which there is nothing to do. One of a sibling's that is not to be had now may never be: then its owner
   is not there, or has not been asked for a while. */
int ph_strict_pursue(struct ph_mint *mint, struct ph_strict *strict, int64_t *due_ns);

#endif
