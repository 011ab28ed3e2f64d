"""Decoding in worker processes, so that a picture that crashes or hangs a native decoder costs only itself.

A worker is `python -m mmsearch.decoding`, started with pipes for its stdin and stdout; not `multiprocessing`, which
runs the main module of the embedding program again. Each is driven by one thread here: a request, a bounded wait, the
reply. One that dies is started again for the next picture; one that takes too long is killed.

What travels is a JSON header and raw bytes, never pickles: a worker that reads hostile files may have been taken over
by one, and whoever unpickles does what the sender wants. So a reply is also checked for being what was asked for.

Where no worker can be started (a frozen program, whose `sys.executable` is not a Python; a sandbox without processes),
pictures are decoded by the same threads in this process: as fast, but without that protection.
"""

import base64
import contextlib
import json
import logging
import math
import os
import queue
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Generic, Literal, Self, TypeAlias, TypeVar, get_args

import numpy as np
from PIL import Image

from mmsearch import media
from mmsearch.encoders.base import PixelArray
from mmsearch.encoders.preprocess import LONGEST_WITHIN, PixelSpec
from mmsearch.errors import MediaError, is_short_of_memory
from mmsearch.facts import Decoded, ImageFacts
from mmsearch.machine import chosen_decode_limit_bytes, decode_limit_bytes, usable_cores

LARGE_BYTES = 150_000_000  # a picture that takes more to decode (12 megapixels of HEIC take 120 MB) is decoded alone
LOOKAHEAD = 32  # pictures asked for and not yet handed on: two batches of 16, one being encoded and one being decoded
MOST_WORKERS = 16  # of 60 to 90 MB each; more give this process more than it can write
# Of freed memory, by a worker. 1,500 pictures of 512 px took 0.7 s of the kernel's time then, and not 2.2, of 31 s in
# all (tests/benchmarks/indexing.py in turns, 89 -> 93 pictures/s).
KEPT_BYTES = 2**25

MAX_CONTENT_BYTES = 100_000_000  # that are sent to a worker; what is larger goes by way of a file
# The most that a worker may hold beside what it was allowed for the picture: Python, buffers, and some air
_WORKER_DATA_BYTES = 950_000_000
_START_S = 60.0
_WATCH_S = 0.2  # between two looks for workers that take too long
_STOOD_STILL_S = 1.0  # between two such looks: no load of a machine makes them so rare for long
_HEADER = struct.Struct(">II")  # length of the JSON, length of the bytes after it
_MAX_JSON_BYTES = 2**16

_log = logging.getLogger(__name__)

Result = TypeVar("Result")
File = TypeVar("File", bound="str | bytes")  # by its path, or what is in it


Cause: TypeAlias = Literal["file", "decoder", "machine"]


@dataclass(frozen=True)
class Skip:
    """A file that was left out, and why.

    cause: where the reason lies. In the file: it stays until the file changes, or another version reads it. In the
    decoder, which broke or took too long: it may have been the file. In the machine (memory, a package, permission, a
    disk): it may be gone at any time.
    """

    path: str
    reason: str
    cause: Cause = "file"


