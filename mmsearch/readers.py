"""Which version of the readers says that a file cannot be read: another one may read it."""

import functools
from importlib import metadata

from mmsearch import __version__

READING = 1  # to be raised when mmsearch reads more files than before within one version
PACKAGES = ("Pillow", "pi-heif")


@functools.cache
def readers_version() -> str:
    """mmsearch and the packages with the decoders, such as `mmsearch 0.1.0/1, Pillow 12.0.0, pi-heif none`."""
    return ", ".join((f"mmsearch {__version__}/{READING}", *(f"{name} {_installed(name)}" for name in PACKAGES)))


def _installed(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "none"
