/*
 * `libpharaoh._native`: what of the client must not be interrupted, or costs no more than its call.
 *
 * A signal's handler is Python code that runs between any two bytecodes of the main thread, and a fork in it leaves a
 * child that goes on in the middle of a call. So the ends of each call are here, where there are no bytecodes.
 *
 * Invariants
 * - The result of a call belongs to the process in which the call began. What a child that was forked during a call makes
 *   of its rest is thrown away after the last bytecode, and the call begins again in the child (`guarded`).
 * - The core is ph_ring.c; nothing of a ring's inside is known here.
 * - Whatever the operating system has to take back (mappings, descriptors, locks) belongs to an object from the call on in
 *   which it comes into being.
 */
#define _GNU_SOURCE
#include "native.h"

#include <sys/mman.h>

#include "ph_atomic.h"

#define PAGE_BYTES 65536 /* a multiple of every page size */

/* Base of Client. */
struct client {
    PyObject_HEAD struct ph_py_source *session;
};

/* A function, or a method when it stands in a class. */
struct guarded {
    PyObject_HEAD PyObject *function;
    PyObject *dictionary;
};

static PyTypeObject *client_type;
static PyObject *method_type, *update_wrapper;

/* In a page that the kernel empties in every child. */
static uint64_t *process_word;

unsigned long long ph_py_process(void) {
    static uint64_t numbers; /* inherited, so that no descendant takes its ancestor's */
    ph_compiler_barrier();
    if (ph_load_relaxed(process_word) == 0) {
        ph_store_relaxed(process_word, ++numbers);
    }
    return ph_load_relaxed(process_word);
}

static int make_process_word(void) {
    process_word = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (process_word == MAP_FAILED || madvise(process_word, PAGE_BYTES, MADV_WIPEONFORK) != 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    return 0;
}

void ph_py_free(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

/* What the rest of a call in a child has made of the session is worth nothing. */
static void spoil(PyObject *arguments) {
    PyObject *first = PyTuple_Size(arguments) > 0 ? PyTuple_GetItem(arguments, 0) : NULL;
    if (first != NULL && PyObject_TypeCheck(first, client_type) && ((struct client *)first)->session != NULL) {
        ((struct client *)first)->session->dirty = 1;
    }
}

/*
 * Calls until the call has begun and ended in one process. What a child's rest of it raised is thrown away too, for it
 * comes of the fork, unless it is meant to leave the program (SystemExit, KeyboardInterrupt).
 */
static PyObject *call_guarded(PyObject *function, PyObject *arguments, PyObject *keywords) {
    for (;;) {
        unsigned long long process = ph_py_process();
        PyObject *result = PyObject_Call(function, arguments, keywords);
        if (ph_py_process() == process) {
            return result;
        }
        spoil(arguments);
        if (result == NULL && !PyErr_ExceptionMatches(PyExc_Exception)) {
            return NULL;
        }
        Py_XDECREF(result);
        PyErr_Clear();
    }
}

static PyObject *guarded_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords) {
    PyObject *function;
    (void)keywords;
    if (!PyArg_ParseTuple(arguments, "O:guarded", &function)) {
        return NULL;
    }
    PyObject *self = PyType_GenericAlloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    ((struct guarded *)self)->function = Py_NewRef(function);
    PyObject *same = PyObject_CallFunctionObjArgs(update_wrapper, self, function, NULL);
    Py_DECREF(self);
    return same;
}

static PyObject *guarded_call(PyObject *self, PyObject *arguments, PyObject *keywords) {
    return call_guarded(((struct guarded *)self)->function, arguments, keywords);
}

static PyObject *guarded_get(PyObject *self, PyObject *instance, PyObject *type) {
    (void)type;
    if (instance == NULL || instance == Py_None) {
        return Py_NewRef(self);
    }
    return PyObject_CallFunctionObjArgs(method_type, self, instance, NULL);
}

static int guarded_traverse(PyObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((struct guarded *)self)->function);
    Py_VISIT(((struct guarded *)self)->dictionary);
    return 0;
}

static int guarded_clear(PyObject *self) {
    Py_CLEAR(((struct guarded *)self)->function);
    Py_CLEAR(((struct guarded *)self)->dictionary);
    return 0;
}

