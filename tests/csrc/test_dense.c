/*
 * Counting from the request to the disk of disk.h and back: clients count, the process dies or the power goes, a
 * successor opens what is left, the clients ask again. F1, F2, F3, F4, F6, F7, F35.
 *
 * Invariants
 * - No value is acknowledged twice, and none that a counter gives after a crash was acknowledged before it.
 * - A token's request counts once, however often it is asked and whatever happens meanwhile: where all have tokens, what
 *   was acknowledged in the end is 0 to n without a gap.
 * - A successor always opens what a crash leaves, in whichever state of a rewrite; it refuses what a crash cannot leave.
 * - A stop comes to its end whenever the disk fails, and answers nothing that is not durable.
 */
#define _GNU_SOURCE
#include "engine/tally.h"

#include <sched.h>
#include <sys/eventfd.h>

#include "check.h"
#include "disk.h"
#include "engine/inspect.h"
#include "ph_atomic.h"
#include "ph_errors.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/lsan_interface.h>
#endif

#define CLIENTS 32
#define VALUES_MAX 65536
#define RENEWALS_MAX 8 /* of a client: all sessions of a counter can be remembered */
#define BALLAST 60     /* counters with long names, so that a rewrite takes several batches */
#define STATES 4
#define WATCHDOG_S 60

static struct random chances; /* the disk, which the commit thread is at, has its own */
static struct ph_tally tally;
static struct ph_tally_config config;
static struct ph_mint mint;
static struct ph_syncer syncer;
static struct ph_record newest;
static uint64_t failed; /* the commit thread has given up: the process would be at its end */

/* What the Obelisk knows of the journal. */
static uint64_t known_id, known_batch;
/* In which states a successor found the files. */
static uint64_t states[STATES];
enum { STATE_ONE_FILE, STATE_NEXT_EMPTY, STATE_NEXT_PARTIAL, STATE_RENAMED };

static uint64_t below(uint64_t end) { return random_below(&chances, end); }

/* --- the process */

static void note_failure(const struct ph_fault *fault) {
    CHECK(fault->code == PH_ERR_SYNC_FAILED);
    ph_store_release(&failed, 1); /* pairs with has_failed() */
}

static int has_failed(void) { return ph_load_acquire(&failed) != 0; }

static void configure(void) {
    config.identity = (struct ph_identity){.coordinator = 0, .modulus = 1};
    config.path = disk.path[DISK_BASE];
    config.reserve = "offset:reserving*\0";
    config.reserve_ahead = 500;
    config.counters_max = 1000000;
    config.event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    tally.stall_ms_max = 1000000000;
    mint.monotonic_ns = UINT64_C(5000000000);
    mint.syncer = &syncer;
}

/* The Obelisk is only looked at, and told by us. */
static void take_in_hand(void) {
    if (tally.batches != NULL) {
        tally.batches->committer.on_failure = note_failure; /* before the next batch, whose mutex publishes it */
        tally.batches->noted_ns = mint.monotonic_ns;
    }
}

static int open_dense(void) {
    struct ph_fault fault = {0, ""};
    newest.counters_id = known_id;
    newest.counters_batch = known_batch;
    syncer.durable_counters_id = known_id;
    failed = 0;
#ifdef __SANITIZE_ADDRESS__
    __lsan_disable(); /* one that cannot open ends, and leaves it to the kernel to clear up */
#endif
    int code = ph_tally_open(&tally, &config, &mint, &newest, &fault);
#ifdef __SANITIZE_ADDRESS__
    __lsan_enable();
#endif
    if (code == 0) {
        take_in_hand();
    }
    return code;
}

static void note_state(void) {
    const struct ph_journal *journal = &tally.batches->committer.journal;
    if (tally.batches->copying) {
        states[journal->number < journal->first ? STATE_NEXT_EMPTY : STATE_NEXT_PARTIAL]++;
    } else {
        states[journal->first > 1 ? STATE_RENAMED : STATE_ONE_FILE]++;
    }
}

