/* Large numpy arrays born in memory that was offered for them: see nursery.py, which does the rest.

A handler of numpy's data memory (NEP 49). What is below the threshold, and what no offered range
has room for, goes to numpy's own. Needs no headers of numpy: the structures below are fixed by
NEP 49, and what is used of its C API by its slots.

A range is

    FREE     offered, and nobody's
    USED     the data of an array
    HELD     the same, while Python finds out whether anything else refers to that array
    LEFT     it was HELD, and the array has died
    SEALED   an object of the store; numpy knows nothing of it any more

Frees may come from any thread, so a lock guards the table; whoever has it makes no Python object,
for that may collect garbage, and so free arrays. Ranges lie in shared memory, so a forked child
must not share them: it gets copies of those in use, and its parent waits until it has. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define RANGES_MAX 64
#define SLOT_SET_HANDLER 304
#define SLOT_DEFAULT_HANDLER 306
#define FORK_WAIT_MS 60000

typedef struct {
    void *ctx;
    void *(*malloc)(void *ctx, size_t size);
    void *(*calloc)(void *ctx, size_t count, size_t size);
    void *(*realloc)(void *ctx, void *pointer, size_t size);
    void (*free)(void *ctx, void *pointer, size_t size);
} Allocator;

typedef struct {
    char name[127];
    uint8_t version;
    Allocator allocator;
} Handler;

typedef enum { EMPTY, FREE, USED, HELD, LEFT, SEALED } State;

typedef struct {
    char *start;
    size_t capacity;
    State state;
    unsigned long long used_at; /* number of the allocation that used it last */
} Range;

static Range ranges[RANGES_MAX];
static char *lowest = (char *)UINTPTR_MAX, *highest = NULL; /* where ranges ever were */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static size_t threshold = SIZE_MAX;
static unsigned long long allocation_count = 0;
static Allocator base; /* numpy's own */
static int is_installed = 0;
static int fork_pipe[2] = {-1, -1};

static Range *range_at(const char *start)
{
    if (start < lowest || start >= highest)
        return NULL;
    for (int i = 0; i < RANGES_MAX; i++)
        if (ranges[i].state != EMPTY && ranges[i].start == start)
            return &ranges[i];
    return NULL;
}

static char *take_range(size_t size)
{
    Range *best = NULL;
    pthread_mutex_lock(&lock);
    allocation_count++;
    for (int i = 0; i < RANGES_MAX; i++) {
        Range *range = &ranges[i];
        /* Larger ones are for larger arrays: what is too much would be of no use. */
        if (range->state == FREE && range->capacity >= size
            && range->capacity - range->capacity / 8 <= size
            && (best == NULL || range->capacity < best->capacity
                || (range->capacity == best->capacity && range->used_at > best->used_at)))
            best = range;
    }
    if (best != NULL) {
        best->state = USED;
        best->used_at = allocation_count;
    }
    pthread_mutex_unlock(&lock);
    return best == NULL ? NULL : best->start;
}

/* Whether it was the data of an array in a range. */
static int leave_range(const char *start)
{
    int is_ours = 0;
    if (start < lowest || start >= highest)
        return 0;
    pthread_mutex_lock(&lock);
    Range *range = range_at(start);
    if (range != NULL && (range->state == USED || range->state == HELD)) {
        range->state = range->state == USED ? FREE : LEFT;
        is_ours = 1;
    }
    pthread_mutex_unlock(&lock);
    return is_ours;
}

static void *nursery_malloc(void *ctx, size_t size)
{
    if (size >= threshold) {
        char *start = take_range(size);
        if (start != NULL)
            return start;
    }
    return base.malloc(base.ctx, size);
}

/* Zeros stay the system's, which gives pages only where they are touched. */
static void *nursery_calloc(void *ctx, size_t count, size_t size)
{
    return base.calloc(base.ctx, count, size);
}

static void nursery_free(void *ctx, void *pointer, size_t size)
{
    if (!leave_range(pointer))
        base.free(base.ctx, pointer, size);
}

static void *nursery_realloc(void *ctx, void *pointer, size_t size)
{
    size_t capacity = 0;
    pthread_mutex_lock(&lock);
    Range *range = pointer == NULL ? NULL : range_at(pointer);
    if (range != NULL)
        capacity = range->capacity;
    pthread_mutex_unlock(&lock);
    if (range == NULL)
        return base.realloc(base.ctx, pointer, size);
    if (size <= capacity)
        return pointer;
    void *larger = nursery_malloc(ctx, size);
    if (larger != NULL) {
        memcpy(larger, pointer, capacity);
        nursery_free(ctx, pointer, capacity);
    }
    return larger;
}

