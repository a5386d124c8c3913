/* Frames against golden bytes, cut anywhere, and made to hurt (F36, F46). fuzz_frame.c looks for what is not listed here. */
#include <string.h>

#include "base/frame.h"
#include "check.h"
#include "ph_errors.h"
#include "random.h"

#define BYTES(...) (const uint8_t[]){__VA_ARGS__}, sizeof((const uint8_t[]){__VA_ARGS__})

static uint8_t buffer[2 * PH_FRAME_BYTES_MAX];
static struct ph_writer writer;

static void rewind_writer(void) { writer = (struct ph_writer){buffer, 0, sizeof buffer}; }

static void check_written(const uint8_t *expected, size_t length) {
    CHECK_EQ_U64(writer.length, length);
    CHECK(writer.length == length && memcmp(buffer, expected, length) == 0);
    rewind_writer();
}

static void test_writers(void) {
    static const struct {
        uint64_t value;
        uint8_t length;
        uint8_t bytes[9];
    } numbers[] = {
        {0, 1, {0x00}},
        {127, 1, {0x7f}},
        {128, 2, {0xcc, 0x80}},
        {255, 2, {0xcc, 0xff}},
        {256, 3, {0xcd, 0x01, 0x00}},
        {65535, 3, {0xcd, 0xff, 0xff}},
        {65536, 5, {0xce, 0x00, 0x01, 0x00, 0x00}},
        {UINT32_MAX, 5, {0xce, 0xff, 0xff, 0xff, 0xff}},
        {UINT64_C(1) << 32, 9, {0xcf, 0, 0, 0, 1, 0, 0, 0, 0}},
        {UINT64_MAX, 9, {0xcf, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}},
    };
    rewind_writer();
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        ph_put_uint(&writer, numbers[i].value);
        check_written(numbers[i].bytes, numbers[i].length);
    }
    ph_put_array(&writer, 0), check_written(BYTES(0x90));
    ph_put_array(&writer, 15), check_written(BYTES(0x9f));
    ph_put_array(&writer, 16), check_written(BYTES(0xdd, 0, 0, 0, 16));
    ph_put_map(&writer, 15), check_written(BYTES(0x8f));
    ph_put_map(&writer, 16), check_written(BYTES(0xdf, 0, 0, 0, 16));
    ph_put_nil(&writer), check_written(BYTES(0xc0));
    ph_put_bool(&writer, 0), check_written(BYTES(0xc2));
    ph_put_bool(&writer, 2), check_written(BYTES(0xc3));
    ph_put_text(&writer, ""), check_written(BYTES(0xa0));
    ph_put_text(&writer, "abc"), check_written(BYTES(0xa3, 'a', 'b', 'c'));
    ph_put_reply(&writer, 300), check_written(BYTES(0x94, 1, 0xcd, 0x01, 0x2c, 0xc0));
    char text[33] = {0};
    memset(text, 'x', 32);
    ph_put_text(&writer, text);
    CHECK(writer.length == 35 && memcmp(buffer, "\xda\x00\x20xx", 5) == 0);
}

static void test_error_reply(void) {
    rewind_writer();
    ph_put_error(&writer, 7, PH_ERR_OUT_OF_RANGE, "1 to 8192");
    struct ph_scan scan = {0};
    struct ph_request reply;
    CHECK(ph_frame_scan(&scan, buffer, writer.length) == PH_SCAN_FRAME && scan.position == writer.length);
    CHECK(ph_frame_read(buffer, writer.length, &reply) == PH_MESSAGE_RESPONSE);
    CHECK_EQ_U64(reply.message_id, 7);
    CHECK_EQ_U64(ph_read_array(&reply.params), 5);
    CHECK_EQ_U64(ph_read_uint(&reply.params), 4003);
    struct ph_bytes name = ph_read_key(&reply.params);
    CHECK(name.length == 12 && memcmp(name.data, "OUT_OF_RANGE", 12) == 0);
    struct ph_bytes message = ph_read_key(&reply.params);
    CHECK(message.length > 9 && memcmp(message.data + message.length - 9, "1 to 8192", 9) == 0);
    CHECK(!reply.params.failed);
}

static enum ph_scan_result scan_whole(const uint8_t *data, size_t length, uint32_t *end) {
    struct ph_scan scan = {0};
    enum ph_scan_result result = ph_frame_scan(&scan, data, length);
    *end = scan.position;
    return result;
}