static void free_tally(void) {
    uint64_t journal_id, last_batch;
    ph_tally_close(&tally, &journal_id, &last_batch);
}

/* At once: nothing that was not carried out yet will be. */
static void die(void) {
    disk_lock();
    disk.dead = 1;
    disk_unlock();
    ph_committer_stop(&tally.batches->committer);
    free_tally();
    disk_behave();
}

static void tell_obelisk(void) {
    known_id = ph_load_relaxed(&tally.batches->committer.journal_id);
    known_batch = ph_committer_durable(&tally.batches->committer);
    ph_store_release(&syncer.durable_counters_id, known_id); /* pairs with ph_syncer_durable_counters_id() */
}

/* --- requests */

struct name {
    enum ph_counter_kind kind;
    char text[PH_NAME_BYTES_MAX];
    uint32_t length;
};

struct answer {
    enum ph_counted outcome;
    int error;
    uint64_t value; /* when it is COUNTED */
};

/* join_group or assign_offset; `session` 0: without a token. An answer that comes later has message_id on its ticket. */
static struct answer ask(uint32_t message_id, const struct name *name, uint64_t count, uint64_t session,
                         uint64_t sequence) {
    struct ph_count wanted = {
        .kind = name->kind,
        .name = {(const uint8_t *)name->text, name->length},
        .count = name->kind == PH_KIND_GROUP ? 1 : count,
        .token = {.session = session, .sequence = sequence},
        .may_wait = 1,
    };
    struct ph_count_result result;
    enum ph_counted outcome = ph_tally_count(&tally, &wanted, &result);
    if (outcome == PH_COUNTED_LATER) {
        ph_tally_put_off(&tally, (struct ph_ticket){.message_id = message_id}, &result);
    }
    return (struct answer){outcome, result.error, result.value};
}

/* --- clients */

struct client {
    uint32_t name;
    uint64_t session; /* 0: it uses no tokens */
    uint64_t sequence;
    uint64_t count;
    uint32_t renewals;
    int wants;     /* to be answered */
    int asked;     /* waits for a reply */
    int repeating; /* asks again for what it has */
    int has;
    uint64_t first; /* what it has */
};

#define NAMES 6

static struct client clients[CLIENTS];
static struct name names[NAMES];
static uint8_t taken[NAMES][VALUES_MAX];
static uint64_t acknowledged[NAMES]; /* one more than the greatest value that anybody received */
static uint64_t given[NAMES];        /* where the counter stood when its process died */
static uint64_t sessions_made;

/* The last two are for clients without tokens, the very last one reserves. */
static int has_tokens(uint32_t name) { return name < NAMES - 2; }

static void make_history(void) {
    disk_format();
    known_id = known_batch = sessions_made = 0;
    memset(taken, 0, sizeof taken);
    memset(acknowledged, 0, sizeof acknowledged);
    memset(given, 0, sizeof given);
    memset(clients, 0, sizeof clients);
    for (uint32_t i = 0; i < NAMES; i++) {
        names[i].kind = i < 2 ? PH_KIND_GROUP : PH_KIND_OFFSET;
        names[i].length = (uint32_t)sprintf(names[i].text, "%s %u", i == NAMES - 1 ? "reserving" : "name", i);
        acknowledged[i] = given[i] = names[i].kind == PH_KIND_GROUP;
    }
    for (uint32_t i = 0; i < CLIENTS; i++) {
        clients[i].name = i % NAMES;
        clients[i].session = has_tokens(i % NAMES) ? ++sessions_made : 0;
    }
}