static Handler handler = {
    "dagsched nursery", 1,
    {NULL, nursery_malloc, nursery_calloc, nursery_realloc, nursery_free}};

/* --- forks ---------------------------------------------------------------------------------- */

static void before_fork(void)
{
    pthread_mutex_lock(&lock);
    fork_pipe[0] = fork_pipe[1] = -1;
    for (int i = 0; i < RANGES_MAX; i++)
        if (ranges[i].state == USED || ranges[i].state == HELD) {
            if (pipe2(fork_pipe, O_CLOEXEC) != 0)
                fork_pipe[0] = fork_pipe[1] = -1;
            break;
        }
}

static void after_fork_in_parent(void)
{
    if (fork_pipe[0] >= 0) {
        /* Until the child has its copies, or is gone, nobody here may change what it copies. */
        struct pollfd ended = {fork_pipe[0], POLLIN, 0};
        close(fork_pipe[1]);
        poll(&ended, 1, FORK_WAIT_MS);
        close(fork_pipe[0]);
    }
    pthread_mutex_unlock(&lock);
}

static void after_fork_in_child(void)
{
    for (int i = 0; i < RANGES_MAX; i++) {
        Range *range = &ranges[i];
        if (range->state == USED || range->state == HELD) {
            void *copy = mmap(NULL, range->capacity, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (copy == MAP_FAILED)
                _exit(ENOMEM); /* rather than share memory that it takes for its own */
            memcpy(copy, range->start, range->capacity);
            if (mremap(copy, range->capacity, range->capacity, MREMAP_MAYMOVE | MREMAP_FIXED,
                       range->start) == MAP_FAILED)
                _exit(ENOMEM);
            range->state = HELD; /* freed, it becomes LEFT, and is nobody's for good */
        }
        else if (range->state != EMPTY)
            range->state = SEALED;
    }
    if (fork_pipe[0] >= 0) {
        close(fork_pipe[0]);
        close(fork_pipe[1]);
    }
    pthread_mutex_unlock(&lock);
}

/* --- what Python calls ------------------------------------------------------------------------ */

static void **numpy_api(void)
{
    const char *names[] = {"numpy._core._multiarray_umath", "numpy.core._multiarray_umath"};
    for (int i = 0; i < 2; i++) {
        PyObject *module = PyImport_ImportModule(names[i]);
        if (module == NULL) {
            PyErr_Clear();
            continue;
        }
        PyObject *capsule = PyObject_GetAttrString(module, "_ARRAY_API");
        Py_DECREF(module);
        if (capsule == NULL)
            return NULL;
        void **api = PyCapsule_GetPointer(capsule, NULL);
        Py_DECREF(capsule);
        return api;
    }
    PyErr_SetString(PyExc_ImportError, "numpy has no C API where it is expected");
    return NULL;
}

static PyObject *install(PyObject *self, PyObject *args)
{
    Py_ssize_t bytes_min;
    if (!PyArg_ParseTuple(args, "n", &bytes_min))
        return NULL;
    void **api = numpy_api();
    if (api == NULL)
        return NULL;
    Handler *usual = PyCapsule_GetPointer(*(PyObject **)api[SLOT_DEFAULT_HANDLER], "mem_handler");
    if (usual == NULL)
        return NULL;
    if (usual->version != 1) {
        PyErr_SetString(PyExc_ImportError, "numpy's memory handlers have changed");
        return NULL;
    }
    base = usual->allocator;
    PyObject *capsule = PyCapsule_New(&handler, "mem_handler", NULL);
    if (capsule == NULL)
        return NULL;
    PyObject *before = ((PyObject * (*)(PyObject *)) api[SLOT_SET_HANDLER])(capsule);
    Py_DECREF(capsule);
    if (before == NULL)
        return NULL;
    Py_DECREF(before);
    if (!is_installed) {
        if (pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child) != 0)
            return PyErr_NoMemory();
        is_installed = 1;
    }
    threshold = (size_t)bytes_min;
    Py_RETURN_NONE;
}

static PyObject *offer(PyObject *self, PyObject *args)
{
    unsigned long long start;
    Py_ssize_t capacity;
    int is_taken = 0;
    if (!PyArg_ParseTuple(args, "Kn", &start, &capacity))
        return NULL;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < RANGES_MAX && !is_taken; i++)
        if (ranges[i].state == EMPTY) {
            ranges[i] = (Range){(char *)(uintptr_t)start, (size_t)capacity, FREE, allocation_count};
            if (ranges[i].start < lowest)
                lowest = ranges[i].start;
            if (ranges[i].start + capacity > highest)
                highest = ranges[i].start + capacity;
            is_taken = 1;
        }
    pthread_mutex_unlock(&lock);
    return PyBool_FromLong(is_taken);
}

