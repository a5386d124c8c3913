/*
 * A host's two coordinators, and what is left of them after kills, power cuts and accidents with files: who may issue
 * from where, and what time it is (evidence.c, mint.c, hosttime.c in pharaohd/csrc; host-time rules 1 to 12, 14, 15).
 *
 * Modelled: the record of each Obelisk as a reader sees it and as the medium has it; the page in memory; a start of the
 * host, which may be killed between its stores; workers that start, renew their ceilings, issue, stop, are killed and
 * succeeded; a wall clock that is set, running and stopped; power cuts, which lose the page and what was not synced;
 * lost files, older copies put back, and their repair; a page that is moved away or copied, and comes back.
 *
 * Time is in whole milliseconds. While the daemon is up, some worker looks at the clocks whenever they move. An Obelisk
 * is one record here, since obelisk.pml shows that its two do not tear. `followed` is the highest reading of the wall
 * clock that was followed, carried on by boottime within its boot; what an operator answers counts as a reading.
 *
 * Checked, when an id leaves: its coordinator issued none as high; it is not ahead of host time; no coordinator had
 * issued in its millisecond or later when the host was started. Checked at each reading: host time is not ahead of
 * `followed`. At each start: a page that nobody touched is believed, and the floor is at most a ceiling's reach ahead.
 *
 * A BUG_... that is defined puts one mistake in and must give a counterexample: tests/model/test_models.py.
 */
#define TICKS 2  /* of a coordinator in a millisecond */
#define REACH 2  /* a ceiling lies at most so far ahead, in milliseconds */
#define reach (starts == 1 -> REACH : 1) /* the disk was slow at first */
#define JUMP 2   /* a forward jump of the wall clock by more is not followed */
#define BEGIN 6  /* the time, when the model begins */
/*
 * How much may happen, by the story that is told: the product of all is too large to search, and mistakes need few of
 * them together. Clocks: steps, power cuts, lost files. Pages: moved or copied, files lost, or those of --init put
 * back, killed starts. Deaths: of a worker, of a start, and a power cut or a lost file.
 */
#define CLOCKS 0
#define PAGES 1
#define DEATHS 2
#define STARTS 3
#ifdef BUG_REPAIR_WITH_A_MARGIN /* and with less, a smaller margin would do it */
#define MILLISECONDS (story == CLOCKS -> 4 : 0)
#else
#define MILLISECONDS (story == CLOCKS -> 2 : 1)
#endif
#define WORKER_DEATHS (story == DEATHS -> 1 : 0)
#define START_DEATHS (story == CLOCKS -> 0 : 1)
#define ACCIDENTS (story == DEATHS -> 1 : 2)
#define IDS (story == DEATHS -> 3 : 2)

#define tick(ms) ((ms) * TICKS)
#define later(a, b) ((a) > (b) -> (a) : (b))
#define sooner(a, b) ((a) < (b) -> (a) : (b))
#define slewed(elapsed) (((elapsed) + 1) / 2)
#define ms_above(bound) ((bound) > 0 -> ((bound) - 1) / TICKS + 1 : 0)

/* start: the id of the host start that it names, or 0: there is no record. */
typedef Record {
    byte ceiling, start, V, W, B;
    byte boot;
    bool doubtful /* since it was written the clock was set back, or a repair made whose record may be elsewhere */
}
Record record[6];
#define medium(c) ((c) + 2) /* record[c] is what a reader sees */
#define backup(c) ((c) + 4)

typedef Page {
    bool there, own, untouched; /* own: not a copy; untouched: the last start used it */
    byte V, W, B;
    byte position[2], start[2], before[2]
}
Page page[2]; /* where the daemon looks, and one that was moved or copied away */

/* The world. */
byte wall = BEGIN, boottime, boot;
/* The daemon. */
bool up;
#define DEAD 0
#define STARTING 1
#define SERVING 2
byte worker[2];
bool dirty[2];     /* the record that is read is not on the medium yet */
byte start_ids = 1;
/* What the operator knows. */
bool restored[2];  /* an older copy was put back, and not repaired */
/* What is checked. */
byte followed = BEGIN;
byte issued[2];    /* all that left is below this tick */
byte top;          /* the latest millisecond of an id that left */
byte top_before;   /* and what it was at the host's start */
bool touched[2];   /* the record is not what a worker of the last start wrote */
/* To bound the model. */
byte story, milliseconds, starts, worker_deaths, start_deaths, accidents, ids;

