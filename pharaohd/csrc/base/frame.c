#include "base/frame.h"

#include <assert.h>
#include <endian.h>
#include <stdio.h>
#include <string.h>

#include "ph_errors.h"

enum kind {
    KIND_UINT,   /* never negative */
    KIND_SIGNED, /* may be negative */
    KIND_BYTES,  /* str and bin */
    KIND_ARRAY,
    KIND_OTHER,       /* nil, and what no request is made of */
    KIND_CUT,         /* from here on no value: its head has not arrived yet */
    KIND_UNUSED_BYTE, /* … it is the one byte that MessagePack leaves unused */
    KIND_TOO_LONG,    /* … it announces more than a frame may hold */
};

/* What its first byte says of a value. A length field counts bytes beside `payload`, or values, `values` for each. */
struct shape {
    uint8_t kind;
    uint8_t payload; /* bytes behind its head */
    uint8_t values;  /* values behind its head */
    uint8_t field;   /* bytes of its length field */
};

#define FIXMAP(n) {KIND_OTHER, 0, 2 * (n), 0}
#define FIXARRAY(n) {KIND_ARRAY, 0, n, 0}
#define FIXSTR(n) {KIND_BYTES, n, 0, 0}
#define UP_4(of, n) of(n), of((n) + 1), of((n) + 2), of((n) + 3)
#define UP_16(of, n) UP_4(of, n), UP_4(of, (n) + 4), UP_4(of, (n) + 8), UP_4(of, (n) + 12)

static const struct shape shapes[256] = {
    [0x00 ... 0x7f] = {KIND_UINT, 0, 0, 0},
    [0x80] = UP_16(FIXMAP, 0),
    [0x90] = UP_16(FIXARRAY, 0),
    [0xa0] = UP_16(FIXSTR, 0),
    [0xb0] = UP_16(FIXSTR, 16),
    [0xc0] = {KIND_OTHER, 0, 0, 0},       /* nil */
    [0xc1] = {KIND_UNUSED_BYTE, 0, 0, 1}, /* a field that is never read: so that it is looked at closely */
    [0xc2 ... 0xc3] = {KIND_OTHER, 0, 0, 0},
    [0xc4] = {KIND_BYTES, 0, 0, 1}, /* bin */
    [0xc5] = {KIND_BYTES, 0, 0, 2},
    [0xc6] = {KIND_BYTES, 0, 0, 4},
    [0xc7] = {KIND_OTHER, 1, 0, 1}, /* ext: its type is a byte more */
    [0xc8] = {KIND_OTHER, 1, 0, 2},
    [0xc9] = {KIND_OTHER, 1, 0, 4},
    [0xca] = {KIND_OTHER, 4, 0, 0}, /* float */
    [0xcb] = {KIND_OTHER, 8, 0, 0},
    [0xcc] = {KIND_UINT, 1, 0, 0},
    [0xcd] = {KIND_UINT, 2, 0, 0},
    [0xce] = {KIND_UINT, 4, 0, 0},
    [0xcf] = {KIND_UINT, 8, 0, 0},
    [0xd0] = {KIND_SIGNED, 1, 0, 0},
    [0xd1] = {KIND_SIGNED, 2, 0, 0},
    [0xd2] = {KIND_SIGNED, 4, 0, 0},
    [0xd3] = {KIND_SIGNED, 8, 0, 0},
    [0xd4] = {KIND_OTHER, 2, 0, 0}, /* fixext */
    [0xd5] = {KIND_OTHER, 3, 0, 0},
    [0xd6] = {KIND_OTHER, 5, 0, 0},
    [0xd7] = {KIND_OTHER, 9, 0, 0},
    [0xd8] = {KIND_OTHER, 17, 0, 0},
    [0xd9] = {KIND_BYTES, 0, 0, 1}, /* str */
    [0xda] = {KIND_BYTES, 0, 0, 2},
    [0xdb] = {KIND_BYTES, 0, 0, 4},
    [0xdc] = {KIND_ARRAY, 0, 1, 2},
    [0xdd] = {KIND_ARRAY, 0, 1, 4},
    [0xde] = {KIND_OTHER, 0, 2, 2}, /* map */
    [0xdf] = {KIND_OTHER, 0, 2, 4},
    [0xe0 ... 0xff] = {KIND_OTHER, 0, 0, 0},
};

/* What its head says of a value. No number here is more than twice the frame limit. */
struct value {
    uint32_t kind;
    uint32_t bytes; /* head and payload */
    uint32_t payload;
    uint32_t values;
};

