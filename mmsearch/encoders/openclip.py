"""Any open_clip model as a bundle: its name, its place in the user's cache, and the one conversion on first use.

    ARCHITECTURE/TAG      ViT-B-32-256/datacomp_s34b_b86k, as `open_clip.list_pretrained()` has them
    hf-hub:ORG/NAME       a repository on the Hugging Face hub
    local-dir:FOLDER      a folder with open_clip_config.json and weights
    hf-dir:FOLDER         a folder that transformers saved: CLIP, SigLIP or AltCLIP
    ARCHITECTURE@FILE     a checkpoint, .safetensors or .pt; a file that holds more than weights is refused, not run

The conversion (`mmsearch.encoders.export`, the only module outside `train/` that imports open_clip) runs in a process
of its own: its memory is given back whole when it ends, and what torch and open_clip have to say stays off the user's
terminal.
Nothing heavy is imported here, since every search by such a model comes through here.
"""

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from mmsearch.encoders.bundle import Bundle, Precision
from mmsearch.encoders.manifest import FORMAT
from mmsearch.errors import ModelError

Progress: TypeAlias = Callable[[str], None]
MakeBundle: TypeAlias = Callable[[Path], Bundle]

HF_DIR = "hf-dir:"
HUB_SECONDS = 3.0  # how long the hub may take to answer at all, before a model is looked for on this machine only
OUT_OF_REACH = (
    "not all of it is on this machine, and the Hugging Face hub cannot be reached. Connect, or use a model that is "
    "here (local-dir:FOLDER), or `--model lite`, which needs no download."
)


@dataclass(frozen=True)
class Source:
    """A model name, understood."""

    name: str  # as the index remembers it: with absolute paths
    model: str  # open_clip's `model_name`
    weights: str | None  # open_clip's `pretrained`: a tag or a file
    identity: str  # changes when the weights do; of a name on the hub, the name
    may_ask_hub: bool


def bundle_for(
    name: str,
    *,
    precision: Precision = "auto",
    licence: str | None = None,
    progress: Progress = lambda line: None,
) -> Bundle:
    """The bundle of an open_clip model from the user's cache; made now if this is its first use. Raises ModelError.

    precision: "auto" is int8 where that agreed with fp32 when it was made, else fp32. The one in 8 bits is made of the
        other, which is kept if it was there before, and if the two disagree.
    progress: called with a line for a person, now and then. licence: for the model card.
    """
    source = parse_name(name)
    full = bundle_folder(source)

    def make_full(folder: Path) -> Bundle:
        return make_bundle(name, folder, licence=licence, progress=progress)

    if precision == "fp32":
        return _kept(full, make_full, name, progress)
    small = bundle_folder(source, int8=True)

    def make_small(folder: Path) -> Bundle:
        return _make_int8(make_full, full, folder, precision == "int8", progress)

    bundle = _kept(small, make_small, name, progress)
    if precision == "int8" or bundle.precision == "fp32":
        return bundle
    from mmsearch.encoders.quantise import agrees

    return bundle if agrees(bundle) else _kept(full, make_full, name, progress)


def _make_int8(make_full: MakeBundle, full: Path, small: Path, insist: bool, progress: Progress) -> Bundle:
    """The bundle in 8 bits, in its place, and that in full precision in its own if answers may depend on it.

    The one in full precision alone if the other cannot be made, and nobody insists on it.
    """
    from mmsearch.encoders.quantise import agrees, make_int8, told

    with tempfile.TemporaryDirectory(prefix=f".{small.name}-", dir=small.parent) as scratch:
        made = Path(scratch) / "full"
        source = Bundle.open(full) if full.exists() else make_full(made)
        progress("writing it in 8 bits too, and comparing the two")
        try:
            bundle = make_int8(source, Path(scratch) / "int8")
        except ModelError as error:
            if insist:
                raise
            progress(f"{error} It stays in full precision.")
            _move(made, full)
            return Bundle.open(full)
        progress(told(bundle))
        if not agrees(bundle):
            _move(made, full)
        bundle.folder.rename(small)  # the last: whoever sees it finds the other too
    return Bundle.open(small)


def _move(made: Path, folder: Path) -> None:
    with suppress(OSError):  # it was there before, or another process has made it meanwhile
        made.rename(folder)


