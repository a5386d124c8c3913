/*
 * `Ring` of `libpharaoh._native`: a mapped ring that gives itself back.
 *
 * Invariants
 * - Descriptors and mappings belong to an object from the call on in which they come into being: an exception at any
 *   bytecode leaks neither.
 * - The handle is freed only when no call uses it: those that give up the GIL count themselves first. In a forked child
 *   nobody else can be in such a call, whatever the count says.
 * - A closed ring answers as an empty one that is lost.
 */
#include "native.h"

#include <errno.h>
#include <unistd.h>

#include "ph_ring_layout.h"

PyTypeObject *ph_py_ring_type;

static struct ph_py_ring *ring_of(PyObject *self) { return (struct ph_py_ring *)self; }

static void give_back(struct ph_py_ring *ring) {
    struct ph_ring *handle = ring->handle;
    ring->handle = NULL;
    if (handle != NULL) {
        ph_ring_close(handle);
    }
    if (ring->doorbell_fd >= 0) {
        close(ring->doorbell_fd);
        ring->doorbell_fd = -1;
    }
}

static PyThreadState *enter(struct ph_py_ring *ring) {
    ring->users++;
    return PyEval_SaveThread();
}

static void leave(struct ph_py_ring *ring, PyThreadState *thread) {
    PyEval_RestoreThread(thread);
    ring->users--;
    if (ring->closing && ring->users == 0) {
        give_back(ring);
    }
}

static PyObject *ring_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords) {
    PyObject *descriptors;
    long long skew_ns;
    unsigned long long age_ns;
    static char *names[] = {"descriptors", "skew_ns", "age_ns", NULL};
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "OLK:Ring", names, &descriptors, &skew_ns, &age_ns)) {
        return NULL;
    }
    PyObject *self = PyType_GenericAlloc(type, 0);
    int fds[3];
    if (self == NULL) {
        return NULL;
    }
    struct ph_py_ring *ring = ring_of(self);
    ring->doorbell_fd = -1; /* before anything can fail: 0 is a descriptor too */
    if (ph_py_descriptors_take(descriptors, fds) != 0) {
        Py_DECREF(self);
        return NULL;
    }
    ring->handle = ph_ring_open(fds[0], fds[1], fds[2], skew_ns, age_ns);
    int error = errno;
    close(fds[0]);
    close(fds[1]);
    ring->doorbell_fd = fds[2];
    if (ring->handle == NULL) {
        Py_DECREF(self);
        errno = error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    ring->coordinator = ph_ring_coordinator(ring->handle);
    return self;
}

static void ring_deallocate(PyObject *self) {
    give_back(ring_of(self));
    ph_py_free(self);
}

static int is_closed(const struct ph_py_ring *ring) { return ring->handle == NULL || ring->closing; }

static int number(PyObject *object, unsigned long long *value) {
    *value = PyLong_AsUnsignedLongLong(object);
    return *value != (unsigned long long)-1 || !PyErr_Occurred();
}

static PyObject *wrong_count(void) {
    PyErr_SetString(PyExc_TypeError, "another number of arguments was expected");
    return NULL;
}

static PyObject *ring_strict(PyObject *self, PyObject *const *arguments, Py_ssize_t count) {
    struct ph_py_ring *ring = ring_of(self);
    unsigned long long coordinator = PH_RING_KEYLESS, after, timeout_ns;
    if (count != 3) {
        return wrong_count();
    }
    if ((arguments[0] != Py_None && !number(arguments[0], &coordinator)) || !number(arguments[1], &after) ||
        !number(arguments[2], &timeout_ns)) {
        return NULL;
    }
    uint64_t id = 0;
    if (!is_closed(ring)) {
        PyThreadState *thread = enter(ring);
        id = ph_ring_strict_locked(ring->handle, (uint32_t)coordinator, after, timeout_ns);
        leave(ring, thread);
    }
    return PyLong_FromUnsignedLongLong(id);
}