static int client_init(PyObject *self, PyObject *arguments, PyObject *keywords) {
    PyObject *session, *before = (PyObject *)((struct client *)self)->session;
    static char *names[] = {"session", NULL};
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O!:Client", names, ph_py_source_type, &session)) {
        return -1;
    }
    ((struct client *)self)->session = (struct ph_py_source *)Py_NewRef(session);
    Py_XDECREF(before);
    return 0;
}

static PyObject *next_id_slowly(PyObject *self) {
    PyObject *function = PyObject_GetAttrString((PyObject *)Py_TYPE(self), "_next_id_slowly");
    PyObject *arguments = function != NULL ? PyTuple_Pack(1, self) : NULL;
    PyObject *result = arguments != NULL ? call_guarded(function, arguments, NULL) : NULL;
    Py_XDECREF(arguments);
    Py_XDECREF(function);
    return result;
}

static PyObject *client_next_id(PyObject *self, PyObject *unused) {
    struct ph_py_source *session = ((struct client *)self)->session;
    (void)unused;
    uint64_t id = session != NULL ? ph_py_pop(session) : 0;
    return id != 0 ? PyLong_FromUnsignedLongLong(id) : next_id_slowly(self);
}

static int client_traverse(PyObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT((PyObject *)((struct client *)self)->session);
    return 0;
}

static int client_clear(PyObject *self) {
    Py_CLEAR(((struct client *)self)->session);
    return 0;
}

static void guarded_deallocate(PyObject *self) {
    PyObject_GC_UnTrack(self);
    guarded_clear(self);
    ph_py_free(self);
}

static void client_deallocate(PyObject *self) {
    PyObject_GC_UnTrack(self);
    client_clear(self);
    ph_py_free(self);
}

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

static PyMemberDef guarded_members[] = {
    {"__dictoffset__", T_PYSSIZET, offsetof(struct guarded, dictionary), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef guarded_getset[] = {
    {"__dict__", PyObject_GenericGetDict, PyObject_GenericSetDict, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
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

static PyType_Slot guarded_slots[] = {
    {Py_tp_new, guarded_new},         {Py_tp_call, guarded_call},          {Py_tp_descr_get, guarded_get},
    {Py_tp_members, guarded_members}, {Py_tp_getset, guarded_getset},      {Py_tp_traverse, guarded_traverse},
    {Py_tp_clear, guarded_clear},     {Py_tp_dealloc, guarded_deallocate}, {0, NULL},
};

static PyType_Spec client_spec = {"libpharaoh._native.Client", sizeof(struct client), 0,
                                  Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC, client_slots};
static PyType_Spec guarded_spec = {"libpharaoh._native.guarded", sizeof(struct guarded), 0,
                                   Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_METHOD_DESCRIPTOR,
                                   guarded_slots};

static PyObject *imported(const char *module, const char *name) {
    PyObject *from = PyImport_ImportModule(module);
    PyObject *found = from != NULL ? PyObject_GetAttrString(from, name) : NULL;
    Py_XDECREF(from);
    return found;
}

static PyObject *native_process(PyObject *self, PyObject *unused) {
    (void)self;
    (void)unused;
    return PyLong_FromUnsignedLongLong(ph_py_process());
}

static PyMethodDef functions[] = {
    {"process", native_process, METH_NOARGS,
     "process($module, /)\n--\n\n"
     "A number that is this process's alone among itself, its ancestors and its descendants, however they were made."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_native", "What of the client is written in C.", -1, functions, NULL, NULL, NULL, NULL,
};

static int fill(PyObject *self) {
    method_type = imported("types", "MethodType");
    update_wrapper = imported("functools", "update_wrapper");
    if (method_type == NULL || update_wrapper == NULL || make_process_word() != 0 || ph_py_add_ring(self) != 0 ||
        ph_py_add_source(self) != 0 || ph_py_add_socket(self) != 0) {
        return -1;
    }
    client_type = (PyTypeObject *)PyType_FromSpec(&client_spec);
    PyObject *guarded_type = PyType_FromSpec(&guarded_spec);
    if (client_type == NULL || guarded_type == NULL || PyModule_AddType(self, client_type) != 0) {
        return -1;
    }
    return PyModule_AddType(self, (PyTypeObject *)guarded_type);
}

PyMODINIT_FUNC PyInit__native(void) {
    PyObject *self = PyModule_Create(&module);
    if (self != NULL && fill(self) != 0) {
        Py_CLEAR(self);
    }
    return self;
}
