/*
 * Reflected CRC-32s. CRC-32C (Castagnoli, RFC 3720 B.4) guards records and batches: by the processor where it can, since
 * a start reads megabytes. CRC-32 (RFC 1952, zlib's) routes keys, which are short: bit by bit.
 */
#ifndef PH_CRC_H
#define PH_CRC_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define PH_CRC32C 0x82f63b78    /* the polynomial, reflected */
#define PH_CRC_START UINT32_MAX /* the value before the first byte; the checksum is the complement of that at the end */

static inline uint32_t ph_crc_more(uint32_t polynomial, uint32_t crc, const void *data, size_t length) {
    const uint8_t *bytes = data;
    for (size_t i = 0; i < length; i++) {
        crc ^= bytes[i];
        for (int bit = 0; bit < 8; bit++) {
            crc = (crc >> 1) ^ (polynomial & (0 - (crc & 1)));
        }
    }
    return crc;
}

#ifdef __x86_64__
__attribute__((target("sse4.2"))) static inline uint32_t ph_crc32c_by_processor(uint32_t crc, const uint8_t *bytes,
                                                                                size_t length) {
    uint64_t value = crc;
    for (; length >= 8; length -= 8, bytes += 8) {
        uint64_t word;
        memcpy(&word, bytes, sizeof word);
        value = __builtin_ia32_crc32di(value, word);
    }
    crc = (uint32_t)value;
    for (; length > 0; length--, bytes++) {
        crc = __builtin_ia32_crc32qi(crc, *bytes);
    }
    return crc;
}
#endif

static inline uint32_t ph_crc32c_more(uint32_t crc, const void *data, size_t length) {
#ifdef __x86_64__
    if (__builtin_cpu_supports("sse4.2")) {
        return ph_crc32c_by_processor(crc, data, length);
    }
#endif
    return ph_crc_more(PH_CRC32C, crc, data, length);
}

static inline uint32_t ph_crc32c(const void *data, size_t length) {
    return ~ph_crc32c_more(PH_CRC_START, data, length);
}

static inline uint32_t ph_crc32(const void *data, size_t length) {
    return ~ph_crc_more(0xedb88320, PH_CRC_START, data, length);
}

#endif
