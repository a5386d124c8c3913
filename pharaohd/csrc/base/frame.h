/*
 * MessagePack-RPC frames: finding their end, reading requests, writing replies.
 *
 * Invariants
 * - One table says how long each value is. The scanner and all readers go by it, and by nothing else.
 * - Every length is checked against what has arrived before a byte behind it is read, and against the frame limit before
 *   anything is taken for it: a header that announces more than PH_FRAME_BYTES_MAX is malformed at once.
 * - Nesting is bounded; the scanner keeps its place, so that no byte is looked at again however slowly they arrive.
 * - The short way (whole_request) says what scanner and ph_frame_read() would say, or nothing: it reads the values of a
 *   frame from its first byte on, in their order and by the same readers; each lies whole within what has arrived and
 *   within the limit, so where the last one ends the frame ends; fewer containers than may be nested are not nested too
 *   deeply. It is tried only where the scanner has not begun, and neither reads nor leaves anything there. (F46)
 * - Readers never move past `end`; after a failure the reader stays failed.
 */
#ifndef PH_FRAME_H
#define PH_FRAME_H

#include <stddef.h>
#include <stdint.h>

#include "ph_limits.h"

enum ph_scan_result { PH_SCAN_MORE = 0, PH_SCAN_FRAME = 1, PH_SCAN_MALFORMED = 2 };

/* The place in a frame that has arrived in part. Position 0: before a frame's first byte. */
struct ph_scan {
    uint32_t position; /* may lie beyond the bytes that have arrived */
    uint32_t depth;
    uint32_t left[PH_FRAME_DEPTH_MAX + 1]; /* values still to come, by depth */
    const char *broken;                    /* MALFORMED: the rule that the frame breaks */
};

/* `data` begins with the frame. On PH_SCAN_FRAME scan->position is its length; the caller sets it to 0 for the next. */
enum ph_scan_result ph_frame_scan(struct ph_scan *scan, const uint8_t *data, size_t length);

struct ph_reader {
    const uint8_t *at;
    const uint8_t *end;
    int failed;
};

struct ph_bytes {
    const uint8_t *data;
    uint32_t length;
};

/* Each reads one value of the given kind; any other kind fails the reader. */
uint32_t ph_read_array(struct ph_reader *reader);
uint64_t ph_read_uint(struct ph_reader *reader);
struct ph_bytes ph_read_key(struct ph_reader *reader); /* str or bin */
int ph_read_nil(struct ph_reader *reader);             /* takes a nil if there is one */

struct ph_request {
    uint32_t bytes; /* of the whole frame */
    uint32_t message_id;
    struct ph_bytes method;
    uint32_t param_count;
    struct ph_reader params;
    const char *broken; /* the rule that the message breaks, NULL for none */
};

enum ph_message_kind {
    PH_MESSAGE_MORE = -2, /* not all of it has arrived */
    PH_MESSAGE_BAD = -1,  /* nothing that could be answered */
    PH_MESSAGE_REQUEST = 0,
    PH_MESSAGE_RESPONSE = 1,
    PH_MESSAGE_NOTIFICATION = 2
};

/*
 * `frame` is one whole frame. A request is all that has a msgid to be answered with: if it breaks a rule behind that, it
 * has neither method nor params. Of a response only message_id and params (error and result, raw) are filled in.
 */
enum ph_message_kind ph_frame_read(const uint8_t *frame, size_t length, struct ph_request *request);

/* Both in one: what `data` begins with, and how long that is. */
enum ph_message_kind ph_frame_next(struct ph_scan *scan, const uint8_t *data, size_t length,
                                   struct ph_request *request);

/* Appends to `out`; the caller has made sure that there is room (PH_REPLY_BYTES_MAX per reply). */
struct ph_writer {
    uint8_t *data;
    size_t length;
    size_t capacity;
};

void ph_put_array(struct ph_writer *writer, uint32_t count);
void ph_put_map(struct ph_writer *writer, uint32_t count);
void ph_put_uint(struct ph_writer *writer, uint64_t value);
void ph_put_text(struct ph_writer *writer, const char *text);
void ph_put_binary(struct ph_writer *writer, const void *data, size_t length); /* 65535 bytes at most */
void ph_put_bool(struct ph_writer *writer, int value);
void ph_put_nil(struct ph_writer *writer);
void ph_put_raw(struct ph_writer *writer, const void *data, size_t length);
/* The head of a successful reply: the result follows. */
void ph_put_reply(struct ph_writer *writer, uint32_t message_id);
/* A whole error reply, from the table of spec/errors.toml; `detail` may be NULL. */
void ph_put_error(struct ph_writer *writer, uint32_t message_id, int code, const char *detail);

#endif