static void receive(struct client *client, uint64_t first) {
    client->asked = client->wants = 0;
    if (client->repeating) {
        client->repeating = 0;
        CHECK_EQ_U64(first, client->first);
        return;
    }
    REQUIRE(first + client->count <= VALUES_MAX);
    for (uint64_t i = 0; i < client->count; i++) {
        CHECK_EQ_U64(taken[client->name][first + i]++, 0);
    }
    uint64_t end = first + client->count;
    acknowledged[client->name] = end > acknowledged[client->name] ? end : acknowledged[client->name];
    client->has = 1;
    client->first = first;
}

/* What it wants next: most often something new. */
static void draw_wish(struct client *client) {
    client->wants = 1;
    client->repeating = client->has && client->session != 0 && below(4) == 0;
    if (client->repeating) {
        return;
    }
    client->count = names[client->name].kind == PH_KIND_GROUP ? 1 : 1 + below(5);
    client->sequence += 1 + below(3);
    if (client->session != 0 && client->renewals < RENEWALS_MAX && below(20) == 0) {
        client->renewals++;
        client->session = ++sessions_made;
        client->sequence = 0;
        client->has = 0;
    }
}

static void let_ask(uint32_t number) {
    struct client *client = &clients[number];
    if (!client->wants && below(3) == 0) {
        draw_wish(client);
    }
    if (!client->wants || client->asked) {
        return;
    }
    struct answer answer = ask(number, &names[client->name], client->count, client->session, client->sequence);
    if (answer.outcome == PH_COUNTED_LATER) {
        client->asked = 1;
    } else if (answer.outcome == PH_COUNTED) {
        receive(client, answer.value);
    } else if (answer.outcome == PH_COUNTED_NOT) {
        CHECK_EQ_U64(answer.error, PH_ERR_STORAGE_FULL); /* the only thing that may be said of these */
    }
}

static void take_answers(void) {
    const struct ph_answer *answer;
    int error;
    while ((answer = ph_tally_next_answer(&tally, &error)) != NULL) {
        if (answer->ticket.message_id < CLIENTS && error == 0) {
            receive(&clients[answer->ticket.message_id], answer->value);
        }
    }
}

static void round_of_loop(void) {
    mint.monotonic_ns += 1000000;
    tally.batches->noted_ns = mint.monotonic_ns;
    take_answers();
    ph_tally_commit(&tally);
    if (known_id == 0 || below(8) == 0) {
        tell_obelisk();
    }
}

static void await_commit(void) {
    while (ph_tally_is_committing(&tally) && !has_failed()) {
        sched_yield();
    }
}

/* Makes the loop believe that the journal is long: the next batch begins a new file. */
static void want_rewrite(void) {
    tally.batches->rewrite_tried_ns = 0;
    ph_store_relaxed(&tally.batches->committer.used, UINT64_C(1) << 40);
}

/* Until it is so: the commit thread may be about to say how long the journal is. */
static void begin_rewrite(void) {
    struct name name = {.kind = PH_KIND_GROUP, .text = "one more", .length = 8};
    while (ph_load_relaxed(&tally.batches->committer.rewriting) == 0) {
        want_rewrite();
        CHECK_EQ_U64(ask(CLIENTS, &name, 1, 0, 0).error, 0);
        round_of_loop();
        await_commit();
    }
}

/* --- lives */

static void note_where_counters_stand(void) {
    for (uint32_t i = 0; i < NAMES; i++) {
        struct ph_bytes name = {(const uint8_t *)names[i].text, names[i].length};
        const struct ph_counter *counter = ph_counters_find(&tally.batches->counters, names[i].kind, name);
        given[i] = counter != NULL && counter->next > given[i] ? counter->next : given[i];
    }
}

static void check_what_is_found(void) {
    for (uint32_t i = 0; i < NAMES; i++) {
        struct ph_bytes name = {(const uint8_t *)names[i].text, names[i].length};
        const struct ph_counter *counter = ph_counters_find(&tally.batches->counters, names[i].kind, name);
        uint64_t next = counter != NULL ? counter->next : names[i].kind == PH_KIND_GROUP;
        CHECK(next >= acknowledged[i]);
        CHECK(next <= given[i] + (i == NAMES - 1 ? config.reserve_ahead : 0));
    }
}

