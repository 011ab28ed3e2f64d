/* What each file of the compiled part gives to the module. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>

PyObject *jpeg_eighth(PyObject *module, PyObject *data);
PyObject *resize(PyObject *module, PyObject *args);
