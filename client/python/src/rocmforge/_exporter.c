/* rocmforge._exporter: the buffer protocol for a class that is written in Python. A class that derives from Exporter
 * exports what its method __buffer__(flags) returns. From 3.12 on Python does this itself; before, setup.py builds this
 * where there is a compiler. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

static int get_buffer(PyObject *self, Py_buffer *view, int flags)
{
    PyObject *buffer = PyObject_CallMethod(self, "__buffer__", "i", flags);
    int result;

    view->obj = NULL; /* what the protocol wants with an error */
    if (!buffer)
        return -1;
    result = PyObject_GetBuffer(buffer, view, flags); /* the view keeps the buffer, and releases it */
    Py_DECREF(buffer);
    return result;
}

/* Never called, because the view is the buffer's. But NumPy keeps the view only if this is there, and else the object
 * alone, which does not keep the memory. */
static void release_buffer(PyObject *self, Py_buffer *view)
{
    (void)self;
    (void)view;
}

static PyBufferProcs buffer_procs = {.bf_getbuffer = get_buffer, .bf_releasebuffer = release_buffer};

static PyTypeObject exporter_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "rocmforge._exporter.Exporter",
    .tp_doc = "A class that derives from this exports what its __buffer__(flags) returns.",
    .tp_basicsize = sizeof(PyObject),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .tp_as_buffer = &buffer_procs,
    .tp_new = PyType_GenericNew,
};

static PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "rocmforge._exporter",
    .m_doc = "The buffer protocol for a class that is written in Python.",
    .m_size = -1,
};

PyMODINIT_FUNC PyInit__exporter(void)
{
    PyObject *made;

    if (PyType_Ready(&exporter_type) < 0)
        return NULL;
    made = PyModule_Create(&module);
    if (!made)
        return NULL;
    Py_INCREF(&exporter_type);
    if (PyModule_AddObject(made, "Exporter", (PyObject *)&exporter_type) < 0) {
        Py_DECREF(&exporter_type);
        Py_DECREF(made);
        return NULL;
    }
    return made;
}
