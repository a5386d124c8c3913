/*
 * Sending and receiving for `libpharaoh._socket`.
 *
 * Invariants
 * - Nothing is connected, written or read by another process than the one whose call it serves, although Python code,
 *   and a fork, may come in wherever a signal is looked at: the look is the last thing before the system call. A socket
 *   that parent and child share is one, also before it is connected.
 * - Descriptors that a message brings belong to an object before any Python code runs, and to the process that received
 *   them: a child that mapped its parent's ring would have its ids.
 */
#include "native.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define DESCRIPTORS_MAX 8
#define WAIT_MS_MAX 1000000

PyObject *ph_py_forked_error;
static PyTypeObject *descriptors_type;

struct descriptors {
    PyObject_HEAD unsigned long long process; /* that received them */
    int count;
    int fds[DESCRIPTORS_MAX];
};

static void close_all(struct descriptors *descriptors) {
    while (descriptors->count > 0) {
        close(descriptors->fds[--descriptors->count]);
    }
}

static void descriptors_deallocate(PyObject *self) {
    close_all((struct descriptors *)self);
    ph_py_free(self);
}

static Py_ssize_t descriptors_length(PyObject *self) { return ((struct descriptors *)self)->count; }

static PyObject *descriptors_close(PyObject *self, PyObject *unused) {
    (void)unused;
    close_all((struct descriptors *)self);
    Py_RETURN_NONE;
}

static PyObject *descriptors_detach(PyObject *self, PyObject *unused) {
    struct descriptors *descriptors = (struct descriptors *)self;
    (void)unused;
    PyObject *numbers = PyList_New(descriptors->count);
    for (int i = 0; numbers != NULL && i < descriptors->count; i++) {
        PyObject *number = PyLong_FromLong(descriptors->fds[i]);
        if (number == NULL || PyList_SetItem(numbers, i, number) != 0) {
            Py_CLEAR(numbers);
        }
    }
    descriptors->count = numbers != NULL ? 0 : descriptors->count;
    return numbers;
}

int ph_py_descriptors_take(PyObject *object, int fds[3]) {
    struct descriptors *descriptors = (struct descriptors *)object;
    if (Py_TYPE(object) != descriptors_type || descriptors->count != 3) {
        PyErr_SetString(PyExc_ValueError, "three descriptors were expected");
        return -1;
    }
    if (descriptors->process != ph_py_process()) {
        PyErr_SetString(ph_py_forked_error, "these descriptors are another process's");
        return -1;
    }
    memcpy(fds, descriptors->fds, 3 * sizeof fds[0]);
    descriptors->count = 0;
    return 0;
}

/* What a socket says of itself, not what it said before a signal's handler ran. */
static int descriptor_of(PyObject *socket, unsigned long long process) {
    if (ph_py_process() != process) {
        PyErr_SetString(ph_py_forked_error, "this connection is another process's");
        return -1;
    }
    int fd = PyObject_AsFileDescriptor(socket);
    if (fd < 0) {
        PyErr_Clear();
        errno = EBADF;
        PyErr_SetFromErrno(PyExc_OSError);
    }
    return fd;
}

/* Waits for the socket. Its descriptor, or -1 with an exception. */
static int wait_for(PyObject *socket, short events, double deadline, unsigned long long process) {
    for (;;) {
        double left_ms = (deadline - ph_py_monotonic()) * 1000;
        if (left_ms <= 0) {
            PyErr_SetNone(PyExc_TimeoutError);
            return -1;
        }
        struct pollfd one = {.fd = descriptor_of(socket, process), .events = events};
        if (one.fd < 0) {
            return -1;
        }
        PyThreadState *thread = PyEval_SaveThread();
        int ready = poll(&one, 1, left_ms < WAIT_MS_MAX ? (int)left_ms + 1 : WAIT_MS_MAX);
        PyEval_RestoreThread(thread);
        if (ready > 0) {
            return one.fd;
        }
        if (PyErr_CheckSignals() != 0) {
            return -1;
        }
    }
}

/* Whether a system call that failed is to be tried again once the socket is ready. */
static int passes(void) { return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR; }

static PyObject *native_connect(PyObject *module, PyObject *arguments) {
    PyObject *socket;
    const char *path;
    Py_ssize_t length;
    unsigned long long process;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    (void)module;
    if (!PyArg_ParseTuple(arguments, "Oy#K:connect", &socket, &path, &length, &process)) {
        return NULL;
    }
    int fd = descriptor_of(socket, process);
    if (fd < 0) {
        return NULL;
    }
    if ((size_t)length >= sizeof address.sun_path) {
        errno = ENAMETOOLONG;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    memcpy(address.sun_path, path, (size_t)length);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) != 0) {
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    Py_RETURN_NONE;
}

