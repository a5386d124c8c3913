/*
 * The layout of the page in memory that all workers of a host share. Its rules stand in engine/hosttime.h (moments) and
 * engine/issuer.h (positions).
 */
#ifndef PH_HOST_PAGE_H
#define PH_HOST_PAGE_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#include "ph_scarab.h"

#define PH_HOST_PAGE_MAGIC UINT64_C(0x31454741504f4850) /* "PHOPAGE1" in memory */
#define PH_HOST_PAGE_VERSION 1
#define PH_MOMENTS_MAX 2050 /* two for each coordinator's worker, two for the supervisor */
#define PH_SUPERVISOR_WRITER 1024

struct ph_moment {
    int64_t host_ns; /* V, since 1970 */
    int64_t boottime_ns;
    int64_t realtime_ns;
    int64_t unused;
};

/* How far one coordinator has come. Two cache lines of its own: whoever issues writes here for each id. */
struct ph_position {
    uint64_t next_tick;       /* everything that was issued lies below; ph_position_next() in issuer.h */
    uint64_t durable_ceiling; /* nothing at or above it is issued */
    uint64_t start_id;        /* the host start that this is of; 0: the coordinator was no part of it */
    uint64_t start_id_before; /* what the coordinator's record named when that start read it */
    uint8_t pad[96];
};

struct ph_host_page {
    uint64_t magic;
    uint64_t version;
    uint8_t boot_id[16];
    uint8_t directory_id[16]; /* of the state directory */
    uint64_t inode;           /* of this file and its birth: a copy of it has others */
    int64_t birth_ns;
    uint64_t start_id; /* drawn at random by each host start */
    uint8_t pad0[56];

    uint64_t current;     /* moments published so far << 16 | the index of the newest one */
    uint64_t accept_jump; /* 1: the operator says that the wall clock is right */
    uint8_t pad1[112];

    struct ph_moment moments[PH_MOMENTS_MAX];
    uint8_t pad2[64];
    struct ph_position positions[PH_COORDINATOR_MAX];
};

static_assert(PH_MOMENTS_MAX == 2 * (PH_COORDINATOR_MAX + 1), "two moments for each writer");
static_assert(PH_SUPERVISOR_WRITER == PH_COORDINATOR_MAX, "the supervisor comes after all coordinators");
static_assert(sizeof(struct ph_moment) == 32, "moment's size is part of the page's version");
static_assert(sizeof(struct ph_position) == 128, "position's size is part of the page's version");
static_assert(offsetof(struct ph_host_page, current) == 128, "current has two cache lines of its own");
static_assert(offsetof(struct ph_host_page, moments) == 256, "moments follow the header");
static_assert(offsetof(struct ph_host_page, positions) % 128 == 0, "positions are aligned");

#endif
