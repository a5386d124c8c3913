/*
 * Strict requests: one client that asks three times, and may give an answer up and ask anew; a worker that looks
 * without being rung for a while after it answered (exchange() in libpharaoh/csrc/ph_ring.c; ph_producer_request(),
 * ph_producer_answer() in pharaohd/csrc/producer.c; ph_rings_poll() in pharaohd/csrc/ring.c).
 *
 * Checked: a request gets the answer that was made for it, after it was posted; nobody sleeps for ever.
 */
#define REQUESTS 3

/* Shared memory. */
byte request_number;
byte request_after; /* told apart by the number of the request that it belongs to */
byte request_waiting;
byte answer_number;
byte answer_value; /* the number of the request whose `after` it exceeds */
bool polling;
/* The kernel. */
bool doorbell;
bool asleep;
/* The worker's own. */
byte answered;

inline look() {
    number = request_number;
    if
    :: number != answered ->
        after = request_after;
#ifdef BUG_ANSWERS_BEFORE_THE_VALUE
        answer_number = number;
        answer_value = after;
#else
        answer_value = after;
        answer_number = number;
#endif
        answered = number;
        if
        :: request_waiting == number -> asleep = false
        :: else
        fi
    :: else
    fi
}

active proctype worker() {
    byte number, after;
end:
    do
    :: doorbell ->
        doorbell = false;
        look();
        polling = true;
        do
        :: look()
        :: break
        od;
        polling = false;
#ifndef BUG_NO_LAST_LOOK
        look()
#endif
    od
}

active proctype client() {
    byte number;
    bool polled;
    do
    :: number == REQUESTS -> break
    :: number < REQUESTS ->
        number++;
#ifdef BUG_LOOKS_BEFORE_IT_POSTS
        polled = polling;
        request_after = number;
        request_number = number;
#else
        request_after = number;
        request_number = number;
        polled = polling;
#endif
        if
        :: !polled -> doorbell = true
        :: polled
        fi;
        /* await_answer() */
#ifndef BUG_DOES_NOT_SAY_THAT_IT_WAITS
        request_waiting = number;
#endif
        do
        :: answer_number == number -> assert(answer_value == number); break
        :: answer_number != number ->
            d_step {
                if
                :: answer_number != number -> asleep = true
                :: else
                fi
            }
            if
            :: !asleep
            :: number < REQUESTS -> asleep = false; break /* it gives up and asks anew */
            fi
        od
    od
}
