/*
 * One coordinator's position, and who issues from it: its owner, in several lives, and two siblings (issuer.h;
 * take_of_sibling(), ph_mint_take_over() and ph_mint_hand_over() in mint.c; ph_syncer_sync() in syncer.c; ph_repair() in
 * evidence.c, all in pharaohd/csrc). An owner is killed anywhere or ends in order; its file may be lost then, and is
 * repaired from the page while the siblings go on.
 *
 * Checked: no tick is issued twice; and all that was issued lies below what the medium holds, so that a power cut at any
 * moment repeats nothing. That a lost file holds nothing is not checked until it is repaired.
 *
 * A BUG_... that is defined puts one mistake in and must give a counterexample: tests/model/test_models.py.
 */
#define TICKS 5
#define LIVES 3
#define reach (lives == 1 -> 3 : 1) /* the disk was slow at first */
#define CLOSED 128
#define open_part(word) ((word) & 127)
#define later(a, b) ((a) > (b) -> (a) : (b))
#define sooner(a, b) ((a) < (b) -> (a) : (b))

/* The page. */
byte position;
byte durable;
/* The file: what a start after a power cut would go on from. */
byte medium;
bool lost;
/* What is checked. */
bool issued[TICKS];
byte top; /* all that was issued lies below */

bool owner_runs;
byte lives;

#define check assert(lost || top <= medium)

inline issue(tick) {
    assert(!issued[tick]);
    issued[tick] = true;
    top = later(top, tick + 1);
    check
}

/* ph_issuer_take(): one tick. */
inline take() {
    ceiling = durable;
    seen = position;
    if
    :: seen < ceiling ->
#ifdef BUG_A_STORE
        position = seen + 1;
        d_step { issue(seen) }
#else
        d_step {
            if
            :: position == seen -> position = seen + 1; issue(seen)
            :: else
            fi
        }
#endif
    :: else
    fi
}

inline write(value) {
    d_step { medium = value; check }
}

active [2] proctype sibling() {
    byte ceiling, seen;
end:
    do
    :: take()
    od
}

inline take_over() {
    seen = open_part(position);
    ceiling = sooner(seen + reach, TICKS);
#ifndef BUG_SUCCESSOR_BELOW_LENT
    ceiling = later(ceiling, durable);
#endif
#ifdef BUG_OPEN_BEFORE_RECORD
    position = open_part(position);
    write(ceiling);
#else
    write(ceiling);
    d_step { position = open_part(position) }
#endif
    durable = ceiling
}

/* The sync thread's work. */
inline renew() {
    d_step { ceiling = sooner(open_part(position) + reach, TICKS) }
    if
    :: ceiling > durable ->
#ifdef BUG_DURABLE_BEFORE_THE_SYNC
        durable = ceiling;
        write(ceiling)
#else
        write(ceiling);
        durable = ceiling
#endif
    :: else
    fi
}

inline hand_over() {
#ifdef BUG_STOP_LEAVES_OPEN
    seen = position;
#else
#ifdef BUG_STOP_LOOKS_BEFORE_IT_CLOSES
    seen = position;
    position = position | CLOSED;
#else
    d_step { seen = position; position = position | CLOSED }
#endif
#endif
    write(seen)
}

active proctype owner() {
    byte ceiling, seen;
end:
    do
    :: atomic { lives < LIVES && !lost -> lives++; owner_runs = true }
        take_over();
        do
        :: take()
        :: renew()
        :: break /* killed: between any two of its steps is as good as here */
        :: hand_over(); break
        od;
        owner_runs = false
    :: lives == LIVES -> break
    od
}

active proctype operator() {
    byte ceiling, seen;
end:
    do
    :: d_step { !owner_runs && !lost && lives > 0 -> lost = true; medium = 0 }
        ceiling = durable;
        seen = open_part(position);
#ifdef BUG_REPAIR_AT_THE_POSITION
        ceiling = seen;
#endif
        d_step { medium = later(ceiling, seen); lost = false; check }
    od
}