byte choice; /* what a step that is under way comes to; 0 between steps */

/* Of one d_step only. */
hidden byte estimate, elapsed, value, floor, t;
hidden byte same_boot, exact;
hidden byte bound[2], found[2];

#define copy_record(to, from)                                                                                          \
    record[to].ceiling = record[from].ceiling; record[to].start = record[from].start; record[to].V = record[from].V;   \
    record[to].W = record[from].W; record[to].B = record[from].B; record[to].boot = record[from].boot;                 \
    record[to].doubtful = record[from].doubtful
#define no_record(n)                                                                                                   \
    record[n].ceiling = 0; record[n].start = 0; record[n].V = 0; record[n].W = 0; record[n].B = 0; record[n].boot = 0; \
    record[n].doubtful = false
#define write_record(n, its_ceiling, its_start, its_V)                                                                 \
    record[n].ceiling = its_ceiling; record[n].start = its_start; record[n].V = its_V; record[n].W = wall;             \
    record[n].B = boottime; record[n].boot = boot; record[n].doubtful = false
#define copy_entry(to, from, c)                                                                                        \
    page[to].position[c] = page[from].position[c]; page[to].start[c] = page[from].start[c];                            \
    page[to].before[c] = page[from].before[c]
#define copy_page(to, from)                                                                                            \
    page[to].there = page[from].there; page[to].own = page[from].own; page[to].untouched = page[from].untouched;       \
    page[to].V = page[from].V; page[to].W = page[from].W; page[to].B = page[from].B;                                   \
    copy_entry(to, from, 0); copy_entry(to, from, 1)
#define no_entry(n, c) page[n].position[c] = 0; page[n].start[c] = 0; page[n].before[c] = 0
#define no_page(n)                                                                                                     \
    page[n].there = false; page[n].own = false; page[n].untouched = false;                                             \
    page[n].V = 0; page[n].W = 0; page[n].B = 0;                                                                       \
    no_entry(n, 0); no_entry(n, 1)
#define cast_doubt(n) record[n].doubtful = (record[n].start != 0)
#define cast_doubt_on_all                                                                                              \
    cast_doubt(0); cast_doubt(1); cast_doubt(2); cast_doubt(3); cast_doubt(4); cast_doubt(5)

inline follow() { followed = later(followed, wall) }

/* ph_host_clock_read() */
inline read_host_time() {
    elapsed = boottime - page[0].B;
    if
    :: wall > page[0].V + elapsed + JUMP -> page[0].V = page[0].V + elapsed
    :: else ->
        page[0].V = later(wall, page[0].V + slewed(elapsed));
        follow()
    fi;
    page[0].B = boottime;
    page[0].W = wall;
    assert(page[0].V <= followed)
}

inline consider(its_V, its_W, its_B) {
    elapsed = boottime - its_B;
    value = later(sooner(its_V, its_W) + elapsed, its_V + slewed(elapsed));
    estimate = later(estimate, value);
    same_boot = true
}
inline consider_record(c) {
    if
    :: record[c].start != 0 && record[c].boot == boot -> consider(record[c].V, record[c].W, record[c].B)
    :: else -> estimate = later(estimate, record[c].V)
    fi
}
/* ph_host_estimate() */
inline estimate_host_time() {
    estimate = 0;
    same_boot = false;
    consider_record(0);
    consider_record(1);
    if
    :: page[0].there -> consider(page[0].V, page[0].W, page[0].B)
    :: else
    fi
}

/* bound_of() */
inline find_bound(c) {
    found[c] = record[c].start;
    exact = page[0].there && page[0].own && (found[c] == page[0].start[c] || found[c] == page[0].before[c]);
#ifdef BUG_PAGE_OF_ANY_START_BELIEVED
    exact = page[0].there && page[0].own && page[0].start[c] != 0;
#endif
#ifdef BUG_COPIED_PAGE_BELIEVED
    exact = page[0].there && (found[c] == page[0].start[c] || found[c] == page[0].before[c]);
#endif
    assert(exact || touched[c] || !page[0].there || !page[0].own || !page[0].untouched);
    if
    :: exact -> bound[c] = page[0].position[c]
#ifdef BUG_PAGE_IS_NO_LOWER_BOUND
    :: else -> bound[c] = record[c].ceiling
#else
    :: else -> bound[c] = later(record[c].ceiling, page[0].position[c])
#endif
    fi
}

