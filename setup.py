"""The compiled part, which is left out where there is no compiler; all else is in pyproject.toml."""

from setuptools import Extension, setup

setup(ext_modules=[Extension("_mmsearch", ["native/jpeg.c"], optional=True)])
