/* Published check values: RFC 3720 B.4 for CRC-32C; the catalogue's "123456789" for both. */
#include <string.h>

#include "base/crc.h"
#include "check.h"
#include "random.h"

static void test_crc32c(void) {
    uint8_t block[32] = {0};
    CHECK_EQ_U64(ph_crc32c("", 0), 0);
    CHECK_EQ_U64(ph_crc32c("123456789", 9), 0xe3069283);
    CHECK_EQ_U64(ph_crc32c(block, 32), 0x8a9136aa);
    memset(block, 0xff, 32);
    CHECK_EQ_U64(ph_crc32c(block, 32), 0x62a8ab43);
    for (int i = 0; i < 32; i++) {
        block[i] = (uint8_t)i;
    }
    CHECK_EQ_U64(ph_crc32c(block, 32), 0x46dd794e);
    for (int i = 0; i < 32; i++) {
        block[i] = (uint8_t)(31 - i);
    }
    CHECK_EQ_U64(ph_crc32c(block, 32), 0x113fdb5c);
}

static void test_crc32(void) {
    CHECK_EQ_U64(ph_crc32("", 0), 0);
    CHECK_EQ_U64(ph_crc32("123456789", 9), 0xcbf43926);
    CHECK_EQ_U64(ph_crc32("The quick brown fox jumps over the lazy dog", 43), 0x414fa339);
}

/* F2: no flip of one, two or three bits of a sector goes unnoticed. */
static void test_flips(void) {
    struct random random = random_start();
    uint8_t sector[512];
    for (size_t i = 0; i < sizeof sector; i++) {
        sector[i] = (uint8_t)random_u64(&random);
    }
    uint32_t good = ph_crc32c(sector, sizeof sector);
    for (uint64_t bit = 0; bit < 8 * sizeof sector; bit++) {
        uint64_t bits[3] = {bit, random_below(&random, 4096), random_below(&random, 4096)};
        for (int flips = 1; flips <= 3; flips++) {
            uint8_t damaged[512];
            memcpy(damaged, sector, sizeof sector);
            for (int i = 0; i < flips; i++) {
                damaged[bits[i] / 8] ^= (uint8_t)(1u << bits[i] % 8);
            }
            CHECK(ph_crc32c(damaged, sizeof damaged) != good || memcmp(damaged, sector, sizeof sector) == 0);
        }
    }
}

/* What the processor computes is what the definition says, for every length and alignment, in one piece or in several. */
static void test_the_processor_agrees(void) {
    struct random random = random_start();
    uint8_t bytes[600];
    for (size_t i = 0; i < sizeof bytes; i++) {
        bytes[i] = (uint8_t)random_u64(&random);
    }
    for (uint64_t round = random_rounds(20000); round > 0; round--) {
        size_t at = random_below(&random, 16);
        size_t length = random_below(&random, sizeof bytes - 16);
        size_t part = random_below(&random, length + 1);
        uint32_t crc = (uint32_t)random_u64(&random);
        uint32_t expected = ph_crc_more(PH_CRC32C, crc, bytes + at, length);
        CHECK_EQ_U64(ph_crc32c_more(crc, bytes + at, length), expected);
        CHECK_EQ_U64(ph_crc32c_more(ph_crc32c_more(crc, bytes + at, part), bytes + at + part, length - part), expected);
    }
}

int main(void) {
    RUN(test_crc32c);
    RUN(test_crc32);
    RUN(test_flips);
    RUN(test_the_processor_agrees);
    return check_report();
}