/* write_position() */
inline write_entry(c, stores) {
    if
    :: stores >= 1 -> page[0].position[c] = later(bound[c], tick(floor))
    :: else
    fi;
    if
    :: stores >= 2 ->
#ifdef BUG_START_BEFORE_IS_NOT_KEPT
        page[0].before[c] = 0
#else
        page[0].before[c] = found[c]
#endif
    :: else
    fi;
    if
    :: stores >= 3 -> page[0].start[c] = start_ids
    :: else
    fi
}

/* ph_host_start() */
inline start_host() {
    starts++;
    /* Killed after one, two or three stores to the first entry, or after the second entry; or never. A new page counts
       once it is finished. */
    if
    :: choice = 5
    :: start_deaths < START_DEATHS && page[0].there && page[0].own ->
        start_deaths++;
        if
        :: choice = 1
        :: choice = 2
        :: choice = 3
        :: choice = 4
        fi
    fi;
    d_step {
        start_ids++;
        estimate_host_time();
#ifdef BUG_CEILINGS_ARE_TIME
        estimate = later(estimate, later(record[0].ceiling, record[1].ceiling) / TICKS);
#endif
        if
        :: same_boot && wall > estimate + JUMP
        :: else ->
            estimate = later(estimate, wall);
            follow()
        fi;
        find_bound(0);
        find_bound(1);
        floor = ms_above(later(bound[0], bound[1]));
        assert(floor <= followed + REACH);
#ifdef BUG_FLOOR_OF_EACH_COORDINATOR
        floor = 0;
        bound[0] = tick(ms_above(bound[0]));
        bound[1] = tick(ms_above(bound[1]));
#endif
#ifdef BUG_FLOOR_IN_TICKS
        floor = 0;
        bound[0] = later(bound[0], bound[1]);
        bound[1] = bound[0];
#endif
        write_entry(0, choice);
        write_entry(1, (choice > 3 -> 3 : 0));
        if
        :: choice == 5 ->
            up = true;
            page[0].there = true;
            page[0].own = true;
            page[0].untouched = true;
            page[1].untouched = false;
            page[0].V = estimate;
            page[0].W = wall;
            page[0].B = boottime;
            top_before = top;
            assert(page[0].V <= followed)
        :: else
        fi;
        choice = 0
    }
}

/* A worker takes the Obelisk over, at a start or from one that died: it settles the record, and writes its first. */
inline start_worker(c) {
    copy_record(medium(c), c);
#ifdef BUG_SUCCESSOR_GOES_BY_THE_FILE
    page[0].position[c] = record[c].ceiling;
#endif
    value = later(page[0].position[c], tick(page[0].V + reach));
#ifdef BUG_FIRST_CEILING_FORGETS_THE_POSITION
    value = tick(page[0].V + reach);
#endif
#ifdef BUG_CEILING_REACHES_BEYOND_THE_POSITION
    value = later(page[0].position[c], tick(page[0].V)) + tick(reach);
#endif
    write_record(c, value, page[0].start[c], page[0].V);
    dirty[c] = true;
    worker[c] = STARTING
}

inline sync(c) {
    copy_record(medium(c), c);
    dirty[c] = false;
    restored[c] = false;
    touched[c] = false;
    worker[c] = SERVING
}

inline renew(c) {
    write_record(c, tick(page[0].V + reach), page[0].start[c], page[0].V);
    dirty[c] = true
}

inline leaves(c) {
    assert(t >= issued[c]);
    assert(t / TICKS <= page[0].V);
    assert(t / TICKS > top_before);
    issued[c] = t + 1;
    top = later(top, t / TICKS)
}

#ifdef BUG_ID_BEFORE_THE_FIRST_CEILING
#define durable(c) record[c].ceiling
#else
#define durable(c) record[medium(c)].ceiling
#endif