/* Whoever waits for a reply will not get it; with a token it asks again. */
static void lose_replies(void) {
    for (uint32_t i = 0; i < CLIENTS; i++) {
        clients[i].asked = 0;
        clients[i].wants = clients[i].session != 0 && clients[i].wants;
    }
}

/* The first process of a history: makes the file, and enough counters for a rewrite of several batches. */
static void first_life(void) {
    struct name ballast = {.kind = PH_KIND_GROUP, .length = 4000};
    struct answer answer = {.outcome = PH_COUNTED_NOT_YET};
    REQUIRE(open_dense() == 0 && tally.batches == NULL);
    memset(ballast.text, 'b', ballast.length);
    for (uint32_t i = 0; i < BALLAST; i++) {
        memcpy(ballast.text, &i, sizeof i);
        for (answer.outcome = PH_COUNTED_NOT_YET; answer.outcome == PH_COUNTED_NOT_YET;) {
            answer = ask(CLIENTS, &ballast, 1, 0, 0);
            take_in_hand();
            round_of_loop();
        }
        CHECK(answer.outcome == PH_COUNTED_LATER);
    }
    while (tally.batches->count > 0) {
        await_commit();
        round_of_loop();
    }
    tell_obelisk();
}

static void draw_luck(void) {
    uint64_t luck = below(8);
    disk_lock();
    disk.steps_left = luck < 3 ? (int64_t)(1 + below(60)) : -1;
    disk.fail_sync = luck == 3 && below(10) == 0;
    disk.room = luck == 4 ? (int64_t)below(600 << 10) : -1;
    disk_unlock();
}

static void live(void) {
    for (uint64_t rounds = 1 + below(40); rounds > 0 && !has_failed(); rounds--) {
        for (uint32_t i = 0; i < CLIENTS; i++) {
            let_ask(i);
        }
        if (below(12) == 0) {
            want_rewrite();
        }
        if (below(10) == 0) {
            draw_luck();
        }
        if (below(2) == 0) {
            await_commit();
        }
        round_of_loop();
    }
}

/* When the disk fails meanwhile, or has failed already, a process is at its end: the Obelisk learns nothing. */
static void stop_cleanly(void) {
    alarm(WATCHDOG_S);
    ph_tally_finish(&tally);
    take_answers();
    alarm(0);
    if (!has_failed()) {
        CHECK_EQ_U64(tally.batches->count, 0);
        known_id = tally.batches->committer.journal_id;
        known_batch = tally.batches->handed;
    }
    free_tally();
    disk_behave();
}

/* How a life ends: with a clean stop, a kill, or a power cut. */
static void end_life(void) {
    note_where_counters_stand();
    if (below(3) == 0) {
        stop_cleanly();
    } else {
        die();
    }
    lose_replies();
    if (below(2) == 0) {
        disk_power_cut();
    }
}

/* A successor; when its disk fails while it opens, the next one. */
static void next_life(void) {
    int fails = below(10) == 0;
    disk.steps_left = fails ? (int64_t)(1 + below(6)) : -1;
    int code = open_dense();
    if (fails && code != 0) {
        CHECK_EQ_U64(code, PH_ERR_SYNC_FAILED);
        disk_behave();
        if (below(2) == 0) {
            disk_power_cut();
        }
        code = open_dense();
    }
    REQUIRE(code == 0 && tally.batches != NULL);
    disk_behave();
    note_state();
    check_what_is_found();
}

static void answer_all(void) {
    for (uint32_t waiting = 1; waiting > 0;) {
        waiting = 0;
        for (uint32_t i = 0; i < CLIENTS; i++) {
            waiting += clients[i].wants != 0;
            if (clients[i].wants) {
                let_ask(i);
            }
        }
        await_commit();
        round_of_loop();
    }
}

