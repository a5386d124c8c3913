/* What the files of `libpharaoh._native` know of each other. See native.c for what holds in all of them. */
#ifndef PH_NATIVE_H
#define PH_NATIVE_H

#ifndef Py_LIMITED_API
#error "setup.py says which stable ABI this is built for"
#endif
#include <Python.h>
#include <stddef.h>
#include <structmember.h>

#include "ph_ring.h"

/* A ring and its doorbell. */
struct ph_py_ring {
    PyObject_HEAD struct ph_ring *handle; /* NULL once it is closed */
    int doorbell_fd;
    int users; /* calls that use the handle without the GIL */
    char closing;
    unsigned int coordinator;
};

/* Base of Session: where prefetched ids come from, and the lock. */
struct ph_py_source {
    PyObject_HEAD struct ph_py_ring *ring; /* pops come from it; or NULL */
    unsigned long long last;               /* the greatest id of next_id; of a causal client, of any call */
    PyThread_type_lock lock;
    unsigned long owner;        /* the thread that holds the lock, or 0 */
    unsigned long long process; /* the one that made the lock */
    unsigned long long caller;  /* the one in which the call that holds the lock, or held it last, began */
    double timeout;             /* seconds that a call may take */
    double deadline;            /* of the call that holds the lock, as time.monotonic() */
    char closed;
    char dirty; /* what it holds is another process's, or was left in the middle of a step */
};

extern PyTypeObject *ph_py_ring_type;
extern PyTypeObject *ph_py_source_type;
extern PyObject *ph_py_forked_error;

/* A number that tells this process from its parent and its children, however they were made. Those that never asked may
   have a number in common. */
unsigned long long ph_py_process(void);

double ph_py_monotonic(void);
void ph_py_free(PyObject *self);

/* Each adds its types and functions to the module. 0, or -1 with an exception. */
int ph_py_add_ring(PyObject *module);
int ph_py_add_source(PyObject *module);
int ph_py_add_socket(PyObject *module);

/* As ph_ring_take_locked(), without the GIL. The caller holds a reference, and has seen that the ring is open. */
size_t ph_py_ring_take(struct ph_py_ring *ring, uint64_t *out, size_t count);

/* Takes three descriptors out of the object that has them from a message. 0, or -1 with an exception. */
int ph_py_descriptors_take(PyObject *descriptors, int fds[3]);

static inline uint64_t ph_py_pop(struct ph_py_source *source) {
    uint64_t id = source->ring != NULL && source->ring->handle != NULL ? ph_ring_next_locked(source->ring->handle) : 0;
    if (id > source->last) {
        source->last = id;
    }
    return id;
}

#endif