class DecodePool:
    """Decodes pictures in as many processes as there are pictures, up to `workers`; close it, or use it in a `with`.

    May be used from several threads at once.
    """

    def __init__(
        self,
        spec: PixelSpec | None = None,
        *,
        workers: int | None = None,
        timeout_s: float = 60.0,
        lookahead: int = LOOKAHEAD,
        idle_s: float | None = None,
    ) -> None:
        """spec: of the pixels of what is decoded, where `decode` is not told. idle_s: how long a worker without work
        stays; None: until the pool is closed.
        """
        self._spec = spec
        self._n_workers = workers or default_workers()
        self._timeout_s = timeout_s
        self._idle_s = idle_s
        self._lookahead = max(lookahead, self._n_workers)
        self._decode_limit_bytes = chosen_decode_limit_bytes()
        self._requests: queue.SimpleQueue[_Request[Any] | Literal["get ready", "end"]] = queue.SimpleQueue()
        self._room = threading.Semaphore(self._n_workers)  # one for each picture, all of it for a large one
        self._one_large = threading.Lock()
        self._lock = threading.Lock()  # for all below
        self._n_open = 0  # requests without an answer
        self._drivers: list[threading.Thread] = []
        self._workers: set[_Worker] = set()
        self._closed = threading.Event()
        self._is_watched = False
        self._a_worker_ran = False
        self._in_process = not _is_python(sys.executable)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def get_ready(self) -> None:
        """Start a worker, in another thread, before there is a picture for it."""
        self._submit("get ready")

    def decode(self, files: Iterable[File], spec: PixelSpec | None = None) -> Iterator[tuple[File, Decoded | Skip]]:
        """Each file with its picture or the reason why there is none, in the order in which they get ready.

        files: paths, or the bytes of files. Taken only as far ahead as the pool looks, so there may be millions.
        """
        pixels = spec or self._spec
        assert pixels is not None
        asked = {"job": "decode", "spec": asdict(pixels)}
        most = 3 * pixels.width * pixels.height
        if pixels.resize == "within":
            most = 3 * LONGEST_WITHIN * min(pixels.width, pixels.height) ** 2
        return self._run(files, asked, most, lambda header, body: _decoded(header, body, pixels))

    def batches(
        self, paths: Iterable[str], size: int, skipped: Callable[[Skip], None]
    ) -> Iterator[list[tuple[str, Decoded]]]:
        """The same pictures with their paths, `size` at a time; what there is no picture of goes to `skipped`."""
        batch: list[tuple[str, Decoded]] = []
        for path, decoded in self.decode(paths):
            if isinstance(decoded, Skip):
                skipped(decoded)
            else:
                batch.append((path, decoded))
            if len(batch) == size:
                yield batch
                batch = []
        if batch:
            yield batch

    def thumbnails(self, paths: Iterable[str], size_px: int) -> Iterator[tuple[str, bytes | Skip]]:
        """Each path with a JPEG whose longer side is at most `size_px`, or the reason why there is none."""
        asked = {"job": "thumbnail", "size_px": size_px}
        return self._run(paths, asked, 4 * size_px**2 + 2**16, lambda _, body: body.tobytes())

    def close(self) -> None:
        """Kill the workers, whatever they are doing; what was asked for and is not ready becomes a Skip."""
        with self._lock:
            self._closed.set()
            drivers, self._drivers = self._drivers, []
            for worker in self._workers:
                worker.kill()
        for _ in drivers:
            self._requests.put("end")
        for driver in drivers:
            driver.join(2.0)  # without a worker process, a decoder that hangs cannot be stopped; its thread is a daemon

    def _run(
        self,
        files: Iterable[File],
        asked: dict[str, Any],
        most_bytes: int,
        understand: "Callable[[dict[str, Any], PixelArray], Result]",
    ) -> Iterator[tuple[File, Result | Skip]]:
        done: queue.SimpleQueue[tuple[Any, Result | Skip | Exception]] = queue.SimpleQueue()
        abandoned = threading.Event()
        left = iter(files)
        n_open = 0
        try:
            while True:
                while n_open < self._lookahead and (file := next(left, None)) is not None:
                    folder = "" if isinstance(file, bytes) or os.path.isabs(file) else os.getcwd()
                    self._submit(_Request(file, folder, asked, most_bytes, understand, done, abandoned))
                    n_open += 1
                if n_open == 0:
                    return
                file, result = _take(done)
                if isinstance(result, Exception):
                    raise result
                yield file, result
                n_open -= 1
        finally:
            abandoned.set()

    def _submit(self, request: '_Request[Any] | Literal["get ready"]') -> None:
        with self._lock:
            if self._closed.is_set():
                raise RuntimeError("the DecodePool is closed")
            self._requests.put(request)
            self._n_open += request != "get ready"
            if len(self._drivers) < min(max(self._n_open, 1), self._n_workers):
                driver = threading.Thread(target=self._drive, name="mmsearch decoder", daemon=True)
                self._drivers.append(driver)
                driver.start()

    # In the threads

    def _drive(self) -> None:
        """Answers requests until it is told to end, by a worker of its own."""
        worker: _Worker | None = None
        while (request := self._next_request(worker)) != "end":
            if worker is not None and (request == "idle" or worker.is_gone()):
                self._bury(worker)
                worker = None
            if request == "idle":
                continue
            if request == "get ready":
                with contextlib.suppress(_WorkerGoneError):  # the first picture will say it
                    worker = worker or self._start_worker()
            elif self._closed.is_set() or request.abandoned.is_set():
                request.done.put((request.file, Skip(_name(request.file), "was not read", "machine")))
            else:
                worker = self._answer_by(worker, request)
            if request != "get ready":
                with self._lock:
                    self._n_open -= 1
        if worker is not None:
            self._bury(worker)

    def _next_request(self, worker: "_Worker | None") -> '_Request[Any] | Literal["get ready", "idle", "end"]':
        if worker is None or self._idle_s is None:
            return self._requests.get()
        try:
            return self._requests.get(timeout=self._idle_s)
        except queue.Empty:
            return "idle"

    def _answer_by(self, worker: "_Worker | None", request: "_Request[Any]") -> "_Worker | None":
        """Answers a request by a worker, or a new one. Returns it, None where it is gone."""
        try:
            worker = worker or self._start_worker()
            result = self._ask(worker, request)
        except _WorkerGoneError as gone:
            if self._closed.is_set():
                result = Skip(_name(request.file), "was not read", "machine")
            else:
                result = Skip(_name(request.file), str(gone), gone.cause)
            if worker is not None:
                self._bury(worker)
                worker = None
        except Exception as error:  # of this process, such as a lack of memory, and no fault of the picture
            request.done.put((request.file, error))
            return worker
        request.done.put((request.file, result))
        return worker

    def _start_worker(self) -> "_Worker | None":
        """A worker that has said that it is ready; None if there can be none."""
        if self._in_process:
            return None
        try:
            worker = _Worker()
        except OSError as error:
            self._do_without(error)
            return None
        with self._lock:
            self._workers.add(worker)
            if self._closed.is_set():
                worker.kill()
        try:
            self._be_watched()
            worker.wait_until_ready()
        except (_WorkerGoneError, RuntimeError) as error:  # the second: no thread can be started
            self._bury(worker)
            self._do_without(error)
            return None
        self._a_worker_ran = True
        return worker

    def _be_watched(self) -> None:
        with self._lock:
            if not self._is_watched:
                threading.Thread(target=self._watch, name="mmsearch decoder watch", daemon=True).start()
                self._is_watched = True

    def _watch(self) -> None:
        """Ends workers that take too long, in a thread of its own; one that waits for each picture costs more.

        Where this thread slept for much longer than it asked to, the whole process stood still (Ctrl-Z, a machine that
        was suspended), and nobody could take an answer: that time does not count.
        """
        looked_at = time.monotonic()
        while not self._closed.wait(_WATCH_S):
            slept_s, looked_at = time.monotonic() - looked_at, time.monotonic()
            with self._lock:
                workers = list(self._workers)
            for worker in workers:
                if slept_s > _STOOD_STILL_S:
                    worker.give_time(slept_s)
                worker.end_if_late()

    def _do_without(self, error: Exception) -> None:
        if is_short_of_memory(error):  # no reason to let a file crash this process
            raise MemoryError from error
        # Where one ran it works in principle, and what has crashed one stays out of here
        if self._a_worker_ran or self._closed.is_set():
            raise _WorkerGoneError("no decoder can be started", "machine") from error
        self._in_process = True
        _log.warning("Pictures are decoded in this process, since no worker process could be started: %s.", error)

    def _bury(self, worker: "_Worker") -> None:
        with self._lock:
            self._workers.discard(worker)
        worker.bury()

    def _ask(self, worker: "_Worker | None", request: "_Request[Result]") -> "Result | Skip":
        """The answer to a request; one for a large picture is put again when no other picture is being decoded."""
        with self._room:
            at_once = min(LARGE_BYTES, self._decode_limit_bytes or LARGE_BYTES)
            header, body = self._exchange(worker, request, at_once)
        if "too_large" in header:
            with self._all_room():
                header, body = self._exchange(worker, request, self._decode_limit_bytes or decode_limit_bytes())
        try:
            if "too_large" in header:
                return Skip(_name(request.file), _text(header["too_large"]), "machine")
            if "skip" in header:
                return Skip(_name(request.file), _text(header["skip"]), _cause(header["cause"]))
            return request.understand(header, body)
        except (KeyError, TypeError, ValueError) as error:
            raise _WorkerGoneError("makes the decoder give a broken answer") from error

    @contextlib.contextmanager
    def _all_room(self) -> Iterator[None]:
        with self._one_large:  # two that collect room at the same time would wait for each other
            for _ in range(self._n_workers):
                self._room.acquire()
            try:
                yield
            finally:
                self._room.release(self._n_workers)

    def _exchange(
        self, worker: "_Worker | None", request: "_Request[Any]", max_bytes: int
    ) -> tuple[dict[str, Any], PixelArray]:
        message = {**request.asked, "max_bytes": max_bytes, "alarm_s": math.ceil(self._timeout_s) + 10}
        with _sendable(request.file) as file:
            if isinstance(file, str):
                path = os.fsencode(os.path.join(request.folder, file))
                message["file"] = base64.b64encode(path).decode()
            content = file if isinstance(file, bytes) else b""
            if worker is None:
                return _answer({**message, "content": content})
            return worker.ask(message, content, request.most_bytes, self._timeout_s)