static inline uint64_t big_endian(const uint8_t *data, uint32_t size) {
    uint16_t of_two;
    uint32_t of_four;
    uint64_t of_eight;
    switch (size) {
    case 1:
        return data[0];
    case 2:
        memcpy(&of_two, data, sizeof of_two);
        return be16toh(of_two);
    case 4:
        memcpy(&of_four, data, sizeof of_four);
        return be32toh(of_four);
    default:
        memcpy(&of_eight, data, sizeof of_eight);
        return be64toh(of_eight);
    }
}

static __attribute__((noinline)) struct value value_with_field(const uint8_t *data, size_t available) {
    struct shape shape = shapes[data[0]];
    if (shape.kind == KIND_UNUSED_BYTE) {
        return (struct value){.kind = KIND_UNUSED_BYTE};
    }
    uint32_t head = 1U + shape.field;
    if (available < head) {
        return (struct value){.kind = KIND_CUT};
    }
    uint64_t number = big_endian(data + 1, shape.field);
    if (number > PH_FRAME_BYTES_MAX) {
        return (struct value){.kind = KIND_TOO_LONG};
    }
    uint32_t payload = shape.values > 0 ? 0 : shape.payload + (uint32_t)number;
    return (struct value){shape.kind, head + payload, payload, shape.values * (uint32_t)number};
}

/* Looks at no more than `available` bytes, one at least. The payload may reach beyond them. */
static inline struct value value_at(const uint8_t *data, size_t available) {
    const struct shape *shape = &shapes[data[0]];
    if (shape->field > 0) {
        return value_with_field(data, available);
    }
    return (struct value){shape->kind, 1U + shape->payload, shape->payload, shape->values};
}

#define TEXT_OF(number) #number
#define TEXT(number) TEXT_OF(number)
static const char unused_byte[] = "a byte c1, which MessagePack does not use";
static const char no_array[] = "it is no array";
static const char too_long[] = "more than " TEXT(PH_FRAME_BYTES_MAX) " bytes, or so many announced";
static const char too_deep[] = "more than " TEXT(PH_FRAME_DEPTH_MAX) " arrays or maps within each other";
static const char no_kind[] = "it does not begin with 0, 1 or 2";
static const char no_message_id[] = "its msgid is no unsigned number of 32 bits";
static const char no_reply[] = "a reply is [1, msgid, error, result]";
static const char no_request[] = "a request is [0, msgid, method, params]";
static const char no_method[] = "a method is a str or bin";
static const char no_params[] = "params are an array";

/* One value is behind the scanner: closes every container that it was the last of. */
static void value_done(struct ph_scan *scan) {
    while (--scan->left[scan->depth] == 0 && scan->depth > 0) {
        scan->depth--;
    }
}

static enum ph_scan_result refuse(struct ph_scan *scan, const char *rule) {
    scan->broken = rule;
    return PH_SCAN_MALFORMED;
}

enum ph_scan_result ph_frame_scan(struct ph_scan *scan, const uint8_t *data, size_t length) {
    if (scan->position == 0 && length > 0) {
        if (shapes[data[0]].kind != KIND_ARRAY) {
            return refuse(scan, no_array);
        }
        scan->depth = 0;
        scan->left[0] = 1; /* the message itself */
    }
    while (scan->position < length && scan->left[0] > 0) {
        struct value value = value_at(data + scan->position, length - scan->position);
        if (value.kind == KIND_CUT) {
            return PH_SCAN_MORE;
        }
        if (value.kind == KIND_UNUSED_BYTE) {
            return refuse(scan, unused_byte);
        }
        if (value.kind == KIND_TOO_LONG || scan->position + value.bytes + value.values > PH_FRAME_BYTES_MAX) {
            return refuse(scan, too_long);
        }
        if (value.values > 0 && scan->depth == PH_FRAME_DEPTH_MAX) {
            return refuse(scan, too_deep);
        }
        scan->position += value.bytes;
        if (value.values > 0) {
            scan->left[++scan->depth] = value.values;
        } else {
            value_done(scan);
        }
    }
    return scan->position > 0 && scan->left[0] == 0 && scan->position <= length ? PH_SCAN_FRAME : PH_SCAN_MORE;
}

/* The next value, which lies whole before `end`; otherwise there is none: CUT. */
static inline struct value next_value(const struct ph_reader *reader) {
    size_t available = (size_t)(reader->end - reader->at);
    struct value none = {.kind = KIND_CUT};
    if (reader->failed || available == 0) {
        return none;
    }
    struct value value = value_at(reader->at, available);
    return value.bytes <= available ? value : none;
}

