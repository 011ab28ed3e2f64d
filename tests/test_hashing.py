"""The hash of content: by whichever parts it comes, and of which algorithm, since indexes remember it."""

from hypothesis import given
from hypothesis import strategies as st

from mmsearch.hashing import hashed


@given(st.lists(st.binary(max_size=50), max_size=8))
def test_the_parts_make_no_difference(parts: list[bytes]) -> None:
    assert hashed(parts) == hashed([b"".join(parts)])


def test_it_is_blake3() -> None:
    # The beginning of the first vector of github.com/BLAKE3-team/BLAKE3/blob/master/test_vectors/test_vectors.json
    assert hashed([]) == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9"
