/*
 * Rings of grants: one worker, two clients, each with a ring of two slots whose counters wrap (libpharaoh/csrc/ph_ring.c,
 * pharaohd/csrc/producer.c). One statement is one access to shared memory; any process may pause for any time between
 * two of its statements, and the first client may be killed between any two.
 *
 * The second client takes enough to come round both the slots and the counters.
 *
 * Checked: no tick is received twice, or out of order; a slot is not rewritten before its reader is done with it; the
 * worker never finds a cursor out of range; nobody sleeps for ever (an invalid end state), whoever was killed.
 *
 * A BUG_… that is defined puts one known mistake back in and must give a counterexample: tests/model/test_models.py.
 */
#define RINGS 2
#define SLOTS 2
#define WRAP 4     /* counters are modulo this: more than SLOTS, and a multiple of them, as 2^64 is */
#define BEGIN 3    /* where they begin: they wrap at once */
#define TICKS 8    /* more than both clients can be given */
#define NOBODY 255

#define held(ring) ((WRAP + worker_head[ring] - worker_cursor[ring]) % WRAP)

/* Shared memory, one of each per ring. */
byte slot[RINGS * SLOTS];
byte head[RINGS] = BEGIN;
byte cursor[RINGS] = BEGIN;
byte waiting[RINGS] = NOBODY; /* the head that the client may sleep on; the code adds 1 so that 0 means nobody */
/* The kernel. */
bool doorbell[RINGS];
bool asleep[RINGS];
bool killed;
/* The worker's private copies. */
byte worker_head[RINGS] = BEGIN;
byte worker_cursor[RINGS] = BEGIN;
byte next_tick;
/* What was received. */
bool received[TICKS];

#define store_slot(ring)                                                                                               \
    slot[ring * SLOTS + worker_head[ring] % SLOTS] = next_tick
#define advance_head(ring)                                                                                             \
    d_step { next_tick++; worker_head[ring] = (worker_head[ring] + 1) % WRAP }

inline wake(ring, head_before) {
    /* publish(): the store of head comes first, the look at `waiting` second */
    if
    :: waiting[ring] == head_before -> asleep[ring] = false
    :: else
    fi
}

/* ph_producer_demand(), then ph_producer_refill() with one or two grants. */
inline feed(ring) {
    byte seen = cursor[ring];
    assert((WRAP + worker_head[ring] - seen) % WRAP <= SLOTS);
    worker_cursor[ring] = seen;
    byte before = worker_head[ring];
    if
    :: held(ring) == SLOTS || next_tick == TICKS
    :: held(ring) < SLOTS && next_tick < TICKS ->
#ifdef BUG_PUBLISHED_BEFORE_THE_SLOT
        head[ring] = (worker_head[ring] + 1) % WRAP;
        store_slot(ring);
        advance_head(ring);
        wake(ring, before)
#else
        store_slot(ring);
        advance_head(ring);
        if
        :: true
        :: held(ring) < SLOTS && next_tick < TICKS -> store_slot(ring); advance_head(ring)
        fi;
#ifdef BUG_LOOKS_BEFORE_IT_PUBLISHES
        bool sleeps = (waiting[ring] == before);
        head[ring] = worker_head[ring];
        if
        :: sleeps -> asleep[ring] = false
        :: else
        fi
#else
        head[ring] = worker_head[ring];
        wake(ring, before)
#endif
#endif
    fi
}

active proctype worker() {
end:
    do
    :: doorbell[0] -> doorbell[0] = false; feed(0)
    :: doorbell[1] -> doorbell[1] = false; feed(1)
    od
}

inline take() {
    byte tick;
#ifdef BUG_CURSOR_MOVES_BEFORE_THE_COPY
    cursor[ring] = (mine + 1) % WRAP;
    tick = slot[ring * SLOTS + mine % SLOTS];
#else
    tick = slot[ring * SLOTS + mine % SLOTS];
    cursor[ring] = (mine + 1) % WRAP;
#endif
    d_step {
        mine = (mine + 1) % WRAP;
        assert(!received[tick]);
        assert(count == 0 || tick > last);
        received[tick] = true;
        last = tick;
        count++
    }
}

/* ph_ring_wait_locked(): say so, ring, look again, sleep unless the futex word has moved on. */
inline wait() {
#ifdef BUG_DOES_NOT_SAY_THAT_IT_WAITS
    skip;
#else
    waiting[ring] = mine;
#endif
    doorbell[ring] = true;
#ifdef BUG_SLEEPS_WITHOUT_COMPARING
    asleep[ring] = true;
#else
    d_step {
        if
        :: head[ring] == mine -> asleep[ring] = true
        :: else
        fi
    }
#endif
    !asleep[ring]
}

proctype client(byte ring, wanted) {
    byte mine = BEGIN, last, count;
    {
        do
        :: count == wanted -> break
        :: count < wanted ->
            if
            :: head[ring] != mine -> take()
            :: head[ring] == mine -> wait()
            fi
        od
    } unless { killed && ring == 0 }
}

init {
    atomic { run client(0, 1); run client(1, 3) }
    if
    :: killed = true
    :: true
    fi
}
