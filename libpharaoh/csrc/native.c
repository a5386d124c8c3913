/*
 * `libpharaoh._native`: the one call whose cost is the call, `Client.next_id`, as a method of CPython's own kind.
 *
 * Invariants
 * - The core is ph_ring.c, as for cffi; nothing of a ring is known here but its address.
 * - A pop holds the GIL from beginning to end, and a source's ring is changed under the GIL only: it is never freed under
 *   a pop. Nothing here waits for another thread's GIL: the ring's lock is held by code that needs none.
 * - `last` never falls: it is compared and stored without giving up the GIL in between.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>
#include <stddef.h>
#include <structmember.h>

#include "ph_ring.h"

/* Base of Session: the prefetching ring, and the greatest id that next_id has returned; of a causal client, any call. */
struct source {
    PyObject_HEAD struct ph_ring *ring; /* or NULL */
    PyObject *keeper;                   /* whoever holds it owns the ring */
    unsigned long long last;
};

/* Base of Client. */
struct client {
    PyObject_HEAD struct source *session;
};

static PyTypeObject *source_type;

static uint64_t pop(struct source *source) {
    uint64_t id = source->ring != NULL ? ph_ring_next_locked(source->ring) : 0;
    if (id > source->last) {
        source->last = id;
    }
    return id;
}

static PyObject *source_pop(PyObject *self, PyObject *unused) {
    (void)unused;
    return PyLong_FromUnsignedLongLong(pop((struct source *)self));
}

static PyObject *source_draw_from(PyObject *self, PyObject *arguments) {
    struct source *source = (struct source *)self;
    PyObject *address, *keeper;
    if (!PyArg_ParseTuple(arguments, "OO:draw_from", &address, &keeper)) {
        return NULL;
    }
    struct ph_ring *ring = PyLong_AsVoidPtr(address);
    if (ring == NULL && PyErr_Occurred()) {
        return NULL;
    }
    PyObject *before = source->keeper;
    source->ring = ring;
    source->keeper = Py_NewRef(keeper);
    Py_XDECREF(before);
    Py_RETURN_NONE;
}

static int source_traverse(PyObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((struct source *)self)->keeper);
    return 0;
}

static int source_clear(PyObject *self) {
    struct source *source = (struct source *)self;
    source->ring = NULL;
    Py_CLEAR(source->keeper);
    return 0;
}

static int client_init(PyObject *self, PyObject *arguments, PyObject *keywords) {
    PyObject *session, *before = (PyObject *)((struct client *)self)->session;
    static char *names[] = {"session", NULL};
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O!:Client", names, source_type, &session)) {
        return -1;
    }
    ((struct client *)self)->session = (struct source *)Py_NewRef(session);
    Py_XDECREF(before);
    return 0;
}

static PyObject *client_next_id(PyObject *self, PyObject *unused) {
    struct source *session = ((struct client *)self)->session;
    (void)unused;
    uint64_t id = session != NULL ? pop(session) : 0;
    return id != 0 ? PyLong_FromUnsignedLongLong(id) : PyObject_CallMethod(self, "_next_id_slowly", NULL);
}

static int client_traverse(PyObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((struct client *)self)->session);
    return 0;
}

static int client_clear(PyObject *self) {
    Py_CLEAR(((struct client *)self)->session);
    return 0;
}

static void deallocate(PyObject *self, inquiry clear) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    clear(self);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

static void source_deallocate(PyObject *self) { deallocate(self, source_clear); }

static void client_deallocate(PyObject *self) { deallocate(self, client_clear); }

static PyMethodDef source_methods[] = {
    {"pop", source_pop, METH_NOARGS, "pop($self, /)\n--\n\nThe next id of the ring, or 0. Needs no lock."},
    {"draw_from", source_draw_from, METH_VARARGS,
     "draw_from($self, address, keeper, /)\n--\n\n"
     "Pops come from the ring at this address from now on, which lives as long as `keeper`; 0 for none."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef source_members[] = {
    {"last", T_ULONGLONG, offsetof(struct source, last), 0,
     "The greatest id of next_id and next_ids; if causal, of all."},
    {NULL, 0, 0, 0, NULL},
};

static PyMethodDef client_methods[] = {
    {"next_id", client_next_id, METH_NOARGS,
     "next_id($self, /)\n--\n\n"
     "A unique id, greater than all that next_id and next_ids of this client returned before; from shared memory.\n\n"
     "In a client made by connect(causal=True) it is greater than the ids of its strict calls too.\n\n"
     "Raises a retryable error when the daemon does not answer in time; ClientClosedError after close().\n\n"
     ">>> client.next_id()                        # doctest: +SKIP\n"
     "408559031853465647\n"},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef client_members[] = {
    {"_session", T_OBJECT_EX, offsetof(struct client, session), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot source_slots[] = {
    {Py_tp_methods, source_methods}, {Py_tp_members, source_members},    {Py_tp_traverse, source_traverse},
    {Py_tp_clear, source_clear},     {Py_tp_dealloc, source_deallocate}, {0, NULL},
};

static PyType_Slot client_slots[] = {
    {Py_tp_init, client_init},
    {Py_tp_methods, client_methods},
    {Py_tp_members, client_members},
    {Py_tp_traverse, client_traverse},
    {Py_tp_clear, client_clear},
    {Py_tp_dealloc, client_deallocate},
    {0, NULL},
};

#define BASE_TYPE (Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC)
static PyType_Spec source_spec = {"libpharaoh._native.Source", sizeof(struct source), 0, BASE_TYPE, source_slots};
static PyType_Spec client_spec = {"libpharaoh._native.Client", sizeof(struct client), 0, BASE_TYPE, client_slots};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_native", "What of the client is written in C.", -1, NULL, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__native(void) {
    PyObject *self = PyModule_Create(&module);
    source_type = (PyTypeObject *)PyType_FromSpec(&source_spec);
    PyObject *client_type = PyType_FromSpec(&client_spec);
    if (self == NULL || source_type == NULL || client_type == NULL || PyModule_AddType(self, source_type) != 0 ||
        PyModule_AddType(self, (PyTypeObject *)client_type) != 0) {
        return NULL;
    }
    return self;
}
