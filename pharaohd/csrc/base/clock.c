#define _GNU_SOURCE
#include "base/clock.h"

#include <fcntl.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static int64_t read_ns(clockid_t which) {
    struct timespec now;
    clock_gettime(which, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

uint64_t ph_monotonic_ns(void) { return (uint64_t)read_ns(CLOCK_MONOTONIC); }

void ph_clock_read_system(void *context, int64_t *realtime_ns, int64_t *boottime_ns) {
    const volatile int64_t *offset_ns = context;
    *realtime_ns = read_ns(CLOCK_REALTIME) + (offset_ns != NULL ? *offset_ns : 0);
    *boottime_ns = read_ns(CLOCK_BOOTTIME);
}

void ph_boot_id(uint8_t boot_id[16]) {
    char text[64] = "";
    ssize_t digits = 0;
    int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    ssize_t length = fd >= 0 ? read(fd, text, sizeof text - 1) : 0;
    if (fd >= 0) {
        close(fd);
    }
    memset(boot_id, 0, 16);
    for (ssize_t i = 0; i < length && digits < 32; i++) {
        const char *hex = "0123456789abcdef";
        const char *at = text[i] != '\0' ? strchr(hex, text[i]) : NULL;
        if (at != NULL) {
            boot_id[digits / 2] = (uint8_t)(boot_id[digits / 2] << 4 | (uint8_t)(at - hex));
            digits++;
        }
    }
    if (digits != 32) {
        memset(boot_id, 0, 16); /* not a boot id: unknown */
    }
}

int ph_same_boot(const uint8_t one[16], const uint8_t other[16]) {
    static const uint8_t unknown[16];
    return memcmp(one, unknown, 16) != 0 && memcmp(one, other, 16) == 0;
}
