"""A picture that crashes or hangs its decoder costs only itself, and so does everything else that can go wrong."""

import base64
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmsearch
from mmsearch import decoding, media
from mmsearch.decoding import DecodePool, Skip
from mmsearch.encoders.preprocess import PixelSpec
from mmsearch.media import Decoded
from tests import pictures
from tests.conftest import as_from_a_terminal

SPEC = PixelSpec(64, 64)

# Imported by every new Python that finds it on its path: the only thing that is changed is Pillow, and only in workers.
BAD_DECODER = """
import os, sys, time
if "mmsearch.decoding" in sys.orig_argv:
    from PIL import ImageFile
    load = ImageFile.ImageFile.load
    def bad_load(self):
        comment = self.info.get("comment")
        if comment == b"abort":
            os.abort()
        if comment == b"sleep":
            time.sleep(600)
        if comment == b"shout":
            os.write(1, b"libcodec: warning, this goes to stdout")
        if comment == b"lie":
            for number in range(3, 20):
                try:
                    os.write(number, b"{}" * 9)
                except OSError:
                    pass
        return load(self)
    ImageFile.ImageFile.load = bad_load
"""


@pytest.fixture
def bad_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "python").mkdir()
    (tmp_path / "python" / "sitecustomize.py").write_text(BAD_DECODER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "python"))


def photos(folder: Path, n: int) -> list[str]:
    return [str(pictures.photo(folder / f"{number}.jpg", (200, 150), number)) for number in range(n)]


def with_comment(path: Path, comment: str) -> str:
    pictures.scene((80, 60)).save(path, comment=comment)
    return str(path)


