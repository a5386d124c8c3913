/* CRC-32C (Castagnoli, reflected polynomial 0x82f63b78), as in RFC 3720 appendix B.4. */
#ifndef PH_CRC32C_H
#define PH_CRC32C_H

#include <stddef.h>
#include <stdint.h>

static inline uint32_t ph_crc32c(const void *data, size_t length) {
    const uint8_t *bytes = data;
    uint32_t crc = 0xffffffff;
    for (size_t i = 0; i < length; i++) {
        crc ^= bytes[i];
        for (int bit = 0; bit < 8; bit++) {
            crc = (crc >> 1) ^ (0x82f63b78 & (0 - (crc & 1)));
        }
    }
    return ~crc;
}

#endif
