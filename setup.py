"""The compiled part, which is left out where there is no compiler; all else is in pyproject.toml."""

import zlib
from pathlib import Path

from setuptools import Extension, setup

NATIVE = Path(__file__).parent / "native"
# What it was compiled from, so that a test can tell whether that was long ago
CHECKSUM = zlib.crc32(b"".join(path.read_bytes() for path in sorted(NATIVE.glob("*.[ch]")))) >> 1

setup(
    ext_modules=[
        Extension(
            "_mmsearch",
            ["native/module.c", "native/jpeg.c", "native/resize.c"],
            depends=["native/mmsearch.h"],
            define_macros=[("SOURCES", str(CHECKSUM))],
            optional=True,
        )
    ]
)
