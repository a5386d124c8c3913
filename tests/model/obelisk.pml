/*
 * The Obelisk's two ceiling records under a disk that may fail, lie and lose power (pharaohd/csrc/obelisk.c, syncer.c).
 *
 * A record is one sector: on the medium it stands as it was, as it became, or as neither (torn: not valid; but the same
 * bytes written once more cannot tear). What a process reads comes from the page cache. A failed sync leaves the page clean: a sync that is tried again does nothing
 * and says that all is well, and the next process reads a record that the medium lacks.
 *
 * Checked at every start: there is a valid record, and its ceiling is no less than anything that was ever issued.
 */
#define RECORDS 6  /* written in all, before the model ends */
#define WINDOW 2

byte medium_number[2], medium_ceiling[2]; /* number 0: not valid */
byte cache_number[2], cache_ceiling[2];
bool dirty[2];
byte issued;  /* how far issuing has ever come: every value below was handed out */
byte written; /* records so far, to bound the model */

/* What becomes of a sector that was on its way: all of it, nothing of it, or a torn piece. */
inline reach_medium(n) {
    if
    :: d_step { medium_number[n] = cache_number[n]; medium_ceiling[n] = cache_ceiling[n] }
    :: true
    :: medium_number[n] != cache_number[n] || medium_ceiling[n] != cache_ceiling[n] ->
        d_step { medium_number[n] = 0; medium_ceiling[n] = 0 }
    fi
}

inline lose_power() {
    if
    :: dirty[0] -> reach_medium(0)
    :: else
    fi;
    if
    :: dirty[1] -> reach_medium(1)
    :: else
    fi;
    d_step {
        cache_number[0] = medium_number[0]; cache_ceiling[0] = medium_ceiling[0]; dirty[0] = false;
        cache_number[1] = medium_number[1]; cache_ceiling[1] = medium_ceiling[1]; dirty[1] = false
    }
}

/* The process dies, and the machine perhaps with it. */
inline die() {
    if
    :: true
    :: lose_power()
    fi;
    goto start
}

inline may_die() {
    if
    :: true
    :: die()
    fi
}

/* pwrite(), fdatasync(). Goes on only after success. */
inline write_record(n, number, ceiling) {
    d_step { cache_number[n] = number; cache_ceiling[n] = ceiling; dirty[n] = true; written++ }
    may_die();
    if
    :: dirty[n] -> d_step { medium_number[n] = cache_number[n]; medium_ceiling[n] = cache_ceiling[n]; dirty[n] = false }
    :: dirty[n] -> reach_medium(n); dirty[n] = false; /* it failed, whatever was written */
#ifdef BUG_TRIES_A_SYNC_AGAIN
        skip
#else
        die()
#endif
    fi;
    may_die()
}

active proctype worker() {
    byte newest, durable, number;
    d_step { medium_number[0] = 1; cache_number[0] = 1 } /* as it was created */
start:
    skip;
    d_step {
        newest = (cache_number[1] > cache_number[0] -> 1 : 0);
        number = cache_number[newest];
        durable = cache_ceiling[newest];
        assert(number > 0);
        assert(durable >= issued)
    }
    if
    :: written >= RECORDS -> goto done
    :: else
    fi;
    byte position = durable;
#ifndef BUG_DOES_NOT_SETTLE
    write_record(newest, number, durable);
#endif
    do
    :: written < RECORDS ->
        number++;
#ifdef BUG_WRITES_OVER_THE_NEWEST
        skip;
#else
        newest = 1 - newest;
#endif
#ifdef BUG_ISSUES_BEFORE_THE_SYNC
        durable = position + WINDOW;
        issued = (position + 1 > issued -> position + 1 : issued);
#endif
        write_record(newest, number, position + WINDOW);
        durable = position + WINDOW;
        do /* issues none, some or all of what lies below the ceiling */
        :: position < durable -> d_step { position++; issued = (position > issued -> position : issued) }
        :: break
        od;
        may_die()
    :: written >= RECORDS -> break
    :: written < RECORDS -> /* a clean stop writes the exact position */
        number++;
        newest = 1 - newest;
#ifdef BUG_CLEAN_STOP_FORGETS
        write_record(newest, number, position - (position > 0 -> 1 : 0));
#else
        write_record(newest, number, position);
#endif
        die()
    od;
    die();
done:
    skip
}
