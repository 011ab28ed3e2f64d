/* The compiled part of mmsearch: what a picture spends most of its time on. Without it all works, slower. */

#include "mmsearch.h"

static PyMethodDef methods[] = {
    {"jpeg_eighth", jpeg_eighth, METH_O,
     "The bytes of a JPEG -> (width, height, pixels) at an eighth of its size, rounded up; None for what is not plain.\n\n"
     "pixels: bytes, width x height x 3 in RGB, or x 1 of a grey picture, to the bit what libjpeg-turbo gives."},
    {"resize", resize, METH_VARARGS,
     "(RGBX bytes, (width, height), (new width, new height), (left, top, width, height), is bicubic, into) -> is done.\n\n"
     "The box is what is kept of the resized picture; it is put `into` a buffer of its size, in RGB, to the bit as Pillow\n"
     "resizes. Not done where the windows of the filter are too large, or there is no memory. Raises ValueError for sizes\n"
     "that do not fit together."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_mmsearch", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__mmsearch(void)
{
    PyObject *module = PyModule_Create(&definition);
    if (module != NULL && (PyModule_AddIntConstant(module, "VERSION", 1) < 0 ||
                           PyModule_AddIntConstant(module, "SOURCES", SOURCES) < 0)) /* told by setup.py */
        Py_CLEAR(module);
    return module;
}