/* The last life: all get what they want, or the same again; and nothing is missing where all had tokens. */
static void finish_history(void) {
    answer_all();
    for (uint32_t i = 0; i < CLIENTS; i++) {
        clients[i].wants = clients[i].repeating = clients[i].session != 0 && clients[i].has;
    }
    answer_all();
    note_where_counters_stand();
    for (uint32_t i = 0; i < NAMES; i++) {
        for (uint64_t value = names[i].kind == PH_KIND_GROUP; has_tokens(i) && value < acknowledged[i]; value++) {
            CHECK_EQ_U64(taken[i][value], 1);
        }
        CHECK(!has_tokens(i) || given[i] == acknowledged[i]);
    }
    die();
}

/* F1, F2, F4, F6, F7, F35: any sequence of good and bad days. */
static void test_random_lives(void) {
    uint64_t values = 0;
    for (uint64_t history = random_rounds(25); history > 0; history--) {
        make_history();
        first_life();
        for (int i = 0; i < 25; i++) {
            live();
            end_life();
            next_life();
        }
        finish_history();
        values += acknowledged[2];
    }
    CHECK(values > 0);
}

/* Everybody asks, round after round, until a rewrite has begun and ended; or until the process dies. */
static void live_through_a_rewrite(void) {
    int begun = 0;
    for (int rounds_after = 0; rounds_after < 3 && !has_failed();) {
        for (uint32_t i = 0; i < CLIENTS; i++) {
            let_ask(i);
        }
        if (!begun) {
            want_rewrite();
        }
        round_of_loop();
        await_commit();
        int rewriting = ph_load_relaxed(&tally.batches->committer.rewriting) != 0;
        begun |= rewriting;
        rounds_after += begun && !rewriting;
    }
}

/* F3: a crash at each step of a rewrite; then the process, or also the power, is gone. */
static void test_crashes_while_rewriting(void) {
    int64_t step = 1;
    for (int died = 1; died; step++) {
        for (int cut = 0; cut < 4; cut++) {
            make_history();
            first_life();
            stop_cleanly();
            REQUIRE(open_dense() == 0);
            disk.steps_left = step;
            live_through_a_rewrite();
            died = has_failed();
            note_where_counters_stand();
            die();
            lose_replies();
            if (cut > 0) {
                disk_power_cut();
            }
            next_life();
            live_through_a_rewrite();
            finish_history();
        }
    }
    CHECK(step > 25);
    for (int state = 0; state < STATES; state++) {
        CHECK(states[state] > 0);
    }
}

/* F4: the disk fails at each step of two batches; the second one is collected when the stop begins. */
static void test_failures_while_stopping(void) {
    int64_t step = 1;
    for (int fails = 1; fails; step++) {
        for (int cut = 0; cut < 2; cut++) {
            make_history();
            first_life();
            stop_cleanly();
            REQUIRE(open_dense() == 0);
            disk.steps_left = step;
            for (uint32_t i = 0; i < CLIENTS; i++) {
                if (i == CLIENTS / 2) {
                    round_of_loop();
                }
                draw_wish(&clients[i]);
                let_ask(i);
            }
            note_where_counters_stand();
            stop_cleanly();
            fails = has_failed();
            lose_replies();
            if (cut) {
                disk_power_cut();
            }
            next_life();
            finish_history();
        }
    }
    CHECK(step > 5); /* a write and a sync of each batch at least */
}

/* --- limits */

static struct name new_name(uint32_t number, uint32_t length) {
    struct name name = {.kind = PH_KIND_OFFSET, .length = length};
    memset(name.text, 'n', length);
    memcpy(name.text, &number, sizeof number);
    return name;
}