def _kept(folder: Path, make: MakeBundle, name: str, progress: Progress) -> Bundle:
    """The bundle in a folder of the cache; made first if it is not there, by one process at a time."""
    if not folder.exists():
        from filelock import FileLock, Timeout  # here: the bundle is there already most times

        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(f"{folder}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                progress(f"waiting for another process that is converting {name}")
                lock.acquire()
        except OSError as error:
            raise ModelError(
                f"Cannot write to {folder.parent}: {error.strerror}. Set MMSEARCH_CACHE to another folder."
            ) from error
        with lock:
            lock.release()  # `with` counts a second hold
            for abandoned in folder.parent.glob(f".{folder.name}-*"):  # by a conversion that was killed
                shutil.rmtree(abandoned, ignore_errors=True)
            if not folder.exists():
                return make(folder)
    return Bundle.open(folder)


def make_bundle(
    name: str,
    folder: str | os.PathLike[str],
    *,
    licence: str | None = None,
    progress: Progress = lambda line: None,
) -> Bundle:
    """Converts an open_clip model into a bundle in `folder`, in another process. Raises ModelError."""
    source = parse_name(name)
    missing = [module for module in ("torch", "open_clip", "onnxscript") if importlib.util.find_spec(module) is None]
    if missing:
        raise ModelError(
            f"{name} has to be converted once, and that needs {' and '.join(missing)}: "
            "pip install torch open_clip_torch onnxscript. `--model lite` needs none of them."
        )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    if source.may_ask_hub and not hub_answers():
        environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    progress(f"converting {source.name}, once; this takes a minute")
    order = json.dumps([source.name, source.model, source.weights, os.fspath(folder), licence])
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as complaints:
        with subprocess.Popen(
            [sys.executable, "-m", "mmsearch.encoders.export", order],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=complaints,
            env=environment,
            encoding="utf-8",
        ) as child:
            failure = _follow(child, progress)
        if child.returncode == 0:
            return Bundle.open(folder)
        complaints.seek(0)
        reason = (
            failure
            or _last_line(complaints.read())
            or "the conversion was ended by the system; perhaps for want of memory"
        )
    raise ModelError(f"{source.name} cannot be converted: {reason}")


def parse_name(name: str) -> Source:
    """Raises ModelError for a name of no known form, or for files that are not there."""
    if name.startswith("local-dir:"):
        folder = _existing(name, Path(name.removeprefix("local-dir:")))
        if not (folder / "open_clip_config.json").is_file():
            raise ModelError(f"{name} is not an open_clip model: it has no open_clip_config.json.")
        files = sorted(path for path in folder.iterdir() if path.is_file())
        return Source(f"local-dir:{folder}", f"local-dir:{folder}", None, _state(*files), may_ask_hub=False)
    if name.startswith(HF_DIR):
        folder = _existing(name, Path(name.removeprefix(HF_DIR)))
        if not (folder / "config.json").is_file():
            raise ModelError(f"{name} is no model of Hugging Face's: it has no config.json.")
        files = sorted(path for path in folder.iterdir() if path.is_file())
        return Source(f"{HF_DIR}{folder}", f"{HF_DIR}{folder}", None, _state(*files), may_ask_hub=False)
    if name.startswith("hf-hub:"):
        return Source(name, name, None, name, may_ask_hub=True)
    architecture, at, file = name.partition("@")
    if at:
        path = _existing(name, Path(file))
        return Source(f"{architecture}@{path}", architecture, os.fspath(path), _state(path), may_ask_hub=True)
    architecture, slash, tag = name.rpartition("/")
    if not slash or not architecture or not tag:
        raise ModelError(
            f"There is no model called {name!r}. The names are those that `mmsearch models` lists, and "
            "ARCHITECTURE/TAG, hf-hub:ORG/NAME, local-dir:FOLDER, ARCHITECTURE@CHECKPOINT for open_clip's, and "
            "hf-dir:FOLDER for what transformers saved."
        )
    return Source(name, architecture, tag, name, may_ask_hub=True)


def bundle_folder(source: Source, int8: bool = False) -> Path:
    """Where the bundle of a model is, or will be: in $MMSEARCH_CACHE, else in the user's cache folder."""
    readable = re.sub(r"[^A-Za-z0-9.-]+", "-", source.name)[-60:].strip("-.")
    digest = hashlib.sha256(f"{FORMAT} {source.identity}".encode("utf-8", "surrogateescape")).hexdigest()
    return bundles_folder() / f"{readable}{'-int8' if int8 else ''}-{digest[:12]}"


def bundles_folder() -> Path:
    """Where all of them are."""
    return cache_folder() / "bundles"


def cache_folder() -> Path:
    """$MMSEARCH_CACHE, else the user's cache folder."""
    from platformdirs import user_cache_path

    chosen = os.environ.get("MMSEARCH_CACHE")
    return Path(chosen).expanduser() if chosen else user_cache_path("mmsearch", appauthor=False)


def hub_answers(seconds: float = HUB_SECONDS) -> bool:
    """Whether the Hugging Face hub may be asked ($HF_HUB_OFFLINE) and answers anything within so many seconds."""
    if any(os.environ.get(name, "").upper() in {"1", "ON", "YES", "TRUE"} for name in _OFFLINE):
        return False
    import urllib.error  # here: a search has no use for them
    import urllib.request

    request = urllib.request.Request(os.environ.get("HF_ENDPOINT") or "https://huggingface.co", method="HEAD")
    answered = threading.Event()

    def ask() -> None:
        try:
            urllib.request.urlopen(request, timeout=seconds).close()
        except urllib.error.HTTPError:
            pass  # an answer
        except (OSError, ValueError):
            return
        answered.set()

    # In a thread, since the timeout of a request does not bound the look-up of a name, which can take half a minute.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(seconds)
    return answered.is_set()


_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


def _follow(child: "subprocess.Popen[str]", progress: Progress) -> str | None:
    """Hands the child's lines on until it ends; -> why it failed, if it says so."""
    failure = None
    try:
        for line in child.stdout or ():
            kind, text = json.loads(line)
            if kind == "progress":
                progress(text)
            else:
                failure = text
    except BaseException:  # Ctrl-C above all: leave no conversion running behind the user's back
        child.kill()
        raise
    return failure


def _existing(name: str, path: Path) -> Path:
    path = path.expanduser().absolute()
    if not path.exists():
        raise ModelError(f"{name}: {path} does not exist.")
    return path


def _state(*files: Path) -> str:
    """Path, size and time of change of every file: what tells changed weights without reading gigabytes."""
    return json.dumps([(os.fspath(file), (facts := file.stat()).st_size, facts.st_mtime_ns) for file in files])


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
