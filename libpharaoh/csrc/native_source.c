/*
 * `Source` of `libpharaoh._native`, the base of Session: prefetched ids, and the lock around everything else.
 *
 * Invariants
 * - A pop holds the GIL from beginning to end, and a source's ring is changed under the GIL only: it is never freed under
 *   a pop. Nothing here waits for another thread's GIL: the ring's lock is held by code that needs none.
 * - `last` never falls: it is compared and stored without giving up the GIL in between.
 * - The lock is taken and given back here, where no bytecode, and so no signal's handler, can come in between. Its owner is
 *   known: a handler that asks for what its own thread holds is told so.
 * - A lock serves the process that made it. A child makes a new one, in which `dirty` says that all the rest is its
 *   parent's. A call that ends in a child which was forked during it gives back nothing: the lock was the parent's.
 * - An exception that is none of ours may have come at any bytecode: the session is then dirty, and the next call begins
 *   by letting everything go (`_tidy`).
 */
#include "native.h"

#include <time.h>

#define WAIT_US_MAX 1e15

PyTypeObject *ph_py_source_type;
static PyObject *pharaoh_error, *busy_error, *timed_out_error;

static struct ph_py_source *source_of(PyObject *self) { return (struct ph_py_source *)self; }

double ph_py_monotonic(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static PyObject *source_pop(PyObject *self, PyObject *unused) {
    (void)unused;
    return PyLong_FromUnsignedLongLong(ph_py_pop(source_of(self)));
}

static PyObject *source_take(PyObject *self, PyObject *arguments) {
    struct ph_py_source *source = source_of(self);
    struct ph_py_ring *ring = source->ring;
    PyObject *ids;
    Py_ssize_t start;
    Py_buffer buffer;
    if (!PyArg_ParseTuple(arguments, "On:take", &ids, &start) ||
        PyObject_GetBuffer(ids, &buffer, PyBUF_WRITABLE | PyBUF_FORMAT) != 0) {
        return NULL;
    }
    Py_ssize_t room = buffer.len / (Py_ssize_t)sizeof(uint64_t) - start;
    size_t taken = 0;
    if (ring != NULL && ring->handle != NULL && start >= 0 && room > 0 && buffer.itemsize == sizeof(uint64_t)) {
        uint64_t *out = (uint64_t *)buffer.buf + start;
        Py_INCREF((PyObject *)ring);
        taken = ph_py_ring_take(ring, out, (size_t)room);
        Py_DECREF((PyObject *)ring);
        if (taken > 0 && out[taken - 1] > source->last) {
            source->last = out[taken - 1];
        }
    }
    PyBuffer_Release(&buffer);
    return PyLong_FromSize_t(taken);
}

static PyObject *source_draw_from(PyObject *self, PyObject *ring) {
    struct ph_py_source *source = source_of(self);
    PyObject *before = (PyObject *)source->ring;
    if (ring != Py_None && !PyObject_TypeCheck(ring, ph_py_ring_type)) {
        PyErr_SetString(PyExc_TypeError, "a Ring or None was expected");
        return NULL;
    }
    source->ring = ring == Py_None ? NULL : (struct ph_py_ring *)Py_NewRef(ring);
    Py_XDECREF(before);
    Py_RETURN_NONE;
}

/* The lock of a new process. -1 with an exception. */
static int begin(struct ph_py_source *source) {
    PyThread_type_lock lock = PyThread_allocate_lock();
    if (lock == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    if (source->lock != NULL) {
        PyThread_free_lock(source->lock); /* nobody of this process waits for it */
    }
    source->lock = lock;
    source->owner = 0;
    source->process = ph_py_process();
    source->dirty = 1;
    return 0;
}

static void take_over(struct ph_py_source *source, double deadline) {
    source->owner = PyThread_get_thread_ident();
    source->caller = source->process;
    source->deadline = deadline;
}

/* 0 with the lock, which is this process's; -1 with an exception. */
static int acquire(struct ph_py_source *source, double deadline) {
    unsigned long long process = ph_py_process();
    for (;;) {
        if (source->process != ph_py_process() && begin(source) != 0) {
            return -1;
        }
        if (PyThread_acquire_lock(source->lock, NOWAIT_LOCK)) {
            take_over(source, deadline);
            return 0;
        }
        if (source->owner == PyThread_get_thread_ident()) {
            PyErr_SetString(busy_error, "a signal's handler, or a finalizer, came in between");
            return -1;
        }
        double left_us = (deadline - ph_py_monotonic()) * 1e6;
        if (left_us <= 0) {
            PyErr_SetString(timed_out_error, "another thread's request is still under way");
            return -1;
        }
        PyThread_type_lock lock = source->lock;
        PyThreadState *thread = PyEval_SaveThread();
        PyLockStatus status =
            PyThread_acquire_lock_timed(lock, (PY_TIMEOUT_T)(left_us < WAIT_US_MAX ? left_us : WAIT_US_MAX), 1);
        PyEval_RestoreThread(thread);
        if (status == PY_LOCK_ACQUIRED) {
            take_over(source, deadline);
            return 0;
        }
        if (status == PY_LOCK_INTR && PyErr_CheckSignals() != 0) {
            return -1;
        }
        if (ph_py_process() != process) {
            PyErr_SetString(ph_py_forked_error, "the call that waited for the lock was begun by another process");
            return -1;
        }
    }
}

/* Lets everything go that may be another process's or half made. Stays to be done when it is interrupted itself. */
static int tidy(struct ph_py_source *source, unsigned long long process) {
    PyObject *nothing = PyObject_CallMethod((PyObject *)source, "_tidy", NULL);
    Py_XDECREF(nothing);
    if (nothing != NULL && ph_py_process() == process) {
        source->dirty = 0;
    }
    return nothing != NULL ? 0 : -1;
}

/* A closed client's call leaves nothing. What interrupts that is what the caller hears of. */
static PyObject *tidied(struct ph_py_source *source, PyObject *result, unsigned long long process) {
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    source->dirty = 1;
    if (tidy(source, process) == 0) {
        PyErr_Restore(type, value, traceback);
        return result;
    }
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(traceback);
    Py_XDECREF(result);
    return NULL;
}

/* The end of a call with the lock. In a child that was forked during the call the lock stays as it is. */
static PyObject *end_call(struct ph_py_source *source, PyObject *result, unsigned long long process) {
    if (ph_py_process() == process && result == NULL && !PyErr_ExceptionMatches(pharaoh_error)) {
        source->dirty = 1;
    }
    if (ph_py_process() == process && source->closed) {
        result = tidied(source, result, process);
    }
    if (ph_py_process() == process) {
        source->owner = 0;
        PyThread_release_lock(source->lock);
    }
    return result;
}

static PyObject *source_locked(PyObject *self, PyObject *arguments) {
    struct ph_py_source *source = source_of(self);
    double deadline = ph_py_monotonic() + source->timeout;
    Py_ssize_t count = PyTuple_Size(arguments);
    if (count < 1) {
        PyErr_SetString(PyExc_TypeError, "locked() needs a function");
        return NULL;
    }
    PyObject *rest = PyTuple_GetSlice(arguments, 1, count);
    if (rest == NULL || acquire(source, deadline) != 0) {
        Py_XDECREF(rest);
        return NULL;
    }
    unsigned long long process = source->caller;
    PyObject *result = NULL;
    if (!source->dirty || tidy(source, process) == 0) {
        result = PyObject_Call(PyTuple_GetItem(arguments, 0), rest, NULL);
    }
    Py_DECREF(rest);
    return end_call(source, result, process);
}

static PyObject *source_note(PyObject *self, PyObject *object) {
    unsigned long long id = PyLong_AsUnsignedLongLong(object);
    if (id == (unsigned long long)-1 && PyErr_Occurred()) {
        return NULL;
    }
    if (id > source_of(self)->last) {
        source_of(self)->last = id;
    }
    Py_RETURN_NONE;
}

static PyObject *source_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords) {
    PyObject *self = PyType_GenericAlloc(type, 0);
    (void)arguments;
    (void)keywords;
    if (self != NULL && begin(source_of(self)) != 0) {
        Py_CLEAR(self);
    }
    return self;
}

static int source_traverse(PyObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT((PyObject *)source_of(self)->ring);
    return 0;
}

static int source_clear(PyObject *self) {
    PyObject *ring = (PyObject *)source_of(self)->ring;
    source_of(self)->ring = NULL;
    Py_XDECREF(ring);
    return 0;
}

static void source_deallocate(PyObject *self) {
    PyObject_GC_UnTrack(self);
    source_clear(self);
    if (source_of(self)->lock != NULL) {
        PyThread_free_lock(source_of(self)->lock);
    }
    ph_py_free(self);
}

static PyMethodDef methods[] = {
    {"pop", source_pop, METH_NOARGS, "pop($self, /)\n--\n\nThe next id of the ring, or 0. Needs no lock."},
    {"take", source_take, METH_VARARGS,
     "take($self, ids, start, /)\n--\n\n"
     "Fills an array('Q') from `start` on with increasing ids of the ring. How many there were. Needs no lock."},
    {"note", source_note, METH_O,
     "note($self, id, /)\n--\n\nRemembers an id in `last` if it is greater. Needs no lock."},
    {"draw_from", source_draw_from, METH_O,
     "draw_from($self, ring, /)\n--\n\nPops come from this Ring from now on, or from None."},
    {"locked", source_locked, METH_VARARGS,
     "locked($self, function, /, *arguments)\n--\n\n"
     "Calls the function with the lock, which is given back whatever comes in between.\n\n"
     "Raises ClientBusyError when this very thread has the lock, TimedOutError, and what the function raises."},
    {NULL, NULL, 0, NULL},
};

#define AT(field) offsetof(struct ph_py_source, field)
static PyMemberDef members[] = {
    {"last", T_ULONGLONG, AT(last), READONLY, "The greatest id of next_id and next_ids; if causal, of all."},
    {"timeout", T_DOUBLE, AT(timeout), 0, "Seconds that a call may take."},
    {"deadline", T_DOUBLE, AT(deadline), READONLY, "When the call ends that has the lock."},
    {"caller", T_ULONGLONG, AT(caller), READONLY, "The process in which that call began."},
    {"closed", T_BOOL, AT(closed), 0, "Whether everything is let go at the end of each call."},
    {"dirty", T_BOOL, AT(dirty), READONLY, "Whether the next call begins by letting everything go."},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_new, source_new},
    {Py_tp_methods, methods},
    {Py_tp_members, members},
    {Py_tp_traverse, source_traverse},
    {Py_tp_clear, source_clear},
    {Py_tp_dealloc, source_deallocate},
    {0, NULL},
};

static PyType_Spec spec = {"libpharaoh._native.Source", sizeof(struct ph_py_source), 0,
                           Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC, slots};

int ph_py_add_source(PyObject *module) {
    PyObject *errors = PyImport_ImportModule("libpharaoh.errors");
    if (errors == NULL) {
        return -1;
    }
    pharaoh_error = PyObject_GetAttrString(errors, "PharaohError");
    busy_error = PyObject_GetAttrString(errors, "ClientBusyError");
    timed_out_error = PyObject_GetAttrString(errors, "TimedOutError");
    Py_DECREF(errors);
    ph_py_source_type = (PyTypeObject *)PyType_FromSpec(&spec);
    if (pharaoh_error == NULL || busy_error == NULL || timed_out_error == NULL || ph_py_source_type == NULL) {
        return -1;
    }
    return PyModule_AddType(module, ph_py_source_type);
}