/* New counters until the batch, or the file, is full. Returns how the last one was refused. */
static struct answer fill(uint32_t *number) {
    struct answer answer;
    do {
        struct name name = new_name(*number, 4000);
        answer = ask(CLIENTS + *number, &name, 1, 0, 0);
        *number += answer.outcome == PH_COUNTED_LATER;
    } while (answer.outcome == PH_COUNTED_LATER);
    return answer;
}

static void start_afresh(void) {
    make_history();
    first_life();
    await_commit();
    while (ph_load_relaxed(&tally.batches->committer.room) < 400 << 10) { /* the commit thread makes it */
        struct name name = new_name(UINT32_MAX, 4000);
        CHECK_EQ_U64(ask(CLIENTS, &name, 1, 0, 0).error, 0);
        round_of_loop();
        await_commit();
        round_of_loop();
    }
}

/* Hands over what was collected, and holds it at its sync. */
static void hand_over_and_hold(void) {
    ph_store_relaxed(&disk.held, DISK_BATCHES);
    round_of_loop();
    sem_wait(&disk.entered);
}

static void let_go(void) {
    ph_store_relaxed(&disk.held, 0);
    sem_post(&disk.may_return);
    await_commit();
}

static void set_room(int64_t room) {
    disk_lock();
    disk.room = room;
    disk_unlock();
}

/* Answers all; what was collected meanwhile is committed too. */
static void drain(void) {
    while (tally.batches->count > 0) {
        await_commit();
        round_of_loop();
    }
}

/* F7: on a full disk what is taken on always fits, whether collected before, during or after a commit. */
static void test_what_is_admitted_fits(void) {
    for (int rewriting = 0; rewriting < 2; rewriting++) {
        uint32_t number = 0;
        start_afresh();
        drain();
        fill(&number);
        uint32_t filled = number;
        CHECK(filled > 10);
        set_room(rewriting ? PH_JOURNAL_GROWTH_MIN : 0); /* for the new file, and nothing beyond it */
        struct answer answer = {.outcome = PH_COUNTED_NOT_YET};
        for (int i = 0; i < 1000 && answer.error == 0; i++) {
            if (rewriting && i < 2) {
                want_rewrite();
            }
            if (tally.batches->length > PH_BATCH_HEAD) {
                hand_over_and_hold();
                answer = fill(&number);
                let_go();
            } else {
                round_of_loop();
                await_commit();
            }
            answer = answer.error == 0 ? fill(&number) : answer;
        }
        CHECK_EQ_U64(answer.error, PH_ERR_STORAGE_FULL);
        CHECK(number > filled);
        drain();
        CHECK_EQ_U64(has_failed(), 0);
        set_room(-1);
        for (answer.outcome = PH_COUNTED_NOT_YET, answer.error = 1;
             answer.outcome == PH_COUNTED_NOT_YET || answer.error != 0;) {
            struct name name = new_name(number, 4000);
            answer = ask(CLIENTS, &name, 1, 0, 0);
            await_commit();
            round_of_loop();
        }
        drain();
        die();
        REQUIRE(open_dense() == 0);
        for (uint32_t i = 0; i <= number; i++) {
            struct name name = new_name(i, 4000);
            struct ph_bytes bytes = {(const uint8_t *)name.text, name.length};
            const struct ph_counter *counter = ph_counters_find(&tally.batches->counters, PH_KIND_OFFSET, bytes);
            CHECK(counter != NULL && counter->next >= 1);
        }
        die();
    }
}

