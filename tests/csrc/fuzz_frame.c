/*
 * Hostile bytes for the frame scanner and readers (F36, F46).
 *
 * Invariants
 * - Nothing beyond the bytes that have arrived is read (each input ends where its allocation ends).
 * - The scanner agrees with a plain recursive parser about where the frame ends, or that there is none.
 * - It says the same whether the bytes arrive at once, one by one, or in pieces; malformed stays malformed.
 * - ph_frame_next() says what scanner and reader say one after the other, wherever the bytes are cut.
 * - A frame is no longer than the limit, and what lies behind it makes no difference.
 * - Of a frame that is understood every part lies inside the frame, and no reader ever leaves it.
 *
 *   fuzz_frame            mutates a few frames, TEST_EFFORT times a bounded number of rounds
 *   fuzz_frame judge      reads streams (4 bytes of length, big-endian, then the bytes), writes a line of JSON about each
 * With -fsanitize=fuzzer -DLIBFUZZER the fuzzer brings its own main().
 */
#include <string.h>

#include "base/frame.h"
#include "random.h"

#define INPUT_BYTES_MAX (2 * PH_FRAME_BYTES_MAX)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t length);

static void demand(int holds, const char *what) {
    if (!holds) {
        fprintf(stderr, "invariant broken: %s\n", what);
        abort();
    }
}

static uint64_t number_at(const uint8_t *data, int bytes) {
    uint64_t number = 0;
    for (int i = 0; i < bytes; i++) {
        number = number << 8 | data[i];
    }
    return number;
}

/* What the plain parser returns besides the end of a value. */
enum { CUT = -1, WRONG = -2 };

static int64_t plain_value(const uint8_t *data, size_t length, int64_t at, int depth) {
    static const struct {
        uint8_t first, field, per_count, fixed;
        char is;
    } table[] = {
        {0xc4, 1, 1, 0, 'b'},  {0xc5, 2, 1, 0, 'b'}, {0xc6, 4, 1, 0, 'b'}, {0xc7, 1, 1, 1, 'b'}, {0xc8, 2, 1, 1, 'b'},
        {0xc9, 4, 1, 1, 'b'},  {0xca, 0, 0, 4, 'b'}, {0xcb, 0, 0, 8, 'b'}, {0xcc, 0, 0, 1, 'b'}, {0xcd, 0, 0, 2, 'b'},
        {0xce, 0, 0, 4, 'b'},  {0xcf, 0, 0, 8, 'b'}, {0xd0, 0, 0, 1, 'b'}, {0xd1, 0, 0, 2, 'b'}, {0xd2, 0, 0, 4, 'b'},
        {0xd3, 0, 0, 8, 'b'},  {0xd4, 0, 0, 2, 'b'}, {0xd5, 0, 0, 3, 'b'}, {0xd6, 0, 0, 5, 'b'}, {0xd7, 0, 0, 9, 'b'},
        {0xd8, 0, 0, 17, 'b'}, {0xd9, 1, 1, 0, 'b'}, {0xda, 2, 1, 0, 'b'}, {0xdb, 4, 1, 0, 'b'}, {0xdc, 2, 1, 0, 'v'},
        {0xdd, 4, 1, 0, 'v'},  {0xde, 2, 2, 0, 'v'}, {0xdf, 4, 2, 0, 'v'},
    };
    if ((size_t)at >= length) {
        return CUT;
    }
    uint8_t first = data[at++];
    if (depth == 0 && (first & 0xf0) != 0x90 && first != 0xdc && first != 0xdd) {
        return WRONG;
    }
    uint64_t values = first >= 0x80 && first <= 0x9f ? (first & 15u) * (first < 0x90 ? 2 : 1) : 0;
    uint64_t payload = first >= 0xa0 && first <= 0xbf ? first & 31u : 0;
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        if (table[i].first == first) {
            if ((size_t)at + table[i].field > length) {
                return CUT;
            }
            uint64_t number = number_at(data + at, table[i].field) * table[i].per_count + table[i].fixed;
            *(table[i].is == 'v' ? &values : &payload) = number;
            at += table[i].field;
        }
    }
    int too_deep = values > 0 && depth == PH_FRAME_DEPTH_MAX;
    if (first == 0xc1 || too_deep || (uint64_t)at + payload + values > PH_FRAME_BYTES_MAX) {
        return WRONG;
    }
    at += (int64_t)payload;
    while (values-- > 0 && at >= 0) {
        at = plain_value(data, length, at, depth + 1);
    }
    return at > (int64_t)length ? CUT : at;
}

