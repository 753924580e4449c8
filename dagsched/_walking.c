/* The walk over calls written down, compiled: does what `walked_plainly` of walking.py does, and
calls back for all that isn't common. A property test holds the two against each other.

Slots of the two classes are read where they lie in the object, which `prepare` asks Python for.
The stack is ours, so nothing that is called back can change it; tasks on it are counted references,
for a call back may run code of the user. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stddef.h>
#include <stdint.h>
#include <structmember.h>

/* Tasks or arguments between looks for Ctrl-C and for other threads: some 10 ms. Whoever lets go of
the interpreter more often than each 5 ms, its switch interval, is never asked to wait for others. */
#define PAUSE_EACH 32768
#define FEW 8              /* dependencies that are compared one by one */

typedef struct {
    char *items;
    Py_ssize_t count, room; /* in items */
    size_t size;            /* bytes of an item */
} Row;

static PyTypeObject *delayed_type;
static PyObject *atomic_types, *usual_options;
static Py_ssize_t args_at, kwargs_at, call_at, serial_at, wrapped_at, options_at;

static void *
pushed(Row *row)
{
    if (row->count == row->room) {
        Py_ssize_t room = row->room ? row->room + row->room / 2 : 64;
        char *items = PyMem_Realloc(row->items, (size_t)room * row->size);
        if (items == NULL) {
            PyErr_NoMemory();
            return NULL;
        }
        row->items = items;
        row->room = room;
    }
    return row->items + (size_t)row->count++ * row->size;
}

static int
push_object(Row *row, PyObject *item)
{
    PyObject **place = pushed(row);
    if (place == NULL)
        return -1;
    *place = Py_NewRef(item);
    return 0;
}

static int
push_int32(Row *row, long value)
{
    int32_t *place = pushed(row);
    if (place == NULL)
        return -1;
    *place = (int32_t)value;
    return 0;
}

static int
push_int64(Row *row, long long value)
{
    int64_t *place = pushed(row);
    if (place == NULL)
        return -1;
    *place = value;
    return 0;
}

static PyObject *
object_at(Row *row, Py_ssize_t index)
{
    return ((PyObject **)row->items)[index];
}

static void
drop_objects(Row *row)
{
    while (row->count > 0)
        Py_DECREF(object_at(row, --row->count));
    PyMem_Free(row->items);
}

static PyObject *
taken_bytes(Row *row)
{
    return PyBytes_FromStringAndSize(row->items, row->count * (Py_ssize_t)row->size);
}

static PyObject *
slot_of(PyObject *object, Py_ssize_t offset)
{
    PyObject *value = *(PyObject **)((char *)object + offset);
    if (value == NULL)
        PyErr_SetString(PyExc_AttributeError, "a Delayed is only half made");
    return value;
}

static int
offset_of(PyObject *type, const char *name, Py_ssize_t *offset)
{
    PyObject *member = PyObject_GetAttrString(type, name);
    if (member == NULL)
        return -1;
    if (!Py_IS_TYPE(member, &PyMemberDescr_Type)) {
        PyErr_Format(PyExc_TypeError, "%s is no slot", name);
        Py_DECREF(member);
        return -1;
    }
    *offset = ((PyMemberDescrObject *)member)->d_member->offset;
    Py_DECREF(member);
    return 0;
}

static PyObject *
prepare(PyObject *self, PyObject *args)
{
    PyObject *delayed, *call, *atomic, *usual;
    if (!PyArg_ParseTuple(args, "OOO!O:prepare", &delayed, &call, &PyFrozenSet_Type, &atomic, &usual))
        return NULL;
    if (offset_of(delayed, "_args", &args_at) || offset_of(delayed, "_kwargs", &kwargs_at) ||
        offset_of(delayed, "_call", &call_at) || offset_of(delayed, "_serial", &serial_at) ||
        offset_of(call, "__wrapped__", &wrapped_at) || offset_of(call, "_options", &options_at))
        return NULL;
    Py_INCREF(delayed);
    Py_XSETREF(delayed_type, (PyTypeObject *)delayed);
    Py_INCREF(atomic);
    Py_XSETREF(atomic_types, atomic);
    Py_INCREF(usual);
    Py_XSETREF(usual_options, usual);
    Py_RETURN_NONE;
}