/* F9, F35: who is told that the disk hangs asks again, and has no answer either before the first request is durable. */
static void test_a_retry_after_a_stall(void) {
    struct name name = new_name(1, 20);
    uint64_t stall_ms_max = tally.stall_ms_max;
    start_afresh();
    drain();
    CHECK_EQ_U64(ask(CLIENTS, &name, 1, 0, 0).outcome, PH_COUNTED_LATER);
    hand_over_and_hold();
    CHECK_EQ_U64(ask(CLIENTS, &name, 3, 77, 1).outcome, PH_COUNTED_LATER);
    tally.stall_ms_max = 1000;
    mint.monotonic_ns += UINT64_C(2000000000);
    round_of_loop();
    CHECK_EQ_U64(tally.batches->count, 0); /* both have been told */
    CHECK_EQ_U64(ask(CLIENTS, &name, 3, 77, 1).error, PH_ERR_CEILING_STALLED);
    sem_post(&disk.may_return);
    await_commit();
    round_of_loop();
    sem_wait(&disk.entered); /* the second one's batch */
    struct answer answer = ask(CLIENTS, &name, 3, 77, 1);
    CHECK_EQ_U64(answer.outcome, PH_COUNTED_LATER);
    round_of_loop();
    CHECK_EQ_U64(tally.batches->count, 1);
    let_go();
    round_of_loop();
    CHECK_EQ_U64(tally.batches->count, 0);
    CHECK_EQ_U64(ask(CLIENTS, &name, 1, 77, 1).error, PH_ERR_BAD_REQUEST); /* the same token for another count */
    tally.stall_ms_max = stall_ms_max;
    die();
}

/* However much is counted meanwhile, a rewrite comes to its end. */
static void test_a_rewrite_ends_under_load(void) {
    uint64_t session = 1000;
    int rounds = 0;
    struct name name = new_name(1, 20);
    start_afresh();
    begin_rewrite();
    while (ph_load_relaxed(&tally.batches->committer.rewriting) != 0 && ++rounds < 200) {
        struct answer answer;
        do {
            session++;
            answer = ask(CLIENTS + (uint32_t)session, &name, 1, session, 0);
            CHECK_EQ_U64(answer.error, 0);
        } while (answer.outcome == PH_COUNTED_LATER);
        round_of_loop();
        await_commit();
    }
    CHECK_EQ_U64(ph_load_relaxed(&tally.batches->committer.rewriting), 0);
    CHECK(rounds > 2);
    die();
}

/* --- what a crash cannot leave */

static int pass(void *nothing, const uint8_t *records, size_t length) {
    (void)nothing, (void)records, (void)length;
    return 0;
}

static void expect_refusal(int code) {
    CHECK_EQ_U64(open_dense(), code);
    CHECK(tally.batches == NULL);
}

static void write_over(enum disk_name name, off_t at) {
    static const uint8_t rubbish[64];
    int fd = open(disk.path[name], O_WRONLY | O_CLOEXEC);
    REQUIRE(fd >= 0 && syscall(SYS_pwrite64, fd, rubbish, sizeof rubbish, at) == sizeof rubbish);
    close(fd);
}

/* F2: the Obelisk names the journal, and how far it has come at least. */
static void test_another_journal_is_refused(void) {
    make_history();
    first_life();
    stop_cleanly();
    uint64_t id = known_id, batch = known_batch;
    known_batch = batch + 1;
    expect_refusal(PH_ERR_COUNTERS_MISSING);
    known_batch = batch;
    known_id = id + 1;
    expect_refusal(PH_ERR_COUNTERS_CORRUPT);
    known_id = id;
    REQUIRE(open_dense() == 0);
    off_t last = (off_t)tally.batches->committer.journal.last_at;
    die();
    write_over(DISK_BASE, last); /* the last batch: only the Obelisk knows that there was one */
    expect_refusal(PH_ERR_COUNTERS_MISSING);
    known_batch = batch - 1;
    REQUIRE(open_dense() == 0);
    CHECK_EQ_U64(tally.batches->handed, batch - 1);
    die();
    REQUIRE(unlink(disk.path[DISK_BASE]) == 0);
    expect_refusal(PH_ERR_COUNTERS_MISSING);
    known_id = known_batch = 0;
    config.path = "/dev/null/cannot be looked up"; /* unknown is not absent */
    expect_refusal(PH_ERR_STATE_DIR_UNUSABLE);
    config.path = disk.path[DISK_BASE];
    REQUIRE(open_dense() == 0 && tally.batches == NULL);
}

