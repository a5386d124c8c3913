/* Ids, ticks and routes. `test_scarab FILE` compares with lines that tests/unit/test_vectors.py makes of
   spec/vectors. */
#include <string.h>

#include "base/crc.h"
#include "check.h"
#include "ph_scarab.h"

static void test_layouts(void) {
    static const struct {
        struct ph_layout layout;
        int valid;
    } table[] = {
        {{41, 10, 13, 0}, 1}, {{38, 10, 16, 0}, 1}, {{44, 4, 16, 0}, 1},   {{44, 10, 10, 0}, 1}, {{41, 9, 14, 0}, 1},
        {{37, 11, 16, 0}, 0}, {{45, 3, 16, 0}, 0},  {{41, 11, 12, 0}, 0},  {{41, 10, 12, 0}, 0}, {{41, 10, 14, 0}, 0},
        {{44, 3, 17, 0}, 0},  {{0, 0, 0, 0}, 0},    {{255, 255, 2, 0}, 0}, {{48, 8, 8, 0}, 0},
    };
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        CHECK_EQ_U64(ph_layout_valid(&table[i].layout), table[i].valid);
    }
}

static void test_extremes(void) {
    const struct ph_layout layout = {41, 10, 13, 0};
    CHECK_EQ_U64(ph_id_of_tick(&layout, 1023, ph_tick_end(&layout) - 1), UINT64_MAX);
    CHECK_EQ_U64(ph_tick_of_id(&layout, UINT64_MAX), ph_tick_end(&layout) - 1);
    CHECK_EQ_U64(ph_id_of_tick(&layout, 0, 0), 0);
}

#define KEY_BYTES_MAX 4096
static const char *vectors_path;

static void compare_id(const char *line) {
    unsigned ms_bits, coordinator_bits, sequence_bits, coordinator;
    uint64_t id, ms, sequence;
    REQUIRE(sscanf(line, "id %u %u %u %" SCNu64 " %" SCNu64 " %u %" SCNu64, &ms_bits, &coordinator_bits, &sequence_bits,
                   &id, &ms, &coordinator, &sequence) == 7);
    const struct ph_layout layout = {(uint8_t)ms_bits, (uint8_t)coordinator_bits, (uint8_t)sequence_bits, 0};
    uint64_t tick = ph_tick_of_ms(&layout, ms) | sequence;
    CHECK(ph_layout_valid(&layout));
    CHECK_EQ_U64(ph_tick_of_id(&layout, id), tick);
    CHECK_EQ_U64(ph_coordinator_of_id(&layout, id), coordinator);
    CHECK_EQ_U64(ph_id_of_tick(&layout, coordinator, tick), id);
}

static void compare_route(const char *line) {
    static uint8_t key[KEY_BYTES_MAX];
    size_t length = 0;
    uint32_t crc, modulus, coordinator;
    int at = 0;
    REQUIRE(sscanf(line, "route %" SCNu32 " %" SCNu32 " %" SCNu32 " %n", &crc, &modulus, &coordinator, &at) == 3);
    for (unsigned byte; sscanf(line + at, "%2x", &byte) == 1; at += 2) {
        REQUIRE(length < sizeof key);
        key[length++] = (uint8_t)byte;
    }
    CHECK_EQ_U64(ph_crc32(key, length), crc);
    CHECK_EQ_U64(ph_crc32(key, length) % modulus, coordinator);
}

static void test_vectors(void) {
    static char line[2 * KEY_BYTES_MAX + 128];
    unsigned count = 0;
    FILE *file = fopen(vectors_path, "r");
    REQUIRE(file != NULL);
    for (; fgets(line, sizeof line, file) != NULL; count++) {
        (strncmp(line, "id ", 3) == 0 ? compare_id : compare_route)(line);
    }
    fclose(file);
    printf("%u vectors\n", count);
}

int main(int argc, char **argv) {
    RUN(test_layouts);
    RUN(test_extremes);
    if (argc > 1) {
        vectors_path = argv[1];
        RUN(test_vectors);
    }
    return check_report();
}