static void test_requests(void) {
    struct ph_request request;
    static const uint8_t golden[] = {0x94, 0, 0xcd, 0x01, 0x00, 0xa4, 'p', 'i', 'n', 'g', 0x92, 0xc4, 1, 0xff, 0xc0};
    uint32_t end;
    CHECK(scan_whole(golden, sizeof golden, &end) == PH_SCAN_FRAME && end == sizeof golden);
    CHECK(ph_frame_read(golden, sizeof golden, &request) == PH_MESSAGE_REQUEST);
    CHECK_EQ_U64(request.message_id, 256);
    CHECK(request.method.length == 4 && memcmp(request.method.data, "ping", 4) == 0);
    CHECK_EQ_U64(request.param_count, 2);
    struct ph_bytes key = ph_read_key(&request.params);
    CHECK(key.length == 1 && key.data[0] == 0xff);
    CHECK(ph_read_nil(&request.params) && !request.params.failed && request.params.at == request.params.end);
    CHECK(!ph_read_nil(&request.params) && !request.params.failed);
    CHECK_EQ_U64(ph_read_uint(&request.params), 0);
    CHECK(request.params.failed);
}

/* A message as it is read, and the rule that it breaks by a part of its text. */
struct message {
    enum ph_message_kind kind;
    const char *broken;
    uint8_t length;
    uint8_t bytes[20];
};

static void check_message(const struct message *message) {
    struct ph_request request = {.broken = NULL};
    CHECK(ph_frame_read(message->bytes, message->length, &request) == message->kind);
    CHECK((request.broken != NULL) == (message->broken != NULL));
    CHECK(request.broken == NULL || strstr(request.broken, message->broken) != NULL);
}

/* What cannot be answered is refused; what can be is a request, however wrong. */
static void test_bad_messages(void) {
    static const struct message table[] = {
        {PH_MESSAGE_BAD, "0, 1 or 2", 1, {0x90}},
        {PH_MESSAGE_BAD, "0, 1 or 2", 6, {0x94, 3, 0, 0xa1, 'x', 0x90}},
        {PH_MESSAGE_BAD, "0, 1 or 2", 6, {0x94, 0xff, 0, 0xa1, 'x', 0x90}},
        {PH_MESSAGE_BAD, "0, 1 or 2", 6, {0x94, 0xc2, 0, 0xa1, 'x', 0x90}},
        {PH_MESSAGE_BAD, "0, 1 or 2", 5, {0x82, 0, 0, 1, 1}},
        {PH_MESSAGE_BAD, "msgid", 2, {0x91, 0}},
        {PH_MESSAGE_BAD, "msgid", 6, {0x94, 0, 0xd0, 0x80, 0xa0, 0x90}},
        {PH_MESSAGE_BAD, "msgid", 6, {0x94, 0, 0xff, 0xa1, 'x', 0x90}},
        {PH_MESSAGE_BAD, "msgid", 14, {0x94, 0, 0xcf, 0, 0, 0, 1, 0, 0, 0, 0, 0xa1, 'x', 0x90}},
        {PH_MESSAGE_BAD, "msgid", 9, {0x94, 0, 0xca, 0, 0, 0, 0, 0xa0, 0x90}},
        {PH_MESSAGE_BAD, "msgid", 6, {0x94, 0, 0xa1, '1', 0xa0, 0x90}},
        {PH_MESSAGE_BAD, "reply", 4, {0x93, 1, 7, 0xc0}},
        {PH_MESSAGE_BAD, "reply", 6, {0x95, 1, 7, 0xc0, 0xc0, 0xc0}},
        {PH_MESSAGE_REQUEST, "a request is", 3, {0x92, 0, 7}},
        {PH_MESSAGE_REQUEST, "a request is", 5, {0x93, 0, 7, 0xa1, 'x'}},
        {PH_MESSAGE_REQUEST, "a request is", 7, {0x95, 0, 7, 0xa1, 'x', 0x90, 0xc0}},
        {PH_MESSAGE_REQUEST, "a method is", 5, {0x94, 0, 7, 8, 0x90}},
        {PH_MESSAGE_REQUEST, "a method is", 5, {0x94, 0, 7, 0xc0, 0x90}},
        {PH_MESSAGE_REQUEST, "params are", 6, {0x94, 0, 7, 0xa1, 'x', 0xc0}},
        {PH_MESSAGE_REQUEST, "params are", 6, {0x94, 0, 7, 0xa1, 'x', 0x80}},
        {PH_MESSAGE_REQUEST, "params are", 7, {0x94, 0, 7, 0xa1, 'x', 0xa1, 'y'}},
        {PH_MESSAGE_REQUEST, NULL, 6, {0x94, 0, 7, 0xc4, 0, 0x90}},
        {PH_MESSAGE_NOTIFICATION, NULL, 2, {0x91, 2}},
        {PH_MESSAGE_NOTIFICATION, NULL, 5, {0x93, 2, 0xa1, 'x', 0x90}},
        {PH_MESSAGE_NOTIFICATION, NULL, 5, {0x93, 2, 0xa1, 'x', 0x80}},
        {PH_MESSAGE_NOTIFICATION, NULL, 6, {0x94, 0xcc, 2, 0xc0, 0xc0, 0xc0}},
    };
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        check_message(&table[i]);
    }
}