/* Whether an argument is a constant that goes into the entry as it is; -1: an error. */
static int
is_small_constant(PyObject *argument, Py_ssize_t size_max)
{
    PyTypeObject *kind = Py_TYPE(argument);
    if (kind == &PyLong_Type || kind == &PyFloat_Type || argument == Py_None)
        return 1;
    if (kind == &PyUnicode_Type)
        return PyUnicode_GET_LENGTH(argument) < size_max;
    if (kind == &PyBytes_Type)
        return PyBytes_GET_SIZE(argument) < size_max;
    return PySet_Contains(atomic_types, (PyObject *)kind);
}

/* Whether some id is there twice; -1: an error. */
static int
has_repeats(const int32_t *ids, Py_ssize_t count)
{
    if (count <= FEW) {
        for (Py_ssize_t i = 1; i < count; i++)
            for (Py_ssize_t j = 0; j < i; j++)
                if (ids[i] == ids[j])
                    return 1;
        return 0;
    }
    PyObject *found = PySet_New(NULL);
    int result = found == NULL ? -1 : 0;
    for (Py_ssize_t i = 0; result == 0 && i < count; i++) {
        PyObject *number = PyLong_FromLong(ids[i]);
        if (number == NULL || PySet_Add(found, number) < 0)
            result = -1;
        Py_XDECREF(number);
    }
    if (result == 0)
        result = PySet_GET_SIZE(found) < count;
    Py_XDECREF(found);
    return result;
}

static PyObject *
list_of_ids(const int32_t *ids, Py_ssize_t count)
{
    PyObject *list = PyList_New(count);
    for (Py_ssize_t i = 0; list != NULL && i < count; i++) {
        PyObject *number = PyLong_FromLong(ids[i]);
        if (number == NULL)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, i, number);
    }
    return list;
}

static int
extend_ids(Row *deps, PyObject *list)
{
    if (!PyList_Check(list)) {
        PyErr_SetString(PyExc_TypeError, "ids must be a list");
        return -1;
    }
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list); i++) {
        long id = PyLong_AsLong(PyList_GET_ITEM(list, i));
        if ((id == -1 && PyErr_Occurred()) || push_int32(deps, id) < 0)
            return -1;
    }
    return 0;
}

/* What is gathered of each task besides its entry and dependencies. */
typedef struct {
    PyObject *functions, *index_of, *options; /* list, dict by address, list of (id, options) */
    Row function_of, serials;
    PyObject *last; /* function of the task before, borrowed from `functions` */
    long last_index;
} Columns;

static long
function_index(Columns *columns, PyObject *function)
{
    if (function == columns->last)
        return columns->last_index;
    PyObject *address = PyLong_FromVoidPtr(function);
    if (address == NULL)
        return -1;
    long index = -1;
    PyObject *known = PyDict_GetItemWithError(columns->index_of, address);
    if (known != NULL)
        index = PyLong_AsLong(known);
    else if (!PyErr_Occurred()) {
        PyObject *number = PyLong_FromSsize_t(PyList_GET_SIZE(columns->functions));
        if (number != NULL && PyDict_SetItem(columns->index_of, address, number) == 0 &&
            PyList_Append(columns->functions, function) == 0)
            index = PyLong_AsLong(number);
        Py_XDECREF(number);
    }
    Py_DECREF(address);
    if (index >= 0) {
        columns->last = function;
        columns->last_index = index;
    }
    return index;
}

static int
note_columns(Columns *columns, PyObject *node, PyObject *id)
{
    PyObject *call = slot_of(node, call_at), *serial = slot_of(node, serial_at);
    if (call == NULL || serial == NULL)
        return -1;
    PyObject *function = slot_of(call, wrapped_at), *options = slot_of(call, options_at);
    if (function == NULL || options == NULL)
        return -1;
    long index = function_index(columns, function);
    long long number = PyLong_AsLongLong(serial);
    if (index < 0 || (number == -1 && PyErr_Occurred()))
        return -1;
    if (push_int32(&columns->function_of, index) < 0 || push_int64(&columns->serials, number) < 0)
        return -1;
    if (options == usual_options)
        return 0;
    PyObject *pair = PyTuple_Pack(2, id, options);
    int result = pair == NULL ? -1 : PyList_Append(columns->options, pair);
    Py_XDECREF(pair);
    return result;
}