static PyObject *native_send(PyObject *module, PyObject *arguments) {
    PyObject *socket;
    const char *data;
    Py_ssize_t length;
    double deadline;
    unsigned long long process;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "Oy#dK:send", &socket, &data, &length, &deadline, &process)) {
        return NULL;
    }
    while (length > 0) {
        int fd = descriptor_of(socket, process);
        if (fd < 0) {
            return NULL;
        }
        ssize_t sent = send(fd, data, (size_t)length, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent >= 0) {
            data += sent;
            length -= sent;
        } else if (!passes()) {
            return PyErr_SetFromErrno(PyExc_OSError);
        } else if (wait_for(socket, POLLOUT, deadline, process) < 0) {
            return NULL;
        }
    }
    Py_RETURN_NONE;
}

static void keep_descriptors(struct msghdr *message, struct descriptors *descriptors) {
    for (struct cmsghdr *part = CMSG_FIRSTHDR(message); part != NULL; part = CMSG_NXTHDR(message, part)) {
        if (part->cmsg_level == SOL_SOCKET && part->cmsg_type == SCM_RIGHTS) {
            size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
            memcpy(&descriptors->fds[descriptors->count], CMSG_DATA(part), count * sizeof(int));
            descriptors->count += (int)count;
        }
    }
}

static ssize_t receive_message(int fd, char *buffer, size_t size, struct descriptors *descriptors) {
    union {
        char bytes[CMSG_SPACE(DESCRIPTORS_MAX * sizeof(int))];
        struct cmsghdr aligned;
    } control;
    struct iovec vector = {buffer, size};
    struct msghdr message = {
        .msg_iov = &vector, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes};
    ssize_t received = recvmsg(fd, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (received >= 0) {
        keep_descriptors(&message, descriptors);
    }
    return received;
}

static PyObject *native_receive(PyObject *module, PyObject *arguments) {
    static char buffer[65536]; /* under the GIL from the system call to the copy */
    PyObject *socket;
    double deadline;
    unsigned long long process;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "OdK:receive", &socket, &deadline, &process)) {
        return NULL;
    }
    struct descriptors *descriptors = (struct descriptors *)PyType_GenericAlloc(descriptors_type, 0);
    ssize_t received = -1;
    while (descriptors != NULL && received < 0) {
        int fd = wait_for(socket, POLLIN, deadline, process);
        if (fd < 0) {
            break;
        }
        descriptors->process = process;
        received = receive_message(fd, buffer, sizeof buffer, descriptors);
        if (received < 0 && !passes()) {
            PyErr_SetFromErrno(PyExc_OSError);
            break;
        }
    }
    PyObject *result = received >= 0 ? Py_BuildValue("y#O", buffer, (Py_ssize_t)received, descriptors) : NULL;
    Py_XDECREF((PyObject *)descriptors);
    return result;
}

static PyMethodDef descriptors_methods[] = {
    {"close", descriptors_close, METH_NOARGS, "close($self, /)\n--\n\nCloses those that nobody has taken."},
    {"detach", descriptors_detach, METH_NOARGS,
     "detach($self, /)\n--\n\nTheir numbers. They are the caller's to close from now on."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot descriptors_slots[] = {
    {Py_tp_dealloc, descriptors_deallocate},
    {Py_sq_length, descriptors_length},
    {Py_tp_methods, descriptors_methods},
    {Py_tp_doc, "Descriptors that came with a message."},
    {0, NULL},
};

static PyType_Spec descriptors_spec = {"libpharaoh._native.Descriptors", sizeof(struct descriptors), 0,
                                       Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, descriptors_slots};

static PyMethodDef functions[] = {
    {"connect", native_connect, METH_VARARGS,
     "connect($module, socket, path, process, /)\n--\n\n"
     "Connects a Unix socket that does not block, in the name of this process alone."},
    {"send", native_send, METH_VARARGS,
     "send($module, socket, data, deadline, process, /)\n--\n\nSends all of it, in the name of this process alone."},
    {"receive", native_receive, METH_VARARGS,
     "receive($module, socket, deadline, process, /)\n--\n\nSome bytes, none at the stream's end, and descriptors."},
    {NULL, NULL, 0, NULL},
};

int ph_py_add_socket(PyObject *module) {
    descriptors_type = (PyTypeObject *)PyType_FromSpec(&descriptors_spec);
    ph_py_forked_error = PyErr_NewExceptionWithDoc(
        "libpharaoh._native.Forked", "The call under way was begun by another process, which goes on with it.", NULL,
        NULL);
    if (descriptors_type == NULL || ph_py_forked_error == NULL ||
        PyModule_AddObjectRef(module, "Forked", ph_py_forked_error) != 0 ||
        PyModule_AddType(module, descriptors_type) != 0) {
        return -1;
    }
    return PyModule_AddFunctions(module, functions);
}
