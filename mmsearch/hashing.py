"""What tells two files with the same content, whatever they are called."""

from collections.abc import Iterable

from blake3 import blake3


def hashed(parts: Iterable[bytes | memoryview]) -> str:
    """Hex BLAKE3 (20 bytes) of the parts, one behind the other.

    A photograph of 4 MB takes 0.7 ms; BLAKE2b took 4.9, a tenth of all that indexing it with `lite` takes. Files come
    from strangers, so that nothing less than a cryptographic hash will do.
    """
    digest = blake3()
    for part in parts:
        digest.update(part)
    return digest.hexdigest(length=20)
