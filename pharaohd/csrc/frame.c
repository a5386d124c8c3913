#include "frame.h"

#include <assert.h>
#include <endian.h>
#include <stdio.h>
#include <string.h>

#include "ph_errors.h"

static uint64_t big_endian(const uint8_t *data, uint32_t size) {
    uint64_t value = 0;
    for (uint32_t i = 0; i < size; i++) {
        value = value << 8 | data[i];
    }
    return value;
}

/* What a value's first bytes say: how long its head is, how many bytes of payload and how many values follow. */
struct head {
    uint32_t bytes;
    uint64_t payload;
    uint64_t values;
};

/* Payload of the fixed-size kinds 0xc0 … 0xdf; those with a length field are told apart by LENGTH and COUNT below. */
enum { LENGTH1 = 100, LENGTH2, LENGTH4, EXT1, EXT2, EXT4, ARRAY2, ARRAY4, MAP2, MAP4, INVALID };
static const uint8_t kind_of[32] = {
    /* c0 */ 0,    INVALID, 0,       0,       LENGTH1, LENGTH2, LENGTH4, EXT1,
    /* c8 */ EXT2, EXT4,    4,       8,       1,       2,       4,       8,
    /* d0 */ 1,    2,       4,       8,       2,       3,       5,       9,
    /* d8 */ 17,   LENGTH1, LENGTH2, LENGTH4, ARRAY2,  ARRAY4,  MAP2,    MAP4,
};

/* 1: understood; 0: more bytes are needed; -1: not MessagePack. */
static int read_head(const uint8_t *data, size_t available, struct head *head) {
    uint8_t first = data[0];
    *head = (struct head){1, 0, 0};
    if (first <= 0x7f || first >= 0xe0) {
        return 1;
    }
    if (first <= 0x8f) {
        head->values = 2 * (uint64_t)(first & 0x0f);
        return 1;
    }
    if (first <= 0x9f) {
        head->values = first & 0x0f;
        return 1;
    }
    if (first <= 0xbf) {
        head->payload = first & 0x1f;
        return 1;
    }
    uint8_t kind = kind_of[first - 0xc0];
    if (kind < LENGTH1) {
        head->payload = kind;
        return 1;
    }
    if (kind == INVALID) {
        return -1;
    }
    static const uint8_t field_bytes[] = {1, 2, 4, 1, 2, 4, 2, 4, 2, 4};
    uint32_t field = field_bytes[kind - LENGTH1];
    if (available < 1 + (size_t)field) {
        return 0;
    }
    uint64_t number = big_endian(data + 1, field);
    head->bytes = 1 + field;
    if (kind >= ARRAY2) {
        head->values = kind >= MAP2 ? 2 * number : number;
    } else {
        head->payload = number + (kind >= EXT1 ? 1 : 0);
    }
    return 1;
}

/* One value is behind the scanner: closes every container that it was the last of. */
static void value_done(struct ph_scan *scan) {
    while (scan->depth > 0 && --scan->left[scan->depth - 1] == 0) {
        scan->depth--;
    }
}

static int whole(const struct ph_scan *scan) { return scan->position > 0 && scan->depth == 0; }

/*
 * The head of a request as nearly every client writes it: [0, number, short name, [few parameters. Fills in `request` and
 * returns where the parameters begin, or 0: then it is to be read value by value.
 */
static size_t usual_head(const uint8_t *data, size_t length, struct ph_request *request) {
    if (length < 4 || data[0] != 0x94 || data[1] != PH_MESSAGE_REQUEST) {
        return 0;
    }
    uint32_t number_bytes = data[2] <= 0x7f ? 0 : data[2] == 0xcc ? 1 : data[2] == 0xcd ? 2 : data[2] == 0xce ? 4 : 99;
    size_t name_at = 3 + (size_t)number_bytes;
    if (name_at >= length || (data[name_at] & 0xe0) != 0xa0) {
        return 0;
    }
    size_t name_length = data[name_at] & 0x1f;
    size_t params_at = name_at + 1 + name_length;
    if (params_at >= length || (data[params_at] & 0xf0) != 0x90) {
        return 0;
    }
    request->message_id = number_bytes == 0 ? data[2] : (uint32_t)big_endian(data + 3, number_bytes);
    request->method = (struct ph_bytes){data + name_at + 1, (uint32_t)name_length};
    request->param_count = data[params_at] & 0x0f;
    return params_at + 1;
}

/* Starts behind a usual head, which leaves nothing open but the parameters. */
static void scan_usual_head(struct ph_scan *scan, const uint8_t *data, size_t length) {
    struct ph_request request;
    size_t head_bytes = usual_head(data, length, &request);
    if (head_bytes > 0) {
        scan->position = (uint32_t)head_bytes;
        scan->depth = request.param_count > 0 ? 2 : 0;
        scan->left[0] = 1;
        scan->left[1] = request.param_count;
    }
}