def is_alive(process_id: int) -> bool:
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def children(of: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{of}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended meanwhile
            found += [int(number) for number in (task / "children").read_text().split()]
    return found


def eventually(true: object, within_s: float = 10.0) -> bool:
    end = time.monotonic() + within_s
    while not true():  # type: ignore[operator]
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def test_a_pool_gives_what_media_reads(tmp_path: Path) -> None:
    paths = photos(tmp_path, 5)
    with DecodePool(SPEC, workers=2) as pool:
        got = dict(pool.decode(paths))
    assert set(got) == set(paths)
    for path, decoded in got.items():
        expected = media.read(path, SPEC)
        assert isinstance(decoded, Decoded)
        assert decoded.facts == expected.facts
        assert np.array_equal(decoded.pixels, expected.pixels)
    assert np.stack([decoded.pixels for decoded in got.values()]).shape == (5, 64, 64, 3)  # type: ignore[union-attr]


def test_each_file_that_is_no_picture_is_skipped_with_its_reason(tmp_path: Path) -> None:
    secret = pictures.photo(tmp_path / "secret.jpg")
    secret.chmod(0)
    expected = {
        str(tmp_path / "gone.jpg"): Skip(str(tmp_path / "gone.jpg"), "vanished before it was read", "machine"),
        str(pictures.broken_empty(tmp_path / "empty.jpg")): Skip(str(tmp_path / "empty.jpg"), "is empty"),
        str(pictures.png_bomb(tmp_path / "bomb.png")): Skip(
            str(tmp_path / "bomb.png"), "is 50,000 x 50,000 pixels, more than the 250 million that are read"
        ),
    }
    if os.geteuid():  # root may read everything
        expected[str(secret)] = Skip(str(secret), "permission denied", "machine")
    with DecodePool(SPEC) as pool:
        assert dict(pool.decode(expected)) == expected


def test_a_picture_that_crashes_the_decoder_costs_only_itself(tmp_path: Path, bad_decoder: None) -> None:
    good = photos(tmp_path, 6)
    bad = with_comment(tmp_path / "bad.jpg", "abort")
    with DecodePool(SPEC, workers=2) as pool:
        got = dict(pool.decode([*good[:3], bad, *good[3:]]))
    assert got.pop(bad) == Skip(bad, "crashes the decoder (signal SIGABRT)", "decoder")
    assert len(got) == 6
    assert all(isinstance(decoded, Decoded) for decoded in got.values())


def test_a_picture_that_hangs_the_decoder_costs_only_itself(tmp_path: Path, bad_decoder: None) -> None:
    good = photos(tmp_path, 4)
    bad = with_comment(tmp_path / "bad.jpg", "sleep")
    with DecodePool(SPEC, workers=1, timeout_s=3) as pool:
        got = dict(pool.decode([bad, *good]))
    assert got.pop(bad) == Skip(bad, "took longer than 3 s to decode", "decoder")
    assert all(isinstance(decoded, Decoded) for decoded in got.values())


def test_a_codec_that_prints_does_not_disturb(tmp_path: Path, bad_decoder: None) -> None:
    loud = with_comment(tmp_path / "loud.jpg", "shout")
    with DecodePool(SPEC) as pool:
        assert isinstance(dict(pool.decode([loud]))[loud], Decoded)


def test_a_worker_that_was_taken_over_can_only_lie_about_its_picture(tmp_path: Path, bad_decoder: None) -> None:
    bad, good = with_comment(tmp_path / "bad.jpg", "lie"), photos(tmp_path, 1)[0]
    with DecodePool(SPEC, workers=1) as pool:
        got = dict(pool.decode([bad, good]))
    assert got[bad] == Skip(bad, "makes the decoder give a broken answer", "decoder")
    assert isinstance(got[good], Decoded)


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"skip": 3},
        {"skip": "x" * 1000},
        {"skip": "x"},
        {"skip": "x", "cause": ["file"]},
        {"shape": [65, 64], "facts": {}},
        {"shape": [64, 64], "facts": {"content_hash": "a", "width": 1, "height": "1"}},
        {"shape": [64, 64], "facts": None},
        {"shape": "aa", "facts": {}},
    ],
)
def test_an_answer_that_no_honest_worker_gives_is_a_skip(
    tmp_path: Path, header: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    body = np.zeros(64 * 64 * 3, dtype=np.uint8)
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(decoding, "_answer", lambda message: (header, body))
    with DecodePool(SPEC) as pool:
        broken = Skip("a.jpg", "makes the decoder give a broken answer", "decoder")
        assert list(pool.decode(["a.jpg"])) == [("a.jpg", broken)]


def test_a_large_picture_is_decoded_while_no_other_is(monkeypatch: pytest.MonkeyPatch) -> None:
    at_work: list[bytes] = []
    beside_large: list[int] = []

    def answer(message: dict[str, Any]) -> tuple[dict[str, object], np.ndarray]:
        is_large = base64.b64decode(message["file"])[-1] % 2 == 0
        if is_large and message["max_bytes"] == decoding.LARGE_BYTES:
            return {"too_large": "is large"}, np.empty(0, dtype=np.uint8)
        at_work.append(b"")
        time.sleep(0.03)
        if is_large:
            beside_large.append(len(at_work) - 1)
        at_work.pop()
        return {"skip": "done", "cause": "file"}, np.empty(0, dtype=np.uint8)

    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(decoding, "_answer", answer)
    with DecodePool(SPEC, workers=4) as pool:
        assert {skip.reason for _, skip in pool.decode("abcdefgh") if isinstance(skip, Skip)} == {"done"}
    assert beside_large == [0] * 4


def test_a_large_picture_is_decoded_and_a_too_large_one_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = pictures.blank_png(tmp_path / "large.png", (16_000, 14_464))  # 231 MB in grey
    with_alpha = pictures.png_bomb(tmp_path / "too-large.png", (15_000, 15_000), colour_type=6)  # 900 MB
    monkeypatch.setenv("MMSEARCH_MAX_DECODE_MB", "500")
    with DecodePool(SPEC, workers=2) as pool:
        got = dict(pool.decode([str(large), str(with_alpha)]))
    assert isinstance(got[str(large)], Decoded)
    reason = "needs 900 MB of memory to be decoded and may take 500; MMSEARCH_MAX_DECODE_MB sets another limit"
    assert got[str(with_alpha)] == Skip(str(with_alpha), reason, "machine")
    monkeypatch.setenv("MMSEARCH_MAX_DECODE_MB", "1000")
    with DecodePool(SPEC, workers=2) as pool:
        assert dict(pool.decode([str(with_alpha)])) == {str(with_alpha): Skip(str(with_alpha), "is cut short")}


def test_a_worker_may_hold_what_it_was_allowed_for_a_picture_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
import resource
from mmsearch.decoding import _limit_memory
for allowed in (150_000_000, 4_000_000_000, 150_000_000):
    _limit_memory(allowed)
    assert allowed < resource.getrlimit(resource.RLIMIT_DATA)[0] <= allowed + 1_000_000_000
"""
    env = {**os.environ, "PYTHONPATH": str(Path(mmsearch.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", code], env=env, check=True)


def test_a_pool_looks_ahead_only_so_far(tmp_path: Path) -> None:
    path = photos(tmp_path, 1)[0]
    taken = []

    def endless() -> Iterator[str]:
        for number in count():
            taken.append(number)
            yield path

    with DecodePool(SPEC, workers=2, lookahead=5) as pool:
        pictures_ = pool.decode(endless())
        for _ in range(3):
            next(pictures_)
        assert len(taken) <= 8


def test_a_pool_starts_no_more_workers_than_there_are_pictures(tmp_path: Path) -> None:
    before = set(children(os.getpid()))
    with DecodePool(SPEC, workers=4) as pool:
        list(pool.decode([]))
        assert set(children(os.getpid())) == before
        list(pool.decode(photos(tmp_path, 1)))
        assert len(set(children(os.getpid())) - before) == 1


def test_closing_is_prompt_and_leaves_no_process(tmp_path: Path, bad_decoder: None) -> None:
    before = set(children(os.getpid()))
    hanging = [with_comment(tmp_path / f"{n}.jpg", "sleep") for n in range(4)]
    pool = DecodePool(SPEC, workers=2)
    got: list[object] = []
    reader = threading.Thread(target=lambda: got.extend(pool.decode(hanging)))
    reader.start()
    assert eventually(lambda: len(set(children(os.getpid())) - before) == 2)
    time.sleep(0.5)
    started = time.monotonic()
    pool.close()
    assert time.monotonic() - started < 2
    reader.join(5)
    assert set(children(os.getpid())) == before
    assert [skip for _, skip in got] == [Skip(path, "was not read", "machine") for path, _ in got]  # type: ignore[misc]
    with pytest.raises(RuntimeError):
        next(pool.decode(hanging))


def test_leaving_off_half_way_leaves_the_pool_usable(tmp_path: Path) -> None:
    paths = photos(tmp_path, 8)
    with DecodePool(SPEC, workers=1) as pool:
        for _ in pool.decode(paths):
            break
        assert len(dict(pool.decode(paths))) == 8


def test_a_worker_that_died_in_between_is_replaced(tmp_path: Path) -> None:
    before = set(children(os.getpid()))
    path = photos(tmp_path, 1)[0]
    with DecodePool(SPEC, workers=1) as pool:
        list(pool.decode([path]))
        (worker,) = set(children(os.getpid())) - before
        os.kill(worker, signal.SIGKILL)
        assert eventually(lambda: not is_alive(worker))
        assert isinstance(dict(pool.decode([path]))[path], Decoded)


def test_two_threads_share_a_pool(tmp_path: Path) -> None:
    paths = photos(tmp_path, 6)
    got: list[dict[str, Decoded | Skip]] = []
    with DecodePool(SPEC, workers=2) as pool:
        threads = [threading.Thread(target=lambda: got.append(dict(pool.decode(paths)))) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert [set(one) for one in got] == [set(paths)] * 2


PROGRAM = """
import sys, time
from mmsearch.decoding import DecodePool
from mmsearch.encoders.preprocess import PixelSpec
pool = DecodePool(PixelSpec(64, 64), workers=2)
decoded = pool.decode(sys.argv[1:])
next(decoded)
print("ready", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_the_program_however_it_ends(tmp_path: Path, how: signal.Signals) -> None:
    env = {**os.environ, "PYTHONPATH": str(Path(mmsearch.__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *photos(tmp_path, 4)],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=as_from_a_terminal,
    ) as program:
        try:
            assert program.stdout is not None
            assert program.stdout.readline() == b"ready\n"
            workers = children(program.pid)
            assert workers
            if how == signal.SIGINT:
                os.killpg(program.pid, how)  # as a terminal does: to the program and all of its group
            else:
                program.kill()
            assert program.wait(10) == -how
            assert eventually(lambda: not any(is_alive(worker) for worker in workers))
        finally:
            program.kill()


def test_names_of_any_bytes_travel(tmp_path: Path) -> None:
    names = ["-rf.jpg", "new\nline '\".jpg", "\N{SNOWMAN}.jpg", os.fsdecode(b"\xff\xfe.jpg")]
    paths = [str(pictures.photo(tmp_path / name, (40, 30))) for name in names]
    with DecodePool(SPEC) as pool:
        got = dict(pool.decode(paths))
    assert set(got) == set(paths)
    assert all(isinstance(decoded, Decoded) for decoded in got.values())


def test_a_relative_path_stays_true_when_the_program_moves_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos(tmp_path, 1)
    (tmp_path / "json.py").write_text("raise SystemExit('a file in the current folder was imported')")
    monkeypatch.chdir(tmp_path)
    with DecodePool(SPEC, workers=1) as pool:
        list(pool.decode(["0.jpg"]))
        (tmp_path / "elsewhere").mkdir()
        photos(tmp_path / "elsewhere", 2)
        monkeypatch.chdir(tmp_path / "elsewhere")
        assert isinstance(dict(pool.decode(["1.jpg"]))["1.jpg"], Decoded)


def test_thumbnails_come_from_the_same_workers(tmp_path: Path) -> None:
    path, text = photos(tmp_path, 1)[0], str(pictures.broken_text(tmp_path / "text.jpg"))
    with DecodePool(SPEC) as pool:
        got = dict(pool.thumbnails([path, text], 50))
    assert got == {path: media.thumbnail(path, 50), text: Skip(text, "is text, not a picture")}


def test_within_travels_in_the_pictures_own_shape(tmp_path: Path) -> None:
    path = photos(tmp_path, 1)[0]
    with DecodePool(PixelSpec(100, 100, "within")) as pool:
        [(_, decoded)] = pool.decode([path])
    assert isinstance(decoded, Decoded)
    assert decoded.pixels.shape == (100, 133, 3)


def test_where_no_worker_can_be_started_pictures_are_decoded_in_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    paths = photos(tmp_path, 3)
    (tmp_path / "python-that-fails").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "python-that-fails").chmod(0o755)
    for executable in (
        "/usr/sbin/a-web-server",
        str(tmp_path / "python-not-there"),
        str(tmp_path / "python-that-fails"),
    ):
        monkeypatch.setattr(sys, "executable", executable)
        with DecodePool(SPEC, workers=2) as pool:
            assert all(isinstance(decoded, Decoded) for _, decoded in pool.decode(paths))
    assert "no worker process could be started" in caplog.text


def test_a_worker_imports_nothing_heavy() -> None:
    heavy = ("torch", "onnxruntime", "faiss", "sqlite_utils", "open_clip", "rich", "pyarrow", "pi_heif")
    code = f"import sys, mmsearch.decoding; print([name for name in {heavy} if name in sys.modules])"
    env = {**os.environ, "PYTHONPATH": str(Path(mmsearch.__file__).parents[1])}
    assert subprocess.check_output([sys.executable, "-c", code], env=env, text=True).strip() == "[]"
