#include "base/events.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define LINES_PER_SECOND 10

void ph_events_add(struct ph_events *events, int kind) {
    if (events->count < PH_EVENTS_MAX) {
        events->list[events->count++] = (struct ph_event){.kind = kind};
    }
}

void ph_log(struct ph_events *events, int level, const char *format, ...) {
    if (events->count == PH_EVENTS_MAX || events->lines_this_second == LINES_PER_SECOND) {
        events->lines_left_out++;
        return;
    }
    events->lines_this_second++;
    struct ph_event *event = &events->list[events->count++];
    event->kind = PH_EVENT_LOG;
    event->level = level;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(event->text, sizeof event->text, format, arguments);
    va_end(arguments);
}

void ph_log_tend(struct ph_events *events) {
    events->lines_this_second = 0;
    if (events->lines_left_out > 0) {
        ph_log(events, PH_LOG_WARNING, "%llu more lines were left out", (unsigned long long)events->lines_left_out);
        events->lines_left_out = 0;
    }
}

void ph_events_take(struct ph_events *events, struct ph_event *event) {
    *event = events->list[0];
    events->count--;
    memmove(&events->list[0], &events->list[1], events->count * sizeof events->list[0]);
}
