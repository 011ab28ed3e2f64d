"""The compiled part, which is left out where there is no compiler; all else is in pyproject.toml."""

from setuptools import Extension, setup

SOURCES = ["native/module.c", "native/jpeg.c", "native/resize.c"]

setup(ext_modules=[Extension("_mmsearch", SOURCES, depends=["native/mmsearch.h"], optional=True)])