static enum ph_scan_result scan_pieces(const uint8_t *data, size_t length, size_t piece, uint32_t *end) {
    struct ph_scan scan = {0};
    enum ph_scan_result result = PH_SCAN_MORE;
    for (size_t arrived = 0; result == PH_SCAN_MORE && arrived < length;) {
        arrived = arrived + piece < length ? arrived + piece : length;
        result = ph_frame_scan(&scan, data, arrived);
    }
    *end = scan.position;
    return result;
}

static void check_inside(const struct ph_reader *reader, const uint8_t *from) {
    demand(reader->at >= from && reader->at <= reader->end, "a reader stays inside the frame");
}

static void check_bytes(struct ph_bytes bytes, const struct ph_reader *reader, const uint8_t *from) {
    demand(bytes.data == NULL || (bytes.data >= from && bytes.data + bytes.length <= reader->end),
           "text lies inside the frame");
}

/* Reads on with one reader after the other, chosen by the bytes themselves. */
static void read_on(struct ph_reader reader, const uint8_t *frame, uint64_t choices) {
    struct random random = {choices};
    for (int i = 0; i < 200 && reader.at < reader.end; i++) {
        int failed = reader.failed;
        const uint8_t *before = reader.at;
        switch (random_below(&random, 4)) {
        case 0:
            ph_read_array(&reader);
            break;
        case 1:
            ph_read_uint(&reader);
            break;
        case 2:
            check_bytes(ph_read_key(&reader), &reader, frame);
            break;
        default:
            ph_read_nil(&reader);
        }
        demand(!failed || (reader.failed && reader.at == before), "a failed reader stays failed, and where it is");
        check_inside(&reader, before);
        if (reader.failed && random_chance(&random, 2)) {
            reader = (struct ph_reader){reader.at, reader.end, 0};
        }
    }
}

static enum ph_message_kind read_frame(const uint8_t *data, uint32_t length, struct ph_request *request) {
    uint8_t *frame = malloc(length);
    demand(frame != NULL, "memory");
    memcpy(frame, data, length);
    enum ph_message_kind kind = ph_frame_read(frame, length, request);
    if (kind == PH_MESSAGE_REQUEST && request->broken == NULL) {
        check_inside(&request->params, frame);
        check_bytes(request->method, &request->params, frame);
        demand(request->method.data != NULL && request->param_count <= length,
               "a method, and parameters that are there");
        read_on(request->params, frame, number_at(frame, length < 8 ? (int)length : 8));
    }
    read_on((struct ph_reader){frame, frame + length, 0}, frame, length);
    free(frame);
    return ph_frame_read(data, length, request);
}

static int same_bytes(struct ph_bytes a, struct ph_bytes b) { return a.data == b.data && a.length == b.length; }

static int same_request(const struct ph_request *a, const struct ph_request *b) {
    return a->bytes == b->bytes && a->message_id == b->message_id && a->broken == b->broken &&
           (a->broken != NULL ||
            (same_bytes(a->method, b->method) && a->param_count == b->param_count && a->params.at == b->params.at &&
             a->params.end == b->params.end && a->params.failed == b->params.failed));
}

/* The first part ends where its allocation ends. */
static void check_cut(const uint8_t *data, size_t length, size_t cut, enum ph_message_kind expected,
                      const struct ph_request *request) {
    struct ph_scan scan = {0};
    struct ph_request next = {.broken = NULL};
    uint8_t *first = malloc(cut > 0 ? cut : 1);
    demand(first != NULL, "memory");
    memcpy(first, data, cut);
    enum ph_message_kind kind = ph_frame_next(&scan, first, cut, &next);
    free(first);
    int early = kind != PH_MESSAGE_MORE; /* the rest makes no difference */
    demand(!early || kind == PH_MESSAGE_BAD || cut >= next.bytes, "no frame before its end");
    demand(!early || kind == expected, "what was said of a part holds for the whole");
    if (!early || expected != PH_MESSAGE_BAD) {
        scan.position = early ? 0 : scan.position;
        kind = ph_frame_next(&scan, data, length, &next);
        demand(kind == expected, "in two parts as in one");
        demand(kind != PH_MESSAGE_REQUEST || same_request(&next, request), "the same request");
    }
}

/* What scanner and reader say of the input's first frame is what ph_frame_next() says, however the input is cut. */
static void check_next(const uint8_t *data, size_t length, enum ph_message_kind expected,
                       const struct ph_request *request) {
    size_t step = length <= 200 ? 1 : length / 50;
    for (size_t cut = 0; cut <= length; cut += step) {
        check_cut(data, length, cut, expected, request);
    }
    check_cut(data, length, length, expected, request);
}