/* ph_mint_take(): the position is stored, then the id leaves; between the two the worker may die. */
inline issue(c, dies) {
    t = later(page[0].position[c], tick(page[0].V));
    ids++;
#ifdef BUG_POSITION_AFTER_THE_ID
    leaves(c);
    if
    :: dies -> worker[c] = DEAD; worker_deaths++
    :: else -> page[0].position[c] = t + 1
    fi
#else
    page[0].position[c] = t + 1;
    if
    :: dies -> worker[c] = DEAD; worker_deaths++
    :: else -> leaves(c)
    fi
#endif
}

/* It writes the exact position and ends; whether that reaches the medium is seen when the power fails. */
inline stop(c) {
    write_record(c, page[0].position[c], page[0].start[c], page[0].V);
    dirty[c] = true;
    worker[c] = DEAD;
    worker_deaths++
}

inline reach_medium(c) {
    if
    :: dirty[c] -> copy_record(medium(c), c)
    :: dirty[c] -> copy_record(c, medium(c))
    :: !dirty[c]
    fi;
    dirty[c] = false
}

inline kill_daemon() { up = false; worker[0] = DEAD; worker[1] = DEAD }

inline lose(c) {
    no_record(c);
    no_record(medium(c));
    dirty[c] = false;
    restored[c] = false;
    touched[c] = true
}

inline cut_power() {
    reach_medium(0);
    reach_medium(1);
    d_step {
        kill_daemon();
        no_page(0);
        no_page(1);
        boot++
    }
    if
    :: true
    :: story == DEATHS && milliseconds < MILLISECONDS -> d_step { milliseconds++; wall++ }
    :: story == CLOCKS -> d_step { wall = wall - 2; cast_doubt_on_all }
    :: story == CLOCKS -> d_step { lose(0) }
    fi
}

inline restore(c) {
    copy_record(c, backup(c));
    copy_record(medium(c), backup(c));
    dirty[c] = false;
    restored[c] = true;
    touched[c] = true
}

#define by_page 0
#define by_clock 1
#define by_ids 2
/* ph_newest_evidence() */
#define newest (record[0].V > record[1].V || record[0].V == record[1].V && record[0].W < record[1].W -> 0 : 1)

/* ph_repair() */
inline repair(c) {
    if
    :: up -> choice = by_page
    :: !up -> choice = by_ids
    :: !up && record[newest].start != 0 && !record[newest].doubtful -> choice = by_clock
#ifdef BUG_REPAIR_WITH_A_MARGIN
    :: !up && record[newest].start != 0 -> choice = by_clock
#endif
    fi;
    d_step {
        if
        :: choice == by_page ->
            estimate = page[0].V;
            value = page[0].position[c]
        :: choice == by_clock ->
            estimate_host_time();
            value = wall + later(0, record[newest].V - record[newest].W);
#ifdef BUG_REPAIR_FORGETS_THE_LEAD
            value = wall;
#endif
#ifdef BUG_REPAIR_WITH_A_MARGIN
            value = later(value, estimate) + 1;
#endif
            followed = later(followed, value);
            estimate = later(estimate, value);
            value = tick(value + 1)
        :: choice == by_ids ->
            estimate_host_time();
            estimate = later(estimate, top);
            value = tick(top + 1)
        fi;
        value = later(value, record[c].ceiling);
        assert(estimate <= followed);
        if
        :: choice != by_page -> cast_doubt_on_all
        :: else
        fi;
#ifdef BUG_REPAIR_KEEPS_THE_START_ID
        if
        :: record[c].start == 0 -> start_ids++; record[c].start = start_ids
        :: else
        fi;
        write_record(c, value, record[c].start, estimate);
#else
        if
        :: choice == by_page -> write_record(c, value, page[0].start[c], estimate) /* the page stays believed */
        :: else -> start_ids++; write_record(c, value, start_ids, estimate)
        fi;
#endif
        copy_record(medium(c), c);
        dirty[c] = false;
        restored[c] = false;
        touched[c] = (choice != by_page);
        choice = 0
    }
}

#define exhausted(c) record[c].ceiling < tick(page[0].V + 1)
#define can_issue(c)                                                                                                   \
    later(page[0].position[c], tick(page[0].V)) < sooner(durable(c), tick(page[0].V + 1))
