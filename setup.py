"""The compiled part, which is left out where there is no compiler; all else is in pyproject.toml."""

import zlib
from pathlib import Path

from setuptools import Extension, setup

NATIVE = Path("native")  # setuptools builds in the project's own folder, and takes no other paths
# What it was compiled from, so that a test can tell whether that was long ago
CHECKSUM = zlib.crc32(b"".join(path.read_bytes() for path in sorted(NATIVE.glob("*.[ch]")))) >> 1

setup(
    ext_modules=[
        Extension(
            "_mmsearch",
            [path.as_posix() for path in sorted(NATIVE.glob("*.c"))],
            depends=[path.as_posix() for path in NATIVE.glob("*.h")],
            define_macros=[("SOURCES", str(CHECKSUM))],
            optional=True,
        )
    ]
)