int LLVMFuzzerTestOneInput(const uint8_t *given, size_t length) {
    uint8_t *data = malloc(length > 0 ? length : 1);
    demand(data != NULL, "memory");
    memcpy(data, given, length);
    uint32_t end;
    enum ph_scan_result result = scan_pieces(data, length, length, &end);
    int64_t plain = plain_value(data, length, 0, 0);
    demand(result == (plain > 0      ? PH_SCAN_FRAME
                      : plain == CUT ? PH_SCAN_MORE
                                     : PH_SCAN_MALFORMED),
           "scanner and plain parser agree");
    for (size_t piece = 1; piece < 100; piece += 13) {
        uint32_t end_of_pieces;
        demand(scan_pieces(data, length, piece, &end_of_pieces) == result, "pieces make no difference");
        demand(result != PH_SCAN_FRAME || end_of_pieces == end, "pieces end at the same place");
    }
    struct ph_request request = {.broken = NULL};
    enum ph_message_kind kind = result == PH_SCAN_MORE ? PH_MESSAGE_MORE : PH_MESSAGE_BAD;
    if (result == PH_SCAN_FRAME) {
        uint32_t end_alone;
        demand(end == (uint64_t)plain && end <= length && end <= PH_FRAME_BYTES_MAX, "the frame's end");
        demand(scan_pieces(data, end, end, &end_alone) == PH_SCAN_FRAME && end_alone == end, "what follows is nothing");
        demand(scan_pieces(data, end - 1, end, &end_alone) == PH_SCAN_MORE, "a byte less is not yet a frame");
        kind = read_frame(data, end, &request);
    }
    check_next(data, length, kind, &request);
    free(data);
    return 0;
}

#ifndef LIBFUZZER

#define SEED(text) {sizeof(text) - 1, text}
static const struct {
    uint8_t length;
    const char *bytes;
} seeds[] = {
    SEED("\x94\x00\x07\xa4ping\x90"),
    SEED("\x94\x00\xcd\x01\x02\xa8next_ids\x91\x03"),
    SEED("\x94\x00\xce\x01\x02\x03\x04\xa5hello\x92\xa1x\x01"),
    SEED("\x94\x00\x01\xadget_timestamp\x92\xa1k\xcf\x01\x02\x03\x04\x05"),
    SEED("\x94\x00\x01\xa1x\x91\x82\x01\x93\xc0\xc2\xc3\x02"),
    SEED("\x93\x02\xa1x\x92\xc4\x02\xff\xff\xd8\x01 0123456789"),
    SEED("\x94\x01\x05\xc0\x92\x92\x01\x02\x90"),
    SEED("\x91\x91\x91\x91\x91\x91\x91\x91\x91\x91"),
    SEED("\xdc\x00\x04\x00\xcc\x80\xd9\x02hi\xdd\x00"),
    SEED("\x94\x00\xcf\x00\x00\x00\x00\x00\x00\x00\x07\xc4\x02hi\x91\xd9\x08\x94\x00\x01\xa2hi\x90\xc0"),
    SEED("\x94\x00\x01\xa1x\x92\x91\x91\x91\x91\x91\xc0\x91\x01"),
    SEED("\x94\x00\x01\xa1x\x96\x91\x01\x91\x01\x91\x01\x91\x01\x91\x01\x91\x01"),
};

static size_t mutate(struct random *random, uint8_t *data, size_t length) {
    static const uint8_t telling[] = {0x00, 0x7f, 0x80, 0x8f, 0x90, 0x91, 0x94, 0x9f, 0xa0, 0xbf,
                                      0xc0, 0xc1, 0xc4, 0xc6, 0xc7, 0xc9, 0xcf, 0xd3, 0xd4, 0xd8,
                                      0xd9, 0xdb, 0xdc, 0xdd, 0xde, 0xdf, 0xe0, 0xff};
    size_t at = random_below(random, length + 1);
    size_t span = random_below(random, 1 + (length - at < 16 ? length - at : 16));
    switch (random_below(random, 6)) {
    case 0:
        data[at % (length + 1)] ^= (uint8_t)(1u << random_below(random, 8));
        return at == length ? length + 1 : length;
    case 1:
        data[at] = telling[random_below(random, sizeof telling)];
        return at == length ? length + 1 : length;
    case 2: /* cut out */
        memmove(data + at, data + at + span, length - at - span);
        return length - span;
    case 3: /* say twice */
        memmove(data + at + span, data + at, length - at);
        return length + span;
    case 4: { /* put in */
        size_t count = 1 + random_below(random, 4);
        memmove(data + at + count, data + at, length - at);
        for (size_t i = 0; i < count; i++) {
            data[at + i] =
                random_chance(random, 2) ? telling[random_below(random, sizeof telling)] : (uint8_t)random_u64(random);
        }
        return length + count;
    }
    default: { /* a frame behind it or in its middle */
        size_t other = random_below(random, sizeof seeds / sizeof seeds[0]);
        memcpy(data + at, seeds[other].bytes, seeds[other].length);
        return at + seeds[other].length > length ? at + seeds[other].length : length;
    }
    }
}