/* The master is a thread of this process, and must hear its nodes; -1: Ctrl-C. */
static int
pause_shortly(void)
{
    Py_BEGIN_ALLOW_THREADS
    Py_END_ALLOW_THREADS
    return PyErr_CheckSignals();
}

/* Put a task back on the stack, below those that it waits for; -1: an error. */
static int
put_back(Row *stack, PyObject *opened, PyObject *node, Row *pending)
{
    if (PySet_Add(opened, node) < 0 || push_object(stack, node) < 0)
        return -1;
    for (Py_ssize_t i = pending->count; i > 0; i--)
        if (push_object(stack, object_at(pending, i - 1)) < 0)
            return -1;
    return 0;
}

static void
empty(Row *row)
{
    while (row->count > 0)
        Py_DECREF(object_at(row, --row->count));
}

static PyObject *
walk(PyObject *self, PyObject *given)
{
    PyObject *roots, *ids, *entry_of, *mixed_entry, *cycle_error, *result = NULL;
    Py_ssize_t size_max;
    if (!PyArg_ParseTuple(given, "O!O!nOOO:walk", &PyList_Type, &roots, &PyDict_Type, &ids, &size_max,
                          &entry_of, &mixed_entry, &cycle_error))
        return NULL;
    if (delayed_type == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "prepare was not called");
        return NULL;
    }
    Row stack = {.size = sizeof(PyObject *)}, pending = {.size = sizeof(PyObject *)};
    Row mine = {.size = sizeof(int32_t)}, deps = {.size = sizeof(int32_t)};
    Row indptr = {.size = sizeof(int64_t)};
    Columns columns = {.functions = PyList_New(0), .index_of = PyDict_New(),
                       .options = PyList_New(0), .function_of = {.size = sizeof(int32_t)},
                       .serials = {.size = sizeof(int64_t)}};
    PyObject *entries = PyList_New(0), *opened = PySet_New(NULL);
    PyObject *node = NULL, *entry = NULL, *own = NULL, *id = NULL;
    long next_id = 0;

    if (columns.functions == NULL || columns.index_of == NULL || columns.options == NULL ||
        entries == NULL || opened == NULL || push_int64(&indptr, 0) < 0)
        goto done;
    for (Py_ssize_t i = PyList_GET_SIZE(roots); i > 0; i--)
        if (push_object(&stack, PyList_GET_ITEM(roots, i - 1)) < 0)
            goto done;
    while (stack.count > 0) {
        Py_XSETREF(node, object_at(&stack, --stack.count));
        int is_known = PyDict_Contains(ids, node);
        if (is_known < 0)
            goto done;
        if (is_known)
            continue;
        PyObject *args = slot_of(node, args_at), *kwargs = slot_of(node, kwargs_at);
        if (args == NULL || kwargs == NULL)
            goto done;
        int is_common = kwargs == Py_None && PyTuple_CheckExact(args), is_mixed = 0;
        mine.count = 0;
        empty(&pending);
        for (Py_ssize_t i = 0; is_common && i < PyTuple_GET_SIZE(args); i++) {
            PyObject *argument = PyTuple_GET_ITEM(args, i);
            if (i % PAUSE_EACH == PAUSE_EACH - 1 && pause_shortly() < 0)
                goto done;
            if (!Py_IS_TYPE(argument, delayed_type)) {
                is_common = is_small_constant(argument, size_max);
                if (is_common < 0)
                    goto done;
                is_mixed = 1;
                continue;
            }
            PyObject *known = PyDict_GetItemWithError(ids, argument);
            if (known == NULL && (PyErr_Occurred() || push_object(&pending, argument) < 0))
                goto done;
            if (known != NULL && push_int32(&mine, PyLong_AsLong(known)) < 0)
                goto done;
        }
        if (!is_common) {
            empty(&pending);
            Py_XSETREF(own, PyObject_CallFunctionObjArgs(entry_of, node, ids, NULL));
            if (own == NULL)
                goto done;
            PyObject *waits, *numbers, *found;
            if (!PyTuple_Check(own) || !PyArg_ParseTuple(own, "OOO", &found, &waits, &numbers))
                goto done;
            for (Py_ssize_t i = 0; waits != Py_None && i < PyList_GET_SIZE(waits); i++)
                if (push_object(&pending, PyList_GET_ITEM(waits, i)) < 0)
                    goto done;
            if (pending.count == 0) {
                Py_XSETREF(entry, Py_NewRef(found));
                if (extend_ids(&deps, numbers) < 0)
                    goto done;
            }
        }
        if (pending.count > 0) {
            int is_open = PySet_Contains(opened, node);
            if (is_open > 0) {
                PyObject *error = PyObject_CallFunctionObjArgs(cycle_error, node, opened, ids, NULL);
                if (error != NULL)
                    PyErr_SetObject((PyObject *)Py_TYPE(error), error);
                Py_XDECREF(error);
            }
            if (is_open != 0 || put_back(&stack, opened, node, &pending) < 0)
                goto done;
            continue;
        }
        if (is_common && mine.count == 0) {
            Py_XSETREF(entry, Py_NewRef(args));
        } else if (is_common) {
            const int32_t *numbers = (const int32_t *)mine.items;
            int has_more = is_mixed ? 1 : has_repeats(numbers, mine.count);
            if (has_more < 0)
                goto done;
            if (has_more) {
                PyObject *list = list_of_ids(numbers, mine.count);
                if (list == NULL)
                    goto done;
                Py_XSETREF(own, PyObject_CallFunctionObjArgs(mixed_entry, args, list, NULL));
                Py_DECREF(list);
                PyObject *found, *used;
                if (own == NULL || !PyArg_ParseTuple(own, "OO", &found, &used) ||
                    extend_ids(&deps, used) < 0)
                    goto done;
                Py_XSETREF(entry, Py_NewRef(found));
            } else {
                Py_XSETREF(entry, Py_NewRef(Py_None));
                for (Py_ssize_t i = 0; i < mine.count; i++)
                    if (push_int32(&deps, numbers[i]) < 0)
                        goto done;
            }
        }
        Py_XSETREF(id, PyLong_FromLong(next_id++));
        if (id == NULL || PyDict_SetItem(ids, node, id) < 0 || PyList_Append(entries, entry) < 0 ||
            push_int64(&indptr, deps.count) < 0 || note_columns(&columns, node, id) < 0)
            goto done;
        if (next_id % PAUSE_EACH == 0 && pause_shortly() < 0)
            goto done;
    }
    result = Py_BuildValue("ONNONNO", entries, taken_bytes(&deps), taken_bytes(&indptr),
                           columns.functions, taken_bytes(&columns.function_of),
                           taken_bytes(&columns.serials), columns.options);
done:
    Py_XDECREF(node);
    Py_XDECREF(entry);
    Py_XDECREF(own);
    Py_XDECREF(id);
    Py_XDECREF(entries);
    Py_XDECREF(opened);
    Py_XDECREF(columns.functions);
    Py_XDECREF(columns.index_of);
    Py_XDECREF(columns.options);
    drop_objects(&stack);
    drop_objects(&pending);
    PyMem_Free(mine.items);
    PyMem_Free(deps.items);
    PyMem_Free(indptr.items);
    PyMem_Free(columns.function_of.items);
    PyMem_Free(columns.serials.items);
    return result;
}

static PyMethodDef methods[] = {
    {"prepare", prepare, METH_VARARGS, "Say which classes and options there are."},
    {"walk", walk, METH_VARARGS, "Visit every task that the roots need."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "_walking", .m_size = -1, .m_methods = methods};

PyMODINIT_FUNC
PyInit__walking(void)
{
    return PyModule_Create(&definition);
}