/* The legal widths of one part of a request. */
struct part {
    size_t count;
    struct {
        uint8_t length;
        uint8_t bytes[9];
    } forms[9];
};

static const struct part message_heads = {3, {{1, {0x94}}, {3, {0xdc, 0, 4}}, {5, {0xdd, 0, 0, 0, 4}}}};
static const struct part zeros = {4, {{1, {0}}, {2, {0xcc, 0}}, {3, {0xcd, 0, 0}}, {5, {0xd2, 0, 0, 0, 0}}}};
static const struct part sevens = {9,
                                   {{1, {7}},
                                    {2, {0xcc, 7}},
                                    {3, {0xcd, 0, 7}},
                                    {5, {0xce, 0, 0, 0, 7}},
                                    {9, {0xcf, 0, 0, 0, 0, 0, 0, 0, 7}},
                                    {2, {0xd0, 7}},
                                    {3, {0xd1, 0, 7}},
                                    {5, {0xd2, 0, 0, 0, 7}},
                                    {9, {0xd3, 0, 0, 0, 0, 0, 0, 0, 7}}}};
static const struct part names = {7,
                                  {{3, {0xa2, 'h', 'i'}},
                                   {4, {0xd9, 2, 'h', 'i'}},
                                   {5, {0xda, 0, 2, 'h', 'i'}},
                                   {7, {0xdb, 0, 0, 0, 2, 'h', 'i'}},
                                   {4, {0xc4, 2, 'h', 'i'}},
                                   {5, {0xc5, 0, 2, 'h', 'i'}},
                                   {7, {0xc6, 0, 0, 0, 2, 'h', 'i'}}}};
static const struct part params_heads = {3, {{1, {0x91}}, {3, {0xdc, 0, 1}}, {5, {0xdd, 0, 0, 0, 1}}}};

static void check_seven(size_t arrived) {
    struct ph_scan scan = {0};
    struct ph_request request;
    CHECK(ph_frame_next(&scan, buffer, arrived, &request) == PH_MESSAGE_MORE);
    CHECK(ph_frame_next(&scan, buffer, writer.length, &request) == PH_MESSAGE_REQUEST);
    CHECK(request.bytes == writer.length && request.message_id == 7 && request.broken == NULL);
    CHECK(request.method.length == 2 && memcmp(request.method.data, "hi", 2) == 0);
    CHECK(request.param_count == 1 && ph_read_uint(&request.params) == 7);
    CHECK(!request.params.failed && request.params.at == buffer + writer.length);
}

/* F46: [0, 7, "hi", [7]] in all widths of all its parts, at once and cut anywhere. */
static void test_widths(void) {
    const struct part *parts[] = {&message_heads, &zeros, &sevens, &names, &params_heads, &sevens};
    for (size_t choice = 0, rest = 0; rest == 0; choice++) {
        rewind_writer();
        rest = choice;
        for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
            size_t form = rest % parts[i]->count;
            ph_put_raw(&writer, parts[i]->forms[form].bytes, parts[i]->forms[form].length);
            rest /= parts[i]->count;
        }
        for (size_t arrived = 0; arrived < writer.length; arrived++) {
            check_seven(arrived);
        }
    }
}

/* F46: what lies 99 bytes behind a msgid of 64 bits is data, of this frame or of the next. */
static void test_data_is_not_read_as_a_request(void) {
    static const uint8_t start[] = {0x94, 0, 0xcf, 0, 0, 0, 0, 0, 0, 0, 7, 0xa2, 'h', 'i', 0x91, 0xc4, 200};
    struct ph_scan scan = {0};
    struct ph_request request;
    rewind_writer();
    ph_put_raw(&writer, start, sizeof start);
    while (writer.length < sizeof start + 200) {
        ph_put_raw(&writer, "\x94\x00\x09\xa2no\x90\xc0", 8);
    }
    CHECK(ph_frame_next(&scan, buffer, writer.length, &request) == PH_MESSAGE_REQUEST);
    CHECK(request.bytes == sizeof start + 200 && request.message_id == 7 && request.method.data == buffer + 12);
}