static inline uint32_t read_array(struct ph_reader *reader) {
    struct value value = next_value(reader);
    if (value.kind != KIND_ARRAY) {
        reader->failed = 1;
        return 0;
    }
    reader->at += value.bytes;
    return value.values;
}

static inline uint64_t read_uint(struct ph_reader *reader) {
    struct value value = next_value(reader);
    if (value.kind > KIND_SIGNED) {
        reader->failed = 1;
        return 0;
    }
    uint64_t number = value.payload == 0 ? reader->at[0] : big_endian(reader->at + 1, value.payload);
    if (value.kind == KIND_SIGNED && number >> (8 * value.payload - 1)) {
        reader->failed = 1; /* negative: no parameter takes it */
        return 0;
    }
    reader->at += value.bytes;
    return number;
}

static inline struct ph_bytes read_bytes(struct ph_reader *reader) {
    struct value value = next_value(reader);
    if (value.kind != KIND_BYTES) {
        reader->failed = 1;
        return (struct ph_bytes){NULL, 0};
    }
    reader->at += value.bytes;
    return (struct ph_bytes){reader->at - value.payload, value.payload};
}

uint32_t ph_read_array(struct ph_reader *reader) { return read_array(reader); }

uint64_t ph_read_uint(struct ph_reader *reader) { return read_uint(reader); }

struct ph_bytes ph_read_key(struct ph_reader *reader) { return read_bytes(reader); }

int ph_read_nil(struct ph_reader *reader) {
    if (reader->failed || reader->at == reader->end || *reader->at != 0xc0) {
        return 0;
    }
    reader->at++;
    return 1;
}

/* What stands behind the msgid of a request. Returns the rule that it breaks, NULL for none. */
static const char *read_rest(struct ph_reader *reader, uint32_t count, struct ph_request *request) {
    if (count != 4) {
        return no_request;
    }
    request->method = read_bytes(reader);
    if (reader->failed) {
        return no_method;
    }
    request->param_count = read_array(reader);
    return reader->failed ? no_params : NULL;
}

static enum ph_message_kind bad(struct ph_request *request, const char *rule) {
    request->broken = rule;
    return PH_MESSAGE_BAD;
}

enum ph_message_kind ph_frame_read(const uint8_t *frame, size_t length, struct ph_request *request) {
    struct ph_reader reader = {frame, frame + length, 0};
    uint32_t count = read_array(&reader);
    uint64_t kind = read_uint(&reader);
    request->bytes = (uint32_t)length;
    if (reader.failed || kind > PH_MESSAGE_NOTIFICATION) {
        return bad(request, no_kind);
    }
    if (kind == PH_MESSAGE_NOTIFICATION) {
        return PH_MESSAGE_NOTIFICATION;
    }
    uint64_t message_id = read_uint(&reader);
    if (reader.failed || message_id > UINT32_MAX) {
        return bad(request, no_message_id);
    }
    if (kind == PH_MESSAGE_RESPONSE && count != 4) {
        return bad(request, no_reply);
    }
    request->message_id = (uint32_t)message_id;
    request->broken = kind == PH_MESSAGE_REQUEST ? read_rest(&reader, count, request) : NULL;
    request->params = reader;
    return (enum ph_message_kind)kind;
}

/*
 * The short way, for a request that is there as a whole: its length, or 0, which says nothing about it. So few containers
 * cannot be nested too deeply.
 */
static size_t whole_request(const uint8_t *data, size_t length, struct ph_request *request) {
    if (length < 2 || data[0] != 0x94 || data[1] != PH_MESSAGE_REQUEST) {
        return 0;
    }
    const uint8_t *end = data + (length < PH_FRAME_BYTES_MAX ? length : PH_FRAME_BYTES_MAX);
    struct ph_reader reader = {data + 2, end, 0};
    uint64_t message_id = read_uint(&reader);
    struct ph_bytes method = read_bytes(&reader);
    uint32_t param_count = read_array(&reader);
    const uint8_t *params = reader.at;
    uint32_t containers = 2;
    for (uint32_t left = param_count; left > 0; left--) {
        struct value value = next_value(&reader);
        containers += value.values > 0;
        if (value.kind >= KIND_CUT || containers > PH_FRAME_DEPTH_MAX) {
            return 0;
        }
        reader.at += value.bytes;
        left += value.values;
    }
    if (reader.failed || message_id > UINT32_MAX) {
        return 0;
    }
    *request = (struct ph_request){.bytes = (uint32_t)(reader.at - data),
                                   .message_id = (uint32_t)message_id,
                                   .method = method,
                                   .param_count = param_count,
                                   .params = {params, reader.at, 0}};
    return request->bytes;
}