static PyObject *find(PyObject *self, PyObject *buffer)
{
    Py_buffer view;
    const char *start = NULL;
    if (PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE) != 0)
        return NULL;
    const char *data = view.buf;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < RANGES_MAX; i++)
        if (ranges[i].state == USED && ranges[i].start <= data
            && data + view.len <= ranges[i].start + ranges[i].capacity)
            start = ranges[i].start;
    pthread_mutex_unlock(&lock);
    PyBuffer_Release(&view);
    if (start == NULL)
        Py_RETURN_NONE;
    return Py_BuildValue("Kn", (unsigned long long)(uintptr_t)start, (Py_ssize_t)(data - start));
}

/* Move a range from one of two states to another each; whether it was in the first. */
static PyObject *move(PyObject *args, State from, State to, State or_from, State or_to)
{
    unsigned long long start;
    State was = EMPTY;
    if (!PyArg_ParseTuple(args, "K", &start))
        return NULL;
    pthread_mutex_lock(&lock);
    Range *range = range_at((char *)(uintptr_t)start);
    if (range != NULL) {
        was = range->state;
        if (was == from)
            range->state = to;
        else if (was == or_from)
            range->state = or_to;
    }
    pthread_mutex_unlock(&lock);
    if (was == EMPTY || (was != from && was != or_from)) {
        PyErr_Format(PyExc_ValueError, "no range at %llu may be moved (state %d)", start, was);
        return NULL;
    }
    return PyBool_FromLong(was == from);
}

static PyObject *hold(PyObject *self, PyObject *args)
{
    return move(args, USED, HELD, USED, HELD);
}

static PyObject *settle(PyObject *self, PyObject *args)
{
    return move(args, LEFT, SEALED, HELD, HELD);
}

static PyObject *let_go(PyObject *self, PyObject *args)
{
    return move(args, HELD, USED, LEFT, FREE);
}

static PyObject *reuse(PyObject *self, PyObject *args)
{
    return move(args, SEALED, FREE, SEALED, FREE);
}

static PyObject *withdraw(PyObject *self, PyObject *args)
{
    unsigned long long start;
    int is_free = 0;
    if (!PyArg_ParseTuple(args, "K", &start))
        return NULL;
    pthread_mutex_lock(&lock);
    Range *range = range_at((char *)(uintptr_t)start);
    if (range != NULL && range->state == FREE) {
        range->state = EMPTY;
        is_free = 1;
    }
    pthread_mutex_unlock(&lock);
    return PyBool_FromLong(is_free);
}

static PyObject *ages(PyObject *self, PyObject *unused)
{
    Range copies[RANGES_MAX];
    unsigned long long now;
    pthread_mutex_lock(&lock);
    memcpy(copies, ranges, sizeof copies);
    now = allocation_count;
    pthread_mutex_unlock(&lock);
    PyObject *result = PyDict_New();
    for (int i = 0; result != NULL && i < RANGES_MAX; i++) {
        if (copies[i].state != FREE)
            continue;
        PyObject *key = PyLong_FromVoidPtr(copies[i].start);
        PyObject *age = PyLong_FromUnsignedLongLong(now - copies[i].used_at);
        if (key == NULL || age == NULL || PyDict_SetItem(result, key, age) != 0)
            Py_CLEAR(result);
        Py_XDECREF(key);
        Py_XDECREF(age);
    }
    return result;
}

static PyMethodDef methods[] = {
    {"install", install, METH_VARARGS,
     "Have numpy ask here for arrays from so many bytes on, in this thread's context."},
    {"offer", offer, METH_VARARGS, "A range (address, bytes) for arrays; False: too many."},
    {"find", find, METH_O,
     "Range that holds the data of a buffer, and the data's offset in it; None: it's in none."},
    {"hold", hold, METH_VARARGS, "Don't give the range to others when its array dies."},
    {"settle", settle, METH_VARARGS,
     "Whether the array of a held range has died; the range is no array's any more then."},
    {"let_go", let_go, METH_VARARGS, "A held range is its array's again, or free."},
    {"reuse", reuse, METH_VARARGS, "A range that became an object may be an array's again."},
    {"withdraw", withdraw, METH_VARARGS, "Take a range back; False: it's in use."},
    {"ages", ages, METH_NOARGS, "Of each free range, how many large allocations ago it was used."},
    {NULL, NULL, 0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_nursery", "Where large numpy arrays are born: see nursery.py.", -1,
    methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__nursery(void)
{
    return PyModule_Create(&definition);
}