/* F36: each is refused from its header alone. */
static void test_bombs(void) {
    static const struct {
        const char *broken;
        uint8_t length;
        uint8_t bytes[16];
    } bombs[] = {
        {"65536 bytes", 5, {0xdd, 0x7f, 0xff, 0xff, 0xff}},
        {"65536 bytes", 5, {0xdd, 0xff, 0xff, 0xff, 0xff}},
        {"65536 bytes", 6, {0x91, 0xdf, 0xff, 0xff, 0xff, 0xff}},
        {"65536 bytes", 4, {0x91, 0xde, 0xff, 0xff}}, /* 131070 values */
        {"65536 bytes", 6, {0x94, 0xc6, 0xff, 0xff, 0xff, 0xff}},
        {"65536 bytes", 6, {0x94, 0xdb, 0x00, 0x01, 0x00, 0x00}},
        {"65536 bytes", 6, {0x94, 0xc9, 0xff, 0xff, 0xff, 0xff}},
        {"8 arrays or maps", 9, {0x91, 0x91, 0x91, 0x91, 0x91, 0x91, 0x91, 0x91, 0x91}},
        {"8 arrays or maps", 9, {0x91, 0x81, 0x91, 0x81, 0x91, 0x81, 0x91, 0x81, 0x91}},
        {"c1", 2, {0x91, 0xc1}},
        {"no array", 1, {0xc1}},
        {"no array", 1, {0x00}},
        {"no array", 1, {0xa1}},
        {"no array", 1, {0x80}},
        {"no array", 1, {0xdf}},
    };
    for (size_t i = 0; i < sizeof bombs / sizeof bombs[0]; i++) {
        uint32_t end;
        CHECK(scan_whole(bombs[i].bytes, bombs[i].length, &end) == PH_SCAN_MALFORMED);
        struct ph_scan scan = {0};
        enum ph_scan_result result = PH_SCAN_MORE;
        for (size_t length = 1; length <= bombs[i].length; length++) {
            CHECK(result == PH_SCAN_MORE);
            result = ph_frame_scan(&scan, bombs[i].bytes, length);
        }
        CHECK(result == PH_SCAN_MALFORMED && strstr(scan.broken, bombs[i].broken) != NULL);
        scan.position = 0;
        struct ph_request request;
        CHECK(ph_frame_next(&scan, bombs[i].bytes, bombs[i].length, &request) == PH_MESSAGE_BAD);
        CHECK(strstr(request.broken, bombs[i].broken) != NULL);
    }
}

static void test_limits(void) {
    uint32_t end;
    /* [bin of so many bytes]: the frame limit to the byte */
    memset(buffer, 0, sizeof buffer);
    for (uint32_t payload = PH_FRAME_BYTES_MAX - 8; payload < PH_FRAME_BYTES_MAX; payload++) {
        memcpy(buffer, BYTES(0x91, 0xc6, 0, (uint8_t)(payload >> 16), (uint8_t)(payload >> 8), (uint8_t)payload));
        int fits = 6 + payload <= PH_FRAME_BYTES_MAX;
        CHECK(scan_whole(buffer, sizeof buffer, &end) == (fits ? PH_SCAN_FRAME : PH_SCAN_MALFORMED));
        CHECK(!fits || end == 6 + payload);
    }
    /* arrays as deep as permitted; behind them lies another frame */
    memset(buffer, 0x91, PH_FRAME_DEPTH_MAX);
    memcpy(buffer + PH_FRAME_DEPTH_MAX, "\xc0\x91\xc0", 3);
    CHECK(scan_whole(buffer, PH_FRAME_DEPTH_MAX + 3, &end) == PH_SCAN_FRAME && end == PH_FRAME_DEPTH_MAX + 1);
    /* an array of as many values as a frame can hold */
    memset(buffer, 0xc0, sizeof buffer);
    memcpy(buffer, "\xdc\xff\xfd", 3);
    CHECK(scan_whole(buffer, sizeof buffer, &end) == PH_SCAN_FRAME && end == PH_FRAME_BYTES_MAX);
    memcpy(buffer, "\xdc\xff\xfe", 3);
    CHECK(scan_whole(buffer, sizeof buffer, &end) == PH_SCAN_MALFORMED);
}

