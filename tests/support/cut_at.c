/*
 * Preloaded into a daemon: cuts the power of a mounted ext4 just before the CUT_AT'th call that writes, syncs or
 * renames there, counted over the daemon and everything that it forks. With CUT_AT=0 it only counts. The file CUT_COUNT
 * elsewhere holds two words: the count, and whether the power is cut.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define EXT4_IOC_SHUTDOWN _IOR('X', 125, uint32_t)

static uint64_t *count;
static uint64_t cut_at;
static const char *mount_point;
static dev_t device;

__attribute__((constructor)) static void begin(void) {
    struct stat status;
    int fd = open(getenv("CUT_COUNT"), O_RDWR | O_CLOEXEC);
    mount_point = strdup(getenv("CUT_MOUNT")); /* the daemon writes its title over its environment */
    cut_at = strtoull(getenv("CUT_AT"), NULL, 10);
    count = mmap(NULL, 2 * sizeof *count, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (fd < 0 || count == MAP_FAILED || stat(mount_point, &status) != 0) {
        abort();
    }
    close(fd);
    device = status.st_dev;
}

static void step(void) {
    if (__atomic_add_fetch(count, 1, __ATOMIC_SEQ_CST) == cut_at) {
        uint32_t without_log_flush = 2;
        int fd = open(mount_point, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (fd < 0 || ioctl(fd, EXT4_IOC_SHUTDOWN, &without_log_flush) != 0) {
            abort();
        }
        close(fd);
        __atomic_store_n(&count[1], 1, __ATOMIC_SEQ_CST);
    }
}

static void step_of_fd(int fd) {
    struct stat status;
    if (fstat(fd, &status) == 0 && status.st_dev == device) {
        step();
    }
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int fsync(int fd) {
    step_of_fd(fd);
    return NEXT(fsync)(fd);
}

int fdatasync(int fd) {
    step_of_fd(fd);
    return NEXT(fdatasync)(fd);
}

ssize_t pwrite(int fd, const void *data, size_t length, off_t offset) {
    step_of_fd(fd);
    return NEXT(pwrite)(fd, data, length, offset);
}

ssize_t write(int fd, const void *data, size_t length) {
    step_of_fd(fd);
    return NEXT(write)(fd, data, length);
}

int rename(const char *from, const char *to) {
    if (strncmp(to, mount_point, strlen(mount_point)) == 0) {
        step();
    }
    return NEXT(rename)(from, to);
}