enum ph_scan_result ph_frame_scan(struct ph_scan *scan, const uint8_t *data, size_t length) {
    if (scan->position == 0) {
        scan_usual_head(scan, data, length);
    }
    while (!whole(scan) && scan->position < length) {
        struct head head;
        int understood = read_head(data + scan->position, length - scan->position, &head);
        if (understood <= 0) {
            return understood < 0 ? PH_SCAN_MALFORMED : PH_SCAN_MORE;
        }
        if (scan->position == 0 && head.values == 0) {
            return PH_SCAN_MALFORMED; /* a message is an array */
        }
        if (scan->position + head.bytes + head.payload + head.values > PH_FRAME_BYTES_MAX) {
            return PH_SCAN_MALFORMED;
        }
        scan->position += head.bytes + (uint32_t)head.payload;
        if (head.values > 0) {
            if (scan->depth == PH_FRAME_DEPTH_MAX) {
                return PH_SCAN_MALFORMED;
            }
            scan->left[scan->depth++] = (uint32_t)head.values;
        } else {
            value_done(scan);
        }
    }
    return whole(scan) && scan->position <= length ? PH_SCAN_FRAME : PH_SCAN_MORE;
}

static int take_head(struct ph_reader *reader, uint8_t *first, struct head *head) {
    size_t available = (size_t)(reader->end - reader->at);
    if (reader->failed || available == 0 || read_head(reader->at, available, head) <= 0 ||
        head->bytes + head->payload > available) {
        reader->failed = 1;
        return 0;
    }
    *first = reader->at[0];
    return 1;
}

uint32_t ph_read_array(struct ph_reader *reader) {
    uint8_t first;
    struct head head;
    if (!take_head(reader, &first, &head) || !((first & 0xf0) == 0x90 || first == 0xdc || first == 0xdd)) {
        reader->failed = 1;
        return 0;
    }
    reader->at += head.bytes;
    return (uint32_t)head.values;
}

uint64_t ph_read_uint(struct ph_reader *reader) {
    uint8_t first;
    struct head head;
    if (!take_head(reader, &first, &head)) {
        return 0;
    }
    uint64_t value = first;
    if (first >= 0xcc && first <= 0xd3) {
        value = big_endian(reader->at + 1, (uint32_t)head.payload);
        /* d0 … d3 are signed: a negative number is not one that any parameter takes */
        if (first >= 0xd0 && value >> (8 * head.payload - 1)) {
            reader->failed = 1;
        }
    } else if (first > 0x7f) {
        reader->failed = 1;
    }
    reader->at += head.bytes + head.payload;
    return reader->failed ? 0 : value;
}

static struct ph_bytes read_bytes(struct ph_reader *reader, int binary_too) {
    uint8_t first;
    struct head head;
    struct ph_bytes bytes = {NULL, 0};
    if (!take_head(reader, &first, &head)) {
        return bytes;
    }
    int text = (first & 0xe0) == 0xa0 || (first >= 0xd9 && first <= 0xdb);
    int binary = first >= 0xc4 && first <= 0xc6;
    if (!text && !(binary_too && binary)) {
        reader->failed = 1;
        return bytes;
    }
    bytes.data = reader->at + head.bytes;
    bytes.length = (uint32_t)head.payload;
    reader->at += head.bytes + head.payload;
    return bytes;
}

struct ph_bytes ph_read_text(struct ph_reader *reader) { return read_bytes(reader, 0); }

struct ph_bytes ph_read_key(struct ph_reader *reader) { return read_bytes(reader, 1); }

int ph_read_nil(struct ph_reader *reader) {
    if (reader->failed || reader->at == reader->end || *reader->at != 0xc0) {
        return 0;
    }
    reader->at++;
    return 1;
}

enum ph_message_kind ph_frame_read(const uint8_t *frame, size_t length, struct ph_request *request) {
    size_t head_bytes = usual_head(frame, length, request);
    if (head_bytes > 0) {
        request->params = (struct ph_reader){frame + head_bytes, frame + length, 0};
        return PH_MESSAGE_REQUEST;
    }
    struct ph_reader reader = {frame, frame + length, 0};
    uint32_t count = ph_read_array(&reader);
    uint64_t kind = ph_read_uint(&reader);
    uint64_t message_id = 0;
    if (reader.failed || kind > PH_MESSAGE_NOTIFICATION || count != (kind == PH_MESSAGE_NOTIFICATION ? 3 : 4)) {
        return PH_MESSAGE_BAD;
    }
    if (kind != PH_MESSAGE_NOTIFICATION) {
        message_id = ph_read_uint(&reader);
    }
    if (kind != PH_MESSAGE_RESPONSE) {
        request->method = ph_read_text(&reader);
        request->param_count = ph_read_array(&reader);
    }
    request->message_id = (uint32_t)message_id;
    request->params = reader;
    return reader.failed || message_id > UINT32_MAX ? PH_MESSAGE_BAD : (enum ph_message_kind)kind;
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