/* Dies right after a rewrite has begun. Returns where the last batch of the first file is; the Obelisk knows of that one. */
static off_t begin_rewrite_and_die(void) {
    make_history();
    first_life();
    struct ph_journal *journal = &tally.batches->committer.journal;
    begin_rewrite();
    known_batch = journal->first - 1;
    die();
    struct ph_journal base;
    struct ph_fault fault;
    REQUIRE(ph_journal_open(&base, disk.path[DISK_BASE], &config.identity, 0, pass, NULL, &fault) == 0);
    ph_journal_close(&base);
    return (off_t)base.last_at;
}

/* F2: the second file goes on exactly where the first one ends, and is not missed silently. */
static void test_files_that_do_not_fit_are_refused(void) {
    struct ph_journal journal;
    struct ph_fault fault;
    off_t last = begin_rewrite_and_die();
    uint64_t id = known_id;
    write_over(DISK_BASE, last);
    expect_refusal(PH_ERR_COUNTERS_CORRUPT);
    begin_rewrite_and_die();
    write_over(DISK_NEXT, 0);
    expect_refusal(PH_ERR_COUNTERS_CORRUPT);
    begin_rewrite_and_die();
    known_batch++;
    REQUIRE(unlink(disk.path[DISK_NEXT]) == 0);
    expect_refusal(PH_ERR_COUNTERS_MISSING);
    for (int other_id = 0; other_id < 2; other_id++) {
        begin_rewrite_and_die();
        id = known_id + (uint64_t)other_id;
        uint64_t first = known_batch + (other_id ? 1 : 2);
        disk.cached[DISK_NEXT] = DISK_NONE;
        REQUIRE(ph_journal_create(&journal, disk.path[DISK_NEXT], &config.identity, id, first, &fault) == 0);
        ph_journal_close(&journal);
        expect_refusal(PH_ERR_COUNTERS_CORRUPT);
    }
    begin_rewrite_and_die();
    REQUIRE(syscall(SYS_renameat, AT_FDCWD, disk.path[DISK_NEXT], AT_FDCWD, disk.path[DISK_BASE]) == 0);
    expect_refusal(PH_ERR_COUNTERS_CORRUPT); /* it does not hold all counters yet */
}

/* To look at it changes nothing. */
static void test_inspection(void) {
    struct ph_dense_report report;
    struct ph_fault fault;
    begin_rewrite_and_die();
    uint64_t writes = disk.writes, syncs = disk.syncs;
    CHECK_EQ_U64(ph_dense_inspect(disk.path[DISK_BASE], &config.identity, &report, &fault), 0);
    CHECK_EQ_U64(report.id, known_id);
    CHECK_EQ_U64(report.batch, known_batch + 1);
    CHECK_EQ_U64(report.counters, BALLAST + 1);
    CHECK_EQ_U64(report.sessions, 0);
    CHECK_EQ_U64(disk.writes, writes);
    CHECK_EQ_U64(disk.syncs, syncs);
    write_over(DISK_NEXT, 0);
    CHECK_EQ_U64(ph_dense_inspect(disk.path[DISK_BASE], &config.identity, &report, &fault), PH_ERR_COUNTERS_CORRUPT);
}

int main(void) {
    disk_start("dense");
    chances = (struct random){random_u64(&disk.random)};
    configure();
    RUN(test_failures_while_stopping);
    RUN(test_random_lives);
    RUN(test_crashes_while_rewriting);
    RUN(test_what_is_admitted_fits);
    RUN(test_a_retry_after_a_stall);
    RUN(test_a_rewrite_ends_under_load);
    RUN(test_another_journal_is_refused);
    RUN(test_files_that_do_not_fit_are_refused);
    RUN(test_inspection);
    disk_end();
    return check_report();
}
