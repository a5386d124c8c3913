/*
 * Reflected CRC-32s, bit by bit: they run over a sector at each sync and over a short key at each routed request.
 * CRC-32C (Castagnoli, RFC 3720 B.4) guards the Obelisk's records; CRC-32 (RFC 1952, zlib's) routes keys.
 */
#ifndef PH_CRC_H
#define PH_CRC_H

#include <stddef.h>
#include <stdint.h>

static inline uint32_t ph_crc(uint32_t polynomial, const void *data, size_t length) {
    const uint8_t *bytes = data;
    uint32_t crc = 0xffffffff;
    for (size_t i = 0; i < length; i++) {
        crc ^= bytes[i];
        for (int bit = 0; bit < 8; bit++) {
            crc = (crc >> 1) ^ (polynomial & (0 - (crc & 1)));
        }
    }
    return ~crc;
}

static inline uint32_t ph_crc32c(const void *data, size_t length) { return ph_crc(0x82f63b78, data, length); }

static inline uint32_t ph_crc32(const void *data, size_t length) { return ph_crc(0xedb88320, data, length); }

#endif