#define can_repair(c) worker[c] == DEAD && (record[c].start == 0 || restored[c])
/* An older copy that was put back is repaired first; a page that stands makes up for it when that is forgotten. */
#define can_start(c) record[c].start != 0 && (!restored[c] || page[0].there && page[0].own && page[0].untouched)
#define going_on (ids < IDS && (up || starts < STARTS))
#define accident(possible) going_on && accidents < ACCIDENTS && (possible) -> accidents++

inline serve_first() {
    if
    :: worker[0] == DEAD && record[0].start != 0 -> d_step { start_worker(0) }
    :: worker[0] != DEAD && dirty[0] -> d_step { sync(0) }
    :: worker[0] == SERVING && !dirty[0] && exhausted(0) -> d_step { renew(0) }
    :: worker[0] == SERVING && can_issue(0) -> d_step { issue(0, false) }
    :: worker[0] == SERVING && can_issue(0) && worker_deaths < WORKER_DEATHS -> d_step { issue(0, true) }
#ifdef BUG_ID_BEFORE_THE_FIRST_CEILING
    :: worker[0] == STARTING && can_issue(0) -> d_step { issue(0, false) }
#endif
    :: worker[0] == SERVING && !dirty[0] && worker_deaths < WORKER_DEATHS -> d_step { stop(0) }
    :: worker[0] != DEAD && worker_deaths < WORKER_DEATHS -> d_step { worker[0] = DEAD; worker_deaths++ }
    :: else
    fi
}

/* The coordinators are alike. So the second's worker never dies alone, and its syncs take no time. */
inline serve_second() {
    if
    :: worker[1] == DEAD && record[1].start != 0 -> d_step { start_worker(1); sync(1) }
    :: worker[1] == SERVING && exhausted(1) -> d_step { renew(1); sync(1) }
    :: worker[1] == SERVING && can_issue(1) -> d_step { issue(1, false) }
    :: else
    fi
}

/* The clocks have moved: some worker sees it. */
inline look_at_clocks() {
    if
    :: up -> read_host_time()
    :: else
    fi
}

active proctype host() {
    d_step {
        write_record(0, tick(BEGIN), 1, BEGIN);
        write_record(1, tick(BEGIN), 1, BEGIN);
        copy_record(medium(0), 0);
        copy_record(medium(1), 1);
        copy_record(backup(0), 0);
        copy_record(backup(1), 1)
    }
    if
#ifndef STORY
    :: story = DEATHS
    :: story = PAGES
    :: story = CLOCKS
#else
    :: story = STORY
#endif
    fi;
end:
    do
    :: atomic { milliseconds < MILLISECONDS && going_on -> d_step {
        milliseconds++; wall++; boottime++; followed++; look_at_clocks() } }
    :: atomic { !up && going_on && can_start(0) && can_start(1) -> start_host() }
    :: atomic { up && starts < STARTS -> kill_daemon() }
    :: atomic { up && ids < IDS -> serve_first() }
    :: atomic { up && ids < IDS -> serve_second() }
    :: atomic { can_repair(0) && going_on -> repair(0) }
    :: atomic { can_repair(1) && going_on -> repair(1) }
    :: atomic { accident(story != PAGES && starts < STARTS); cut_power() }
    :: atomic { accident(story == CLOCKS); d_step { wall = wall + JUMP + 2; look_at_clocks() } }
    :: atomic { accident(story == CLOCKS); d_step { wall = wall - 2; cast_doubt_on_all; look_at_clocks() } }
    /* The coordinators are alike: one file alone is the first's. */
    :: atomic { accident(worker[0] == DEAD); d_step { lose(0) } }
    :: atomic { accident(!up && story == CLOCKS); d_step { lose(0); lose(1) } }
    :: atomic { accident(!up && story == PAGES); d_step { restore(0) } }
    :: atomic { accident(!up && story == PAGES); d_step { restore(0); restore(1) } }
    :: atomic { accident(!up && story == PAGES && page[0].there); d_step { copy_page(1, 0); no_page(0) } } /* moved */
    :: atomic { accident(story == PAGES && page[0].there);
        d_step { copy_page(1, 0); page[1].own = false; page[1].untouched = false } }
    :: atomic { !up && starts < STARTS && page[1].there -> d_step { copy_page(0, 1); no_page(1) } }
    od
}
