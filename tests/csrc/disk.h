/*
 * A journal's disk, held in the test's hand: the product's system calls on files come to the functions here instead of to
 * libc, which the program's own symbols go before. One per program.
 *
 * The model: the files of one directory are the page cache; `medium` is what a power cut leaves. A write dirties its
 * pages. Dirty sectors may reach the medium at any time, in any order, in part. A sync that succeeds makes all dirty pages
 * of its file durable, and its length; one that fails marks the pages clean although any part of them may be missing from
 * the medium, so that a later sync says nothing about them. New names are durable once the directory was synced; before
 * that any first ones of them.
 */
#ifndef DISK_H
#define DISK_H

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "check.h"
#include "random.h"

#define DISK_PAGE 4096
#define DISK_SECTOR 512
#define DISK_FILES 8
#define DISK_NONE (-1)
#define DISK_BATCHES 2

enum disk_name { DISK_BASE, DISK_NEXT, DISK_NAMES };

struct disk_file {
    ino_t inode; /* 0: free */
    uint64_t age;
    uint8_t *medium;
    uint8_t *dirty; /* by page */
    size_t capacity;
    size_t medium_length;
};

struct disk_change {
    int file, from, to;
};

static struct {
    pthread_mutex_t mutex;
    struct random random;
    char directory[64];
    char path[DISK_NAMES][96];
    struct disk_file files[DISK_FILES];
    uint64_t ages;
    int cached[DISK_NAMES];  /* which file has the name, as processes see it */
    int durable[DISK_NAMES]; /* and on the medium */
    struct disk_change changes[DISK_FILES];
    int change_count;

    /* How it behaves. */
    int64_t steps_left; /* so many calls, and the process dies in the last one; negative: it lives */
    int64_t room;       /* by so much may files grow; negative: without end */
    int fail_write, short_write, fail_sync, no_fallocate;
    off_t unreadable_from; /* negative: all can be read */
    uint64_t held;         /* 1: syncs wait for `may_return`; DISK_BATCHES: those of batches do */
    sem_t entered, may_return;

    /* What happened. */
    int dead, wrote_batch;
    uint64_t calls, writes, syncs, directory_syncs;
} disk = {.mutex = PTHREAD_MUTEX_INITIALIZER};

static inline uint64_t disk_random(uint64_t end) { return random_below(&disk.random, end); }

static inline void disk_behave(void) {
    disk.steps_left = disk.room = -1;
    disk.unreadable_from = -1;
    disk.fail_write = disk.short_write = disk.fail_sync = disk.no_fallocate = disk.dead = 0;
    ph_store_relaxed(&disk.held, 0);
}

/* An empty directory. */
static inline void disk_format(void) {
    for (int name = 0; name < DISK_NAMES; name++) {
        unlink(disk.path[name]);
        disk.cached[name] = disk.durable[name] = DISK_NONE;
    }
    for (int i = 0; i < DISK_FILES; i++) {
        disk.files[i].inode = 0;
    }
    disk.change_count = 0;
    disk_behave();
}

static inline void disk_start(const char *test) {
    const char *parent = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
    disk.random = random_start();
    snprintf(disk.directory, sizeof disk.directory, "%s/%s-%d", parent, test, (int)getpid());
    snprintf(disk.path[DISK_BASE], sizeof disk.path[0], "%s/0003.counters", disk.directory);
    snprintf(disk.path[DISK_NEXT], sizeof disk.path[0], "%s/0003.counters.next", disk.directory);
    REQUIRE(mkdir(disk.directory, 0700) == 0);
    sem_init(&disk.entered, 0, 0);
    sem_init(&disk.may_return, 0, 0);
    disk_format();
}

static inline void disk_end(void) {
    char temporary[128];
    disk_format();
    for (int name = 0; name < DISK_NAMES; name++) {
        snprintf(temporary, sizeof temporary, "%s.new", disk.path[name]);
        unlink(temporary);
    }
    for (int i = 0; i < DISK_FILES; i++) {
        free(disk.files[i].medium);
        free(disk.files[i].dirty);
    }
    CHECK_EQ_U64(rmdir(disk.directory), 0);
}