size_t ph_py_ring_take(struct ph_py_ring *ring, uint64_t *out, size_t count) {
    PyThreadState *thread = enter(ring);
    size_t taken = ph_ring_take_locked(ring->handle, out, count);
    leave(ring, thread);
    return taken;
}

static PyObject *ring_wait(PyObject *self, PyObject *argument) {
    struct ph_py_ring *ring = ring_of(self);
    unsigned long long timeout_ns;
    if (!number(argument, &timeout_ns)) {
        return NULL;
    }
    if (!is_closed(ring)) {
        PyThreadState *thread = enter(ring);
        ph_ring_wait_locked(ring->handle, timeout_ns);
        leave(ring, thread);
    }
    Py_RETURN_NONE;
}

static PyObject *ring_raise_floor(PyObject *self, PyObject *argument) {
    struct ph_py_ring *ring = ring_of(self);
    unsigned long long id;
    if (!number(argument, &id)) {
        return NULL;
    }
    if (!is_closed(ring)) {
        PyThreadState *thread = enter(ring);
        ph_ring_raise_floor_locked(ring->handle, id);
        leave(ring, thread);
    }
    Py_RETURN_NONE;
}

static PyObject *ring_status(PyObject *self, PyObject *unused) {
    struct ph_py_ring *ring = ring_of(self);
    (void)unused;
    return PyLong_FromLong(is_closed(ring) ? PH_RING_FORKED : ph_ring_status(ring->handle));
}

static PyObject *ring_close(PyObject *self, PyObject *unused) {
    struct ph_py_ring *ring = ring_of(self);
    (void)unused;
    if (ring->handle != NULL && ring->users > 0 && ph_ring_status(ring->handle) != PH_RING_FORKED) {
        ring->closing = 1;
    } else {
        give_back(ring);
    }
    Py_RETURN_NONE;
}

#define FAST(function) ((PyCFunction)(void (*)(void))(function))
static PyMethodDef methods[] = {
    {"strict", FAST(ring_strict), METH_FASTCALL,
     "strict($self, coordinator, after, timeout_ns, /)\n--\n\n"
     "An id issued now, of the coordinator that owns the key (None: without a key), greater than `after`, or 0."},
    {"wait", ring_wait, METH_O,
     "wait($self, timeout_ns, /)\n--\n\n"
     "Asks for grants and sleeps until there is something to take, the ring is lost, or the time is over."},
    {"raise_floor", ring_raise_floor, METH_O,
     "raise_floor($self, id, /)\n--\n\nFrom now on only ids greater than `id`."},
    {"status", ring_status, METH_NOARGS, "status($self, /)\n--\n\nA number of enum ph_ring_status."},
    {"close", ring_close, METH_NOARGS,
     "close($self, /)\n--\n\nGives memory and doorbell back, as soon as no other thread uses them."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef members[] = {
    {"coordinator", T_UINT, offsetof(struct ph_py_ring, coordinator), READONLY, "Whose ring it is."},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_new, ring_new},
    {Py_tp_dealloc, ring_deallocate},
    {Py_tp_methods, methods},
    {Py_tp_members, members},
    {0, NULL},
};

static PyType_Spec spec = {"libpharaoh._native.Ring", sizeof(struct ph_py_ring), 0,
                           Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE, slots};

int ph_py_add_ring(PyObject *module) {
    static const struct {
        const char *name;
        long value;
    } constants[] = {{"RING_REVOKED", PH_RING_REVOKED},
                     {"RING_FORKED", PH_RING_FORKED},
                     {"RING_DAMAGED", PH_RING_DAMAGED},
                     {"RING_VERSION", PH_RING_VERSION}};
    for (size_t i = 0; i < sizeof constants / sizeof constants[0]; i++) {
        if (PyModule_AddIntConstant(module, constants[i].name, constants[i].value) != 0) {
            return -1;
        }
    }
    ph_py_ring_type = (PyTypeObject *)PyType_FromSpec(&spec);
    return ph_py_ring_type != NULL ? PyModule_AddType(module, ph_py_ring_type) : -1;
}