static void fuzz(void) {
    static uint8_t data[4096];
    struct random random = random_start();
    uint64_t rounds = random_rounds(300000);
    for (uint64_t round = 0; round < rounds; round++) {
        size_t seed = random_below(&random, sizeof seeds / sizeof seeds[0]);
        size_t length = seeds[seed].length;
        memcpy(data, seeds[seed].bytes, length);
        for (uint64_t left = random_below(&random, 12); left > 0; left--) {
            length = mutate(&random, data, length);
        }
        LLVMFuzzerTestOneInput(data, length);
    }
    printf("%llu inputs\n", (unsigned long long)rounds);
}

static void print_hex(struct ph_bytes bytes) {
    putchar('"');
    for (uint32_t i = 0; i < bytes.length; i++) {
        printf("%02x", bytes.data[i]);
    }
    putchar('"');
}

/* null, a number, text in hexadecimal; what is none of these, and what follows it, is left out. */
static void print_params(struct ph_reader params, uint32_t count) {
    printf("[");
    for (uint32_t i = 0; i < count; i++) {
        struct ph_reader as_number = params;
        struct ph_reader as_text = params;
        uint64_t number = ph_read_uint(&as_number);
        struct ph_bytes text = ph_read_key(&as_text);
        if (as_number.failed && as_text.failed && !ph_read_nil(&params)) {
            break;
        }
        printf("%s", i > 0 ? ", " : "");
        if (!as_number.failed) {
            printf("%llu", (unsigned long long)number);
            params = as_number;
        } else if (!as_text.failed) {
            print_hex(text);
            params = as_text;
        } else {
            printf("null");
        }
    }
    printf("]");
}

static void print_message(enum ph_message_kind kind, const struct ph_request *message) {
    if (kind == PH_MESSAGE_NOTIFICATION) {
        printf("[\"notification\", %u], ", message->bytes);
    } else if (kind == PH_MESSAGE_RESPONSE) {
        printf("[\"response\", %u, %u], ", message->bytes, message->message_id);
    } else if (message->broken != NULL) {
        printf("[\"misfit\", %u, %u], ", message->bytes, message->message_id);
    } else {
        printf("[\"request\", %u, %u, ", message->bytes, message->message_id);
        print_hex(message->method);
        printf(", %u, ", message->param_count);
        print_params(message->params, message->param_count);
        printf("], ");
    }
}

/* One line: what the stream's messages are, one after the other as a connection takes them, and how it ends. */
static void judge(const uint8_t *data, size_t length) {
    struct ph_scan scan = {0};
    struct ph_request message;
    size_t at = 0;
    printf("[");
    for (;;) {
        LLVMFuzzerTestOneInput(data + at, length - at);
        enum ph_message_kind kind = ph_frame_next(&scan, data + at, length - at, &message);
        if (kind == PH_MESSAGE_MORE || kind == PH_MESSAGE_BAD) {
            printf("\"%s\"]\n", kind == PH_MESSAGE_MORE ? "more" : "refused");
            return;
        }
        print_message(kind, &message);
        at += message.bytes;
        scan.position = 0;
    }
}

static int judge_all(void) {
    static uint8_t data[INPUT_BYTES_MAX];
    uint8_t head[4];
    while (fread(head, sizeof head, 1, stdin) == 1) {
        size_t length = number_at(head, 4);
        if (length > sizeof data || fread(data, 1, length, stdin) != length) {
            return EXIT_FAILURE;
        }
        judge(data, length);
        fflush(stdout);
    }
    return EXIT_SUCCESS;
}

int main(int argc, char **argv) {
    if (argc > 1 && strcmp(argv[1], "judge") == 0) {
        return judge_all();
    }
    fuzz();
    return EXIT_SUCCESS;
}

#endif