def default_workers(*, alone: bool = False) -> int:
    """Three quarters of the cores: of the work on a photograph, that is what decoding takes beside a small encoder.

    Beside a large one they mostly wait. alone: all cores but one, for this process, since a GPU encodes.
    """
    return min(MOST_WORKERS, max(2, usable_cores() - 1 if alone else usable_cores() * 3 // 4))


@dataclass(frozen=True, eq=False)
class _Request(Generic[Result]):
    file: str | bytes
    folder: str  # that a relative path is relative to; the program may move on
    asked: dict[str, Any]
    most_bytes: int  # of an honest answer
    understand: Callable[[dict[str, Any], PixelArray], Result]
    done: "queue.SimpleQueue[tuple[Any, Result | Skip | Exception]]"
    abandoned: threading.Event


@contextlib.contextmanager
def _sendable(file: str | bytes) -> Iterator[str | bytes]:
    """The file, or a path of it where its bytes are too many for the memory of a worker."""
    if isinstance(file, str) or len(file) <= MAX_CONTENT_BYTES:
        yield file
        return
    try:
        descriptor, path = tempfile.mkstemp(prefix="mmsearch-")  # that only this user can read
    except OSError as error:
        raise _WorkerGoneError(_no_room(error), "machine") from error
    try:
        try:
            with os.fdopen(descriptor, "wb") as copy:
                copy.write(file)
        except OSError as error:
            raise _WorkerGoneError(_no_room(error), "machine") from error
        yield path
    finally:
        os.unlink(path)


def _no_room(error: OSError) -> str:
    return f"cannot be put into {tempfile.gettempdir()} ({error.strerror or error})"


def _name(file: str | bytes) -> str:
    return file if isinstance(file, str) else "The picture"


def _take(done: "queue.SimpleQueue[tuple[Any, Result]]") -> tuple[Any, Result]:
    while True:
        with contextlib.suppress(queue.Empty):
            return done.get(timeout=1.0)  # on Windows, Ctrl-C does not end a wait without a limit


def _decoded(header: dict[str, Any], body: PixelArray, spec: PixelSpec) -> Decoded:
    """Raises KeyError, TypeError or ValueError unless it is what an honest worker sends."""
    height, width = (_count(side) for side in header["shape"])
    if spec.resize != "within" and (width, height) != (spec.width, spec.height):
        raise ValueError("not the shape that was asked for")
    facts = header["facts"]
    return Decoded(
        body.reshape(height, width, 3),
        ImageFacts(
            content_hash=_text(facts["content_hash"]),
            width=_count(facts["width"]),
            height=_count(facts["height"]),
            format=_text(facts["format"]),
            taken_at=_optional(_text, facts["taken_at"]),
            camera=_optional(_text, facts["camera"]),
            latitude_deg=_optional(_degrees, facts["latitude_deg"]),
            longitude_deg=_optional(_degrees, facts["longitude_deg"]),
        ),
    )


def _optional(check: Callable[[Any], Result], value: object) -> Result | None:
    return None if value is None else check(value)


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > 500:
        raise TypeError("not a short text")
    return value


def _cause(value: object) -> Cause:
    if value not in get_args(Cause):
        raise ValueError("not a cause")
    return value  # type: ignore[return-value]  # one of them


def _count(value: object) -> int:
    if not isinstance(value, int) or not 1 <= value <= media.MAX_PIXELS:
        raise TypeError("not a number of pixels")
    return value


def _degrees(value: object) -> float:
    if not isinstance(value, float) or not abs(value) <= 180.0:
        raise TypeError("not an angle")
    return value


# The wire, as both ends see it


def _send(stream: IO[bytes], header: dict[str, Any], body: PixelArray | bytes = b"") -> None:
    text = json.dumps(header).encode()
    content = body if isinstance(body, bytes) else body.data
    stream.write(_HEADER.pack(len(text), len(content)) + text)
    stream.write(content)
    stream.flush()


def _receive(stream: IO[bytes], most_bytes: int) -> tuple[dict[str, Any], PixelArray]:
    """Raises EOFError where the other end is gone, ValueError for what no honest end sends."""
    n_text, n_body = _HEADER.unpack(_read(stream, _HEADER.size).tobytes())
    if n_text > _MAX_JSON_BYTES or n_body > most_bytes:
        raise ValueError("a message that is too long")
    header = json.loads(_read(stream, n_text).tobytes())
    if not isinstance(header, dict):
        raise ValueError("a message that is no object")
    return header, _read(stream, n_body)


def _read(stream: IO[bytes], n_bytes: int) -> PixelArray:
    """(n_bytes,) uint8, in memory of its own."""
    data = np.empty(n_bytes, dtype=np.uint8)
    at = 0
    while at < n_bytes:
        n_read = stream.readinto(data.data[at:])  # type: ignore[attr-defined]  # IO[bytes] lacks it, all of these have it
        if not n_read:
            raise EOFError
        at += n_read
    return data


# This end: one worker process


class _WorkerGoneError(Exception):
    """The worker is of no more use; its text is what that says about the picture."""

    def __init__(self, reason: str, cause: Cause = "decoder") -> None:
        super().__init__(reason)
        self.cause = cause


class _Worker:
    """A process that decodes, driven by one thread; `kill` and `end_if_late` alone may be called by others."""

    def __init__(self) -> None:
        """Raises OSError if it cannot be started."""
        python_path = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", ""), *sys.path]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "mmsearch.decoding"],  # -P: a json.py in the current folder is not imported
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # codecs complain there about pictures
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(part for part in python_path if part),
                "OPENBLAS_NUM_THREADS": "1",  # numpy would start threads that have nothing to do
                # glibc would give the memory of every small picture back, and be given new pages for the next
                "MALLOC_MMAP_THRESHOLD_": str(KEPT_BYTES // 4),
                "MALLOC_TRIM_THRESHOLD_": str(KEPT_BYTES),
            },
            start_new_session=os.name
            == "posix",  # Ctrl-C in a terminal goes to the program alone, which closes the pool
            creationflags=0x08000200 if os.name == "nt" else 0,  # CREATE_NO_WINDOW | CREATE_NEW_PROCESS_GROUP
        )
        self._lock = threading.Lock()
        self._due = math.inf  # by when it has to have answered, by time.monotonic
        self._ran_out = False

    def wait_until_ready(self) -> None:
        """Raises _WorkerGoneError if it does not come up."""
        with self._time_limit(_START_S):
            self._hear(0)

    def ask(
        self, message: dict[str, Any], content: bytes, most_bytes: int, timeout_s: float
    ) -> tuple[dict[str, Any], PixelArray]:
        """Raises _WorkerGoneError with what is to be said about the picture; the worker has to be buried then."""
        with self._time_limit(timeout_s):
            assert self._process.stdin is not None
            try:
                _send(self._process.stdin, message, content)
            except OSError as error:
                raise self._gone(timeout_s) from error
            return self._hear(most_bytes, timeout_s)

    def is_gone(self) -> bool:
        return self._process.poll() is not None

    def kill(self) -> None:
        """End it at once; whoever waits for its answer is told so."""
        self._process.kill()

    def bury(self) -> None:
        """Kill it, and leave nothing of it behind."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _hear(self, most_bytes: int, timeout_s: float = _START_S) -> tuple[dict[str, Any], PixelArray]:
        assert self._process.stdout is not None
        try:
            return _receive(self._process.stdout, most_bytes)
        except ValueError as error:
            raise _WorkerGoneError("makes the decoder give a broken answer") from error
        except (OSError, EOFError) as error:
            raise self._gone(timeout_s) from error

    def end_if_late(self) -> None:
        """Kill it if it had to have answered by now; called by the pool's watch."""
        with self._lock:
            if time.monotonic() > self._due:
                self._ran_out = True
                with contextlib.suppress(OSError):  # on Windows, for one that is just ending
                    self._process.kill()

    def give_time(self, seconds: float) -> None:
        """Have it answer so much later; called by the pool's watch."""
        with self._lock:
            self._due += seconds

    @contextlib.contextmanager
    def _time_limit(self, seconds: float) -> Iterator[None]:
        """The process is killed if the block takes longer; a pipe has no timeout that works on every system."""
        with self._lock:
            self._due = time.monotonic() + seconds
        try:
            yield
        finally:
            with self._lock:
                self._due = math.inf
        if self._ran_out:
            raise self._gone(seconds)

    def _gone(self, timeout_s: float) -> _WorkerGoneError:
        if self._ran_out:
            return _WorkerGoneError(f"took longer than {timeout_s:g} s to decode")
        try:
            code = self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            return _WorkerGoneError("makes the decoder give no answer")
        if code >= 0:
            return _WorkerGoneError(f"crashes the decoder (exit code {code})")
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = str(-code)
        if name in _OWN_SIGNALS:
            return _WorkerGoneError(f"crashes the decoder (signal {name})")
        return _WorkerGoneError(f"was not read: its decoder was ended from outside (signal {name})", "machine")


# What a process brings upon itself. All others come from outside: from the kernel where memory ends, or from a person.
_OWN_SIGNALS = frozenset({"SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE", "SIGSYS", "SIGTRAP", "SIGALRM"})


def _is_python(executable: str | None) -> bool:
    """Whether `-m` can be given to it; in a frozen program or a web server, sys.executable is that, not a Python."""
    return not getattr(sys, "frozen", False) and Path(executable or "").name.lower().startswith(("python", "pypy"))


# The other end


def _answer(message: dict[str, Any]) -> tuple[dict[str, Any], PixelArray]:
    """Header and bytes for a request; also done in this process where there are no workers."""
    file = os.fsdecode(base64.b64decode(message["file"])) if "file" in message else message["content"]
    nothing = np.empty(0, dtype=np.uint8)
    try:
        if message["job"] == "thumbnail":
            jpeg = media.thumbnail(file, message["size_px"], max_bytes=message["max_bytes"])
            return {}, np.frombuffer(jpeg, dtype=np.uint8)
        decoded = media.read(file, PixelSpec(**message["spec"]), max_bytes=message["max_bytes"])
        return {"shape": decoded.pixels.shape[:2], "facts": asdict(decoded.facts)}, decoded.pixels.reshape(-1)
    except media.TooLargeError as error:
        return {"too_large": str(error)}, nothing
    except media.MachineError as error:
        return {"skip": str(error), "cause": "machine"}, nothing
    except MediaError as error:
        return {"skip": str(error), "cause": "file"}, nothing
    except FileNotFoundError:
        return {"skip": "vanished before it was read", "cause": "machine"}, nothing
    except PermissionError:
        return {"skip": "permission denied", "cause": "machine"}, nothing
    except OSError as error:
        return {"skip": f"cannot be read ({error.strerror or error})"[:200], "cause": "machine"}, nothing


def _work() -> None:
    """The worker's whole life: says that it is ready, answers until its stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    Image.MAX_IMAGE_PIXELS = None  # media has a limit of its own, and this process is ours
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)  # what a codec prints must not get in between
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    with contextlib.suppress(EOFError, BrokenPipeError):  # the program is gone, or has closed the pool
        _send(replies, {"ready": True})
        while True:
            message, body = _receive(requests, MAX_CONTENT_BYTES)
            _limit_memory(message["max_bytes"])
            message["content"] = body.tobytes()
            del body
            _set_alarm(message["alarm_s"])
            answer = _answer(message)
            _set_alarm(0)
            _send(replies, *answer)
    os._exit(0)  # the streams' own clean-up would fail on the broken pipe


def _set_alarm(seconds: int) -> None:
    """The process ends by itself then: should the program be killed while a codec hangs, nobody else would end it."""
    if hasattr(signal, "alarm"):
        signal.alarm(seconds)


def _limit_memory(decode_bytes: int) -> None:
    """A last fence, where the system has it: what decodes to more than it said fails here, not on the whole machine."""
    try:
        import resource
    except ImportError:
        return
    limits = {"RLIMIT_DATA": _WORKER_DATA_BYTES + decode_bytes, "RLIMIT_CORE": 0}
    for name, limit in limits.items():
        with contextlib.suppress(OSError, ValueError):
            kind = getattr(resource, name)
            resource.setrlimit(kind, (limit, resource.getrlimit(kind)[1]))


if __name__ == "__main__":
    _work()
