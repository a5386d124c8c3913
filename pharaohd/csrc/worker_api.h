/* What Python calls. A worker serves inside ph_worker_run() and comes back only when there is something for Python. */
#ifndef PH_WORKER_API_H
#define PH_WORKER_API_H

#include <stdint.h>

#include "base/events.h"
#include "durable/obelisk.h"
#include "engine/inspect.h"
#include "service/config.h"

struct ph_worker;

/*
 * Takes the Obelisk, makes a new ceiling durable and is then ready to serve. The strings and addresses in `config` must
 * outlive the worker. Returns NULL with `fault` filled in.
 */
struct ph_worker *ph_worker_open(const struct ph_worker_config *config, struct ph_fault *fault);
/* Serves until there is an event for Python. */
void ph_worker_run(struct ph_worker *worker, struct ph_event *event);
/* Those that may not change while it runs must be as they were. */
void ph_worker_reload(struct ph_worker *worker, const struct ph_settings *settings);
/* Hangs up, writes the exact position and gives the Obelisk back. Returns 0, or a code with `fault` filled in. */
int ph_worker_close(struct ph_worker *worker, struct ph_fault *fault);

#endif
