/*
 * Order per key in real time, between the worker that owns a key and one that stands in for it (ph_strict_begin(),
 * ph_strict_pursue() in pharaohd/csrc/mint.c; rules 8 and 13 of host time, T3 to T6 of order between hosts, error 0).
 *
 * Modelled: one key, two workers of one host, requests that arrive at either of them at any time, as many at once as
 * there are; any pause between a request's arrival, each reading of host time, the pick of its tick and its answer; and
 * a start of the whole host, which drops what was not answered, may set host time back (the page was lost) and may make
 * the other coordinator the owner, as it may for those who ask without a key. A worker's death is a pause without end.
 *
 * Time is in half milliseconds. An id is (millisecond, coordinator, tick within the millisecond).
 *
 * Checked at each answer: its id is greater than every one that had been answered when its request arrived; and no id
 * is ahead of host time.
 *
 * A BUG_... that is defined puts one mistake in and must give a counterexample: tests/model/test_models.py.
 */
#define TICKS 2    /* of a coordinator in a millisecond */
#define MS 2       /* units of time in a millisecond */
#define END 7      /* of time */
#define REQUESTS 3
#define STARTS 1

#define tick(V) ((V) / MS * TICKS)
#define later(a, b) ((a) > (b) -> (a) : (b))
#define id_of(t, c) (((t) / TICKS * 2 + (c)) * TICKS + (t) % TICKS)
#define ms_above(bound) ((bound) > 0 -> ((bound) - 1) / TICKS + 1 : 0)

byte host_time = 3;
byte position[2];
bit owner;
byte starts;   /* of the host, beyond the first */
byte answered; /* above every id that was answered */
byte arrived;  /* requests, which are alike: they arrive one by one */

inline arrive() {
    number == arrived;
    arrived++;
    start = starts;
    base = answered;
    owns = (by == owner)
}

/* Each step is one that a worker does without a pause. Whoever is not answered waits for ever: at the labels. */
proctype request(byte number) {
    byte start, base, read, t;
    bit by, owns;
    if /* the owner is asked, or somebody else since the owner is slow or seems so */
    :: by = 0
    :: by = 1
    fi;
#ifdef BUG_HOST_TIME_READ_BEFORE_THE_REQUEST
    atomic { read = host_time; start = starts }
end_arrives:
    atomic { start == starts && number == arrived -> arrive() }
#else
end_arrives:
    atomic { arrive() }
end_noted:
    atomic { start == starts -> read = host_time }
#endif
    if
    :: owns
    :: else ->
end_waits:
#ifdef BUG_STANDS_IN_AT_ONCE
        atomic { start == starts -> read = host_time }
#else
        atomic { start == starts && host_time >= read + MS -> read = host_time }
#endif
    fi;
end_picks: /* ph_mint_take(): in a millisecond that is full, or behind the position, it waits for a later one */
    do
    :: atomic { start == starts && position[by] < tick(read) + TICKS ->
        t = later(position[by], tick(read));
        position[by] = t + 1;
        break }
    :: atomic { start == starts && position[by] >= tick(read) + TICKS && read / MS < host_time / MS ->
        read = host_time }
    od;
end_answers:
    atomic {
#ifdef BUG_STAND_IN_ANSWERS_AT_ONCE
        start == starts ->
#else
        start == starts && (owns || host_time >= (t / TICKS + 1) * MS) ->
#endif
        assert(t / TICKS <= host_time / MS);
        assert(id_of(t, by) >= base);
        answered = later(answered, id_of(t, by) + 1);
        start = 0; base = 0; read = 0; t = 0; by = 0; owns = 0
    }
}

/* The position of a coordinator outlives its worker; only a start of the host changes it. */
inline start_host() {
    starts++;
#ifdef BUG_FLOOR_OF_EACH_COORDINATOR
    position[0] = ms_above(position[0]) * TICKS;
    position[1] = ms_above(position[1]) * TICKS;
#else
    position[0] = later(position[0], position[1]);
#ifndef BUG_FLOOR_IN_TICKS
    position[0] = ms_above(position[0]) * TICKS;
#endif
    position[1] = position[0];
#endif
    if
    :: true
    :: host_time = host_time - 1
    :: host_time = host_time - 3
    fi;
    if
    :: owner = 0
    :: owner = 1
    fi
}

init {
    byte number;
    atomic {
        if
        :: owner = 0
        :: owner = 1
        fi;
        do
        :: number < REQUESTS -> run request(number); number++
        :: number == REQUESTS -> break
        od
    }
    do
    :: host_time < END -> host_time++
    :: atomic { starts < STARTS && host_time >= 3 -> start_host() }
    :: host_time == END -> break
    od
}
