/*
 * What a bare sync costs: half a kilobyte over bytes that are there already, and fdatasync.
 *
 *   sync FILE SECONDS
 */
#define _GNU_SOURCE
#include "bench.h"

#include <fcntl.h>
#include <unistd.h>

#define FILE_BYTES (1 << 20)
#define WRITE_BYTES 512
#define SYNCS_PER_SECOND_MAX 200000

int main(int argc, char **argv) {
    static uint8_t content[FILE_BYTES];
    if (argc != 3) {
        fail("usage: sync FILE SECONDS");
    }
    int fd = open(argv[1], O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0 || pwrite(fd, content, sizeof content, 0) != sizeof content || fsync(fd) != 0) {
        fail("cannot make the file");
    }
    double seconds = atof(argv[2]);
    struct record times = record_new((size_t)((seconds + 1) * SYNCS_PER_SECOND_MAX));
    uint64_t start_ns = now_ns(), end_ns = start_ns + (uint64_t)(seconds * (double)NS_PER_S), last_ns = start_ns;
    for (off_t at = 0; last_ns < end_ns; at = (at + WRITE_BYTES) % FILE_BYTES) {
        uint64_t before_ns = now_ns();
        if (pwrite(fd, content, WRITE_BYTES, at) != WRITE_BYTES || fdatasync(fd) != 0) {
            fail("cannot sync");
        }
        last_ns = now_ns();
        record_add(&times, last_ns - before_ns);
    }
    printf("{\"ids\": 0, \"first\": 0, \"last\": 0, \"per_second\": %.1f, ", (double)times.length / seconds);
    print_quantiles("latency_ns", &times);
    printf("}\n");
    return 0;
}
