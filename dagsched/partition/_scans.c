/* Scans along a graph's edges, compiled: what `stages_of` and `levels_plainly` of arrays.py do,
straight on numpy's arrays. A property test holds the two against each other.

Arrays are contiguous and of the types that `_scans.pyi` names; what is not told by their lengths
and an index out of range are errors. Other threads run meanwhile. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>

typedef struct {
    const int32_t *deps;
    const int64_t *tasks;
    Py_ssize_t count;      /* edges */
    Py_ssize_t task_count;
} Edges;

/* Whether edge i lies among the tasks. */
#define IS_INSIDE(edges, i)                                                                        \
    ((edges)->deps[i] >= 0 && (edges)->deps[i] < (edges)->task_count && (edges)->tasks[i] >= 0 &&  \
     (edges)->tasks[i] < (edges)->task_count)

static int
scan_stages(const Edges *edges, const char *crosses, int64_t *stage)
{
    for (Py_ssize_t i = 0; i < edges->count; i++) {
        if (!IS_INSIDE(edges, i))
            return -1;
        int64_t reached = stage[edges->deps[i]] + (crosses[i] != 0);
        if (reached > stage[edges->tasks[i]])
            stage[edges->tasks[i]] = reached;
    }
    return 0;
}

static int
scan_levels(const Edges *edges, const double *weights, int32_t *level, double *start)
{
    for (Py_ssize_t i = 0; i < edges->count; i++) {
        if (!IS_INSIDE(edges, i))
            return -1;
        Py_ssize_t dep = edges->deps[i], task = edges->tasks[i];
        if (level[dep] + 1 > level[task])
            level[task] = level[dep] + 1;
        if (start[dep] + weights[dep] > start[task])
            start[task] = start[dep] + weights[dep];
    }
    return 0;
}

/* Let go of what was looked at; what a call returns. */
static PyObject *
ended(Py_buffer *views, int count, int failed)
{
    for (int i = 0; i < count; i++)
        PyBuffer_Release(&views[i]);
    if (failed) {
        PyErr_SetString(PyExc_ValueError, "these are no edges of so many tasks");
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *
stages(PyObject *module, PyObject *args)
{
    Py_buffer views[4], *deps = views, *tasks = views + 1, *crosses = views + 2, *stage = views + 3;
    if (!PyArg_ParseTuple(args, "y*y*y*w*", deps, tasks, crosses, stage))
        return NULL;
    Edges edges = {deps->buf, tasks->buf, crosses->len, stage->len / (Py_ssize_t)sizeof(int64_t)};
    int failed = deps->len != edges.count * (Py_ssize_t)sizeof(int32_t) ||
                 tasks->len != edges.count * (Py_ssize_t)sizeof(int64_t);
    Py_BEGIN_ALLOW_THREADS
    failed = failed || scan_stages(&edges, crosses->buf, stage->buf) < 0;
    Py_END_ALLOW_THREADS
    return ended(views, 4, failed);
}

static PyObject *
levels(PyObject *module, PyObject *args)
{
    Py_buffer views[5], *deps = views, *tasks = views + 1, *weights = views + 2;
    Py_buffer *level = views + 3, *start = views + 4;
    if (!PyArg_ParseTuple(args, "y*y*y*w*w*", deps, tasks, weights, level, start))
        return NULL;
    Py_ssize_t count = level->len / (Py_ssize_t)sizeof(int32_t);
    Edges edges = {deps->buf, tasks->buf, deps->len / (Py_ssize_t)sizeof(int32_t), count};
    int failed = tasks->len != edges.count * (Py_ssize_t)sizeof(int64_t) ||
                 weights->len != count * (Py_ssize_t)sizeof(double) || start->len != weights->len;
    Py_BEGIN_ALLOW_THREADS
    failed = failed || scan_levels(&edges, weights->buf, level->buf, start->buf) < 0;
    Py_END_ALLOW_THREADS
    return ended(views, 5, failed);
}

static PyMethodDef methods[] = {
    {"stages", stages, METH_VARARGS, "The most crossing edges on a path to each task."},
    {"levels", levels, METH_VARARGS, "The longest path to each task, in edges and in seconds."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "_scans", .m_size = -1, .m_methods = methods};

PyMODINIT_FUNC
PyInit__scans(void)
{
    return PyModule_Create(&definition);
}