enum ph_message_kind ph_frame_next(struct ph_scan *scan, const uint8_t *data, size_t length,
                                   struct ph_request *request) {
    if (scan->position == 0 && whole_request(data, length, request) > 0) {
        return PH_MESSAGE_REQUEST;
    }
    switch (ph_frame_scan(scan, data, length)) {
    case PH_SCAN_MORE:
        return PH_MESSAGE_MORE;
    case PH_SCAN_FRAME:
        return ph_frame_read(data, scan->position, request);
    default:
        return bad(request, scan->broken);
    }
}

static uint8_t *room(struct ph_writer *writer, size_t length) {
    assert(writer->length + length <= writer->capacity);
    uint8_t *at = writer->data + writer->length;
    writer->length += length;
    return at;
}

void ph_put_raw(struct ph_writer *writer, const void *data, size_t length) {
    memcpy(room(writer, length), data, length);
}

static void put_number(struct ph_writer *writer, uint8_t kind, uint64_t value, uint32_t size) {
    uint8_t *at = room(writer, 1 + (size_t)size);
    uint64_t big_endian = htobe64(value << (64 - 8 * size));
    at[0] = kind;
    memcpy(at + 1, &big_endian, size);
}

void ph_put_uint(struct ph_writer *writer, uint64_t value) {
    if (value <= 0x7f) {
        *room(writer, 1) = (uint8_t)value;
    } else if (value <= UINT8_MAX) {
        put_number(writer, 0xcc, value, 1);
    } else if (value <= UINT16_MAX) {
        put_number(writer, 0xcd, value, 2);
    } else if (value <= UINT32_MAX) {
        put_number(writer, 0xce, value, 4);
    } else {
        put_number(writer, 0xcf, value, 8);
    }
}

void ph_put_array(struct ph_writer *writer, uint32_t count) {
    if (count <= 15) {
        *room(writer, 1) = (uint8_t)(0x90 | count);
    } else {
        put_number(writer, 0xdd, count, 4);
    }
}

void ph_put_map(struct ph_writer *writer, uint32_t count) {
    if (count <= 15) {
        *room(writer, 1) = (uint8_t)(0x80 | count);
    } else {
        put_number(writer, 0xdf, count, 4);
    }
}

void ph_put_text(struct ph_writer *writer, const char *text) {
    size_t length = strlen(text);
    if (length <= 31) {
        *room(writer, 1) = (uint8_t)(0xa0 | length);
    } else {
        put_number(writer, 0xda, length, 2);
    }
    ph_put_raw(writer, text, length);
}

void ph_put_binary(struct ph_writer *writer, const void *data, size_t length) {
    put_number(writer, 0xc5, length, 2);
    ph_put_raw(writer, data, length);
}

void ph_put_bool(struct ph_writer *writer, int value) { *room(writer, 1) = value ? 0xc3 : 0xc2; }

void ph_put_nil(struct ph_writer *writer) { *room(writer, 1) = 0xc0; }

void ph_put_reply(struct ph_writer *writer, uint32_t message_id) {
    ph_put_array(writer, 4);
    ph_put_uint(writer, PH_MESSAGE_RESPONSE);
    ph_put_uint(writer, message_id);
    ph_put_nil(writer);
}

void ph_put_error(struct ph_writer *writer, uint32_t message_id, int code, const char *detail) {
    const struct ph_error_info *info = ph_error_info(code);
    char message[512];
    assert(info != NULL);
    if (detail == NULL) {
        snprintf(message, sizeof message, "%s", info->message);
    } else {
        snprintf(message, sizeof message, "%s: %s", info->message, detail);
    }
    ph_put_array(writer, 4);
    ph_put_uint(writer, PH_MESSAGE_RESPONSE);
    ph_put_uint(writer, message_id);
    ph_put_array(writer, 5);
    ph_put_uint(writer, (uint64_t)info->code);
    ph_put_text(writer, info->name);
    ph_put_text(writer, message);
    ph_put_bool(writer, info->retryable);
    ph_put_text(writer, info->hint);
    ph_put_nil(writer);
}