/* While another thread may be at it. */
static inline void disk_lock(void) { pthread_mutex_lock(&disk.mutex); }

static inline void disk_unlock(void) { pthread_mutex_unlock(&disk.mutex); }

/* --- files */

static inline struct stat disk_status(int fd) {
    struct stat status;
    REQUIRE(fstat(fd, &status) == 0);
    return status;
}

static inline int disk_is_referred_to(int file) {
    for (int i = 0; i < disk.change_count; i++) {
        if (disk.changes[i].file == file) {
            return 1;
        }
    }
    return disk.cached[DISK_BASE] == file || disk.cached[DISK_NEXT] == file || disk.durable[DISK_BASE] == file ||
           disk.durable[DISK_NEXT] == file;
}

static inline int disk_known(ino_t inode) {
    for (int i = 0; i < DISK_FILES; i++) {
        if (disk.files[i].inode == inode) {
            return i;
        }
    }
    return DISK_NONE;
}

static inline void disk_reserve(struct disk_file *file, size_t length) {
    if (length > file->capacity) {
        size_t capacity = (length + DISK_PAGE) / DISK_PAGE * DISK_PAGE * 2;
        file->medium = realloc(file->medium, capacity);
        file->dirty = realloc(file->dirty, capacity / DISK_PAGE);
        REQUIRE(file->medium != NULL && file->dirty != NULL);
        memset(file->medium + file->capacity, 0, capacity - file->capacity);
        memset(file->dirty + file->capacity / DISK_PAGE, 0, (capacity - file->capacity) / DISK_PAGE);
        file->capacity = capacity;
    }
}

/* A file that was not seen before takes the place of the oldest that has no name. */
static inline int disk_file_of(int fd) {
    struct stat status = disk_status(fd);
    int found = disk_known(status.st_ino);
    if (found == DISK_NONE) {
        for (int i = 0; i < DISK_FILES; i++) {
            if (!disk_is_referred_to(i) && (found == DISK_NONE || disk.files[i].age < disk.files[found].age)) {
                found = i;
            }
        }
        REQUIRE(found != DISK_NONE);
        struct disk_file *file = &disk.files[found];
        file->inode = status.st_ino;
        file->age = ++disk.ages;
        file->medium_length = 0;
        if (file->capacity > 0) {
            memset(file->medium, 0, file->capacity);
            memset(file->dirty, 0, file->capacity / DISK_PAGE);
        }
    }
    disk_reserve(&disk.files[found], (size_t)status.st_size);
    return found;
}

/* Dirty pages reach the medium: whole, or each sector of them not at all, whole, or in part. */
static inline void disk_write_back(struct disk_file *file, int fd, int whole) {
    uint8_t page[DISK_PAGE];
    for (size_t at = 0; at < file->capacity; at += DISK_PAGE) {
        if (!file->dirty[at / DISK_PAGE]) {
            continue;
        }
        memset(page, 0, sizeof page);
        REQUIRE(syscall(SYS_pread64, fd, page, sizeof page, at) >= 0);
        for (size_t sector = 0; sector < DISK_PAGE; sector += DISK_SECTOR) {
            uint64_t how = whole ? 1 : disk_random(4);
            size_t cut = how == 1 ? DISK_SECTOR : how == 2 ? disk_random(DISK_SECTOR + 1) : 0;
            memcpy(file->medium + at + sector, page + sector, cut);
            for (size_t i = 0; how == 3 && i < DISK_SECTOR; i++) {
                uint8_t *byte = &file->medium[at + sector + i];
                *byte = disk_random(2) ? page[sector + i] : *byte;
            }
        }
        file->dirty[at / DISK_PAGE] = (uint8_t)(whole ? 0 : file->dirty[at / DISK_PAGE]);
    }
}

static inline void disk_mark_clean(struct disk_file *file) { memset(file->dirty, 0, file->capacity / DISK_PAGE); }

