/* What a worker tells Python: lines to log, and that there is something to look at. */
#ifndef PH_EVENTS_H
#define PH_EVENTS_H

#include <stdint.h>

#define PH_EVENTS_MAX 8

enum ph_event_kind {
    PH_EVENT_LOG = 1,
    PH_EVENT_CONTROL = 2, /* control_fd is readable */
    PH_EVENT_STOP = 3,    /* SIGTERM */
};

enum ph_log_level { PH_LOG_INFO = 20, PH_LOG_WARNING = 30, PH_LOG_ERROR = 40 };

struct ph_event {
    int kind;
    int level;
    char text[240];
};

struct ph_events {
    struct ph_event list[PH_EVENTS_MAX];
    uint32_t count;
    uint32_t lines_this_second;
    uint64_t lines_left_out;
};

/* One that finds no room is lost: whoever reports it reports it again. */
void ph_events_add(struct ph_events *events, int kind);
/* A client may cause lines, but not a flood of them: the first few of each second, and how many more there were. */
void ph_log(struct ph_events *events, int level, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* Once a second. */
void ph_log_tend(struct ph_events *events);
/* The oldest one. There must be one. */
void ph_events_take(struct ph_events *events, struct ph_event *event);

#endif