/* A request is held to the limits whether it has arrived whole or not. */
static void test_limits_of_requests(void) {
    struct ph_request request;
    for (uint32_t length = PH_FRAME_BYTES_MAX - 2; length <= PH_FRAME_BYTES_MAX + 2; length++) {
        struct ph_scan scan = {0};
        memset(buffer, 0, sizeof buffer);
        memcpy(buffer,
               BYTES(0x94, 0, 7, 0xa1, 'x', 0x92, 0xc0, 0xc5, (uint8_t)((length - 10) >> 8), (uint8_t)(length - 10)));
        int fits = length <= PH_FRAME_BYTES_MAX;
        CHECK(ph_frame_next(&scan, buffer, sizeof buffer, &request) == (fits ? PH_MESSAGE_REQUEST : PH_MESSAGE_BAD));
        CHECK(!fits || request.bytes == length);
    }
    for (uint32_t depth = 1; depth <= PH_FRAME_DEPTH_MAX; depth++) {
        struct ph_scan scan = {0};
        rewind_writer();
        ph_put_raw(&writer, "\x94\x00\x07\xa1x\x92\x91\xc0", 8);
        for (uint32_t i = 0; i < depth; i++) {
            ph_put_array(&writer, 1);
        }
        ph_put_nil(&writer);
        int fits = 2 + depth <= PH_FRAME_DEPTH_MAX;
        CHECK(ph_frame_next(&scan, buffer, writer.length, &request) == (fits ? PH_MESSAGE_REQUEST : PH_MESSAGE_BAD));
        CHECK(!fits || request.bytes == writer.length);
    }
}

static void put_random_value(struct random *random, unsigned depth) {
    uint64_t choice = random_below(random, depth < PH_FRAME_DEPTH_MAX ? 9 : 7);
    uint64_t count = random_below(random, 4) * random_below(random, 8);
    switch (choice) {
    case 0:
        ph_put_nil(&writer);
        break;
    case 1:
        ph_put_bool(&writer, 1);
        break;
    case 2:
    case 3:
        ph_put_uint(&writer, random_u64(random) >> random_below(random, 64));
        break;
    case 4:
        ph_put_text(&writer, &"0123456789012345678901234567890123456789"[random_below(random, 41)]);
        break;
    case 5: /* ext 8 */
        ph_put_raw(&writer, "\xc7\x02\x05\xc1\xc1", 5);
        break;
    case 6: /* fixext 16 */
        ph_put_raw(&writer, "\xd8\x01\x91\x91\x91\x91\x91\x91\x91\x91\x91\x91\x91\x91\x91\x91\x91\x91", 18);
        break;
    default:
        (choice == 7 ? ph_put_array : ph_put_map)(&writer, (uint32_t)count);
        for (uint64_t i = 0; i < (choice == 7 ? count : 2 * count); i++) {
            put_random_value(random, depth + 1);
        }
    }
}

/* However it is cut, a frame ends where it ends. */
static void test_pieces(void) {
    struct random random = random_start();
    for (uint64_t round = 0; round < random_rounds(2000); round++) {
        rewind_writer();
        ph_put_array(&writer, 2);
        put_random_value(&random, 1);
        put_random_value(&random, 1);
        if (writer.length > 4000) {
            continue; /* not too long to be cut at every byte */
        }
        uint32_t frame_length = (uint32_t)writer.length;
        put_random_value(&random, 1); /* something of the next frame */
        for (uint64_t most = 1; most < 2000; most *= 3) {
            struct ph_scan scan = {0};
            size_t arrived = 0;
            while (arrived < frame_length) {
                CHECK(ph_frame_scan(&scan, buffer, arrived) == PH_SCAN_MORE);
                arrived += random_below(&random, most) + 1;
            }
            CHECK(ph_frame_scan(&scan, buffer, arrived) == PH_SCAN_FRAME);
            CHECK_EQ_U64(scan.position, frame_length);
        }
    }
}

static void test_reader_stays_failed(void) {
    static const uint8_t data[] = {0xa3, 'a', 'b', 'c', 0x05};
    struct ph_reader reader = {data, data + sizeof data, 0};
    CHECK_EQ_U64(ph_read_array(&reader), 0);
    CHECK(reader.failed && reader.at == data);
    CHECK(ph_read_key(&reader).data == NULL && ph_read_uint(&reader) == 0 && !ph_read_nil(&reader));
    CHECK(reader.failed && reader.at == data);
    struct ph_reader cut = {data, data + 3, 0};
    CHECK(ph_read_key(&cut).data == NULL && cut.failed);
}

int main(void) {
    RUN(test_writers);
    RUN(test_error_reply);
    RUN(test_requests);
    RUN(test_bad_messages);
    RUN(test_widths);
    RUN(test_data_is_not_read_as_a_request);
    RUN(test_bombs);
    RUN(test_limits);
    RUN(test_limits_of_requests);
    RUN(test_pieces);
    RUN(test_reader_stays_failed);
    return check_report();
}