static inline void disk_make_durable(int changes) {
    for (int i = 0; i < changes; i++) {
        const struct disk_change *change = &disk.changes[i];
        disk.durable[change->to] = change->file;
        if (change->from != DISK_NONE) {
            disk.durable[change->from] = DISK_NONE;
        }
    }
    disk.change_count -= changes;
    memmove(&disk.changes[0], &disk.changes[changes], (size_t)disk.change_count * sizeof disk.changes[0]);
}

/* What the medium holds is what there is; nobody has the files open any more. */
static inline void disk_power_cut(void) {
    for (int name = 0; name < DISK_NAMES; name++) {
        if (disk.cached[name] != DISK_NONE) {
            struct disk_file *file = &disk.files[disk.cached[name]];
            int fd = open(disk.path[name], O_RDONLY | O_CLOEXEC);
            REQUIRE(fd >= 0);
            disk_write_back(file, fd, 0);
            size_t length = (size_t)disk_status(fd).st_size;
            file->medium_length = disk_random(2) ? length : file->medium_length;
            close(fd);
        }
    }
    disk_make_durable((int)disk_random((uint64_t)disk.change_count + 1));
    disk.change_count = 0;
    for (int name = 0; name < DISK_NAMES; name++) {
        unlink(disk.path[name]);
        disk.cached[name] = disk.durable[name];
        if (disk.durable[name] != DISK_NONE) {
            struct disk_file *file = &disk.files[disk.durable[name]];
            int fd = open(disk.path[name], O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
            REQUIRE(fd >= 0);
            REQUIRE(syscall(SYS_pwrite64, fd, file->medium, file->medium_length, 0) == (long)file->medium_length);
            memset(file->medium + file->medium_length, 0, file->capacity - file->medium_length);
            disk_mark_clean(file);
            file->inode = disk_status(fd).st_ino;
            close(fd);
        }
    }
}

/* --- system calls */

/* Whether the call is carried out at all; *last: the process dies in it. */
static inline int disk_step(int *last) {
    disk.calls++;
    *last = disk.steps_left > 0 && --disk.steps_left == 0;
    int goes_on = !disk.dead;
    disk.dead |= *last;
    errno = EIO;
    return goes_on;
}

static inline int disk_grow(int fd, size_t end) {
    size_t length = (size_t)disk_status(fd).st_size;
    int64_t by = end > length ? (int64_t)(end - length) : 0;
    if (disk.room >= 0 && by > disk.room) {
        return ENOSPC;
    }
    disk.room -= disk.room >= 0 ? by : 0;
    return 0;
}

static inline ssize_t disk_do_write(int fd, const void *data, size_t length, off_t offset, int last) {
    int file = disk_file_of(fd);
    disk.wrote_batch = length >= DISK_SECTOR && memcmp(data, "BTCH", 4) == 0;
    size_t part = last || disk.short_write ? disk_random(length) : length;
    if (disk.fail_write) {
        errno = EIO;
        return -1;
    }
    errno = disk_grow(fd, (size_t)offset + part);
    if (errno != 0) {
        return -1;
    }
    ssize_t written = syscall(SYS_pwrite64, fd, data, part, offset);
    disk_file_of(fd); /* it may have grown */
    for (size_t at = (size_t)offset / DISK_PAGE; part > 0 && at <= ((size_t)offset + part - 1) / DISK_PAGE; at++) {
        disk.files[file].dirty[at] = 1;
    }
    errno = EIO;
    return last ? -1 : written;
}

ssize_t pwrite(int fd, const void *data, size_t length, off_t offset) {
    int last;
    disk_lock();
    disk.writes++;
    ssize_t written = disk_step(&last) ? disk_do_write(fd, data, length, offset, last) : -1;
    int error = errno;
    disk_unlock();
    errno = error;
    return written;
}

int posix_fallocate(int fd, off_t offset, off_t length) {
    int last;
    disk_lock();
    int error = disk_step(&last) ? 0 : EIO;
    struct stat before = disk_status(fd);
    if (before.st_size == 0 && disk_known(before.st_ino) != DISK_NONE) {
        disk.files[disk_known(before.st_ino)].inode = 0; /* a number that is used again */
    }
    if (error == 0 && disk.no_fallocate) {
        error = EOPNOTSUPP;
    } else if (error == 0) {
        disk_file_of(fd);
        error = disk_grow(fd, (size_t)(offset + length));
        error = error != 0 || syscall(SYS_fallocate, fd, 0, offset, length) == 0 ? error : errno;
        disk_file_of(fd);
    }
    disk_unlock();
    return last ? EIO : error;
}

static inline int disk_do_sync(int fd, int last) {
    if (S_ISDIR(disk_status(fd).st_mode)) {
        disk.directory_syncs++;
        int fails = last || disk.fail_sync;
        disk_make_durable(fails ? (int)disk_random((uint64_t)disk.change_count + 1) : disk.change_count);
        return fails ? -1 : 0;
    }
    struct disk_file *file = &disk.files[disk_file_of(fd)];
    disk.syncs++;
    if (last || disk.fail_sync) {
        disk_write_back(file, fd, 0);
        if (!last) {
            disk_mark_clean(file);
        }
        return -1;
    }
    disk_write_back(file, fd, 1);
    file->medium_length = (size_t)disk_status(fd).st_size;
    return 0;
}

static inline int disk_sync(int fd) {
    int last;
    disk_lock();
    int wrote_batch = disk.wrote_batch;
    disk_unlock();
    uint64_t held = ph_load_relaxed(&disk.held);
    if (held == 1 || (held == DISK_BATCHES && wrote_batch)) {
        sem_post(&disk.entered);
        while (sem_wait(&disk.may_return) != 0) {
        }
    }
    disk_lock();
    int result = disk_step(&last) ? disk_do_sync(fd, last) : -1;
    disk_unlock();
    errno = EIO;
    return result;
}

int fsync(int fd) { return disk_sync(fd); }

int fdatasync(int fd) { return disk_sync(fd); }

static inline int disk_name_of(const char *path) {
    return strcmp(path, disk.path[DISK_BASE]) == 0   ? DISK_BASE
           : strcmp(path, disk.path[DISK_NEXT]) == 0 ? DISK_NEXT
                                                     : DISK_NONE;
}

static inline int disk_do_rename(const char *from, const char *to) {
    struct stat status;
    struct disk_change change = {.from = disk_name_of(from), .to = disk_name_of(to)};
    if (change.to == DISK_NONE || stat(from, &status) != 0) {
        return (int)syscall(SYS_renameat, AT_FDCWD, from, AT_FDCWD, to);
    }
    change.file = disk_known(status.st_ino);
    REQUIRE(change.file != DISK_NONE && disk.change_count < DISK_FILES);
    if (disk.cached[change.to] != DISK_NONE) { /* what is about to lose its name is not seen any more */
        int fd = open(to, O_RDONLY | O_CLOEXEC);
        disk_write_back(&disk.files[disk.cached[change.to]], fd, 0);
        close(fd);
    }
    disk.changes[disk.change_count++] = change;
    disk.cached[change.to] = change.file;
    if (change.from != DISK_NONE) {
        disk.cached[change.from] = DISK_NONE;
    }
    return (int)syscall(SYS_renameat, AT_FDCWD, from, AT_FDCWD, to);
}

int rename(const char *from, const char *to) {
    int last;
    disk_lock();
    int result = disk_step(&last) ? disk_do_rename(from, to) : -1;
    int error = errno;
    disk_unlock();
    errno = error;
    return last ? -1 : result;
}

ssize_t pread(int fd, void *data, size_t length, off_t offset) {
    if (disk.unreadable_from >= 0 && offset + (off_t)length > disk.unreadable_from) {
        length = offset < disk.unreadable_from ? (size_t)(disk.unreadable_from - offset) : 0;
        if (length == 0) {
            errno = EIO;
            return -1;
        }
    }
    return syscall(SYS_pread64, fd, data, length, offset);
}

#endif
