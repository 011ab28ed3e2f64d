"""How the graphs of a bundle are run by ONNX Runtime: one session for each in every process, made when it is needed."""

import ctypes
import os
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from mmsearch.encoders.base import FloatArray
from mmsearch.encoders.manifest import damaged
from mmsearch.errors import memory_watched

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, SessionOptions

Graph: TypeAlias = Literal["image", "text", "fusion", "decoder"]
# How a tower is run: pictures one by one, or some on every core at the same time; other graphs rarely, or so often that
# unpacking their weights pays.
Way: TypeAlias = Literal["alone", "abreast", "rarely", "often"]

# Weights can be unpacked from 8 bits and laid out for the processor when a tower is loaded. Of the text tower of
# ViT-B-32-256 that takes 0.15 s and then saves 13 ms a run; of lite's 0.07 s and 29 MB, and saves 4.8 of 8 ms: it pays
# for whoever has much to encode, not for one query on the command line.
RUNS_BEFORE_PACKING = 8


class TowerSession:
    """An ONNX Runtime session that is made at its first run, once in every process that runs it."""

    def __init__(self, folder: Path, tower: Graph) -> None:
        self._folder = folder
        self._tower = tower
        # By process id: the threads of a session do not survive a fork, and neither does a lock that was held then.
        self._sessions: dict[int, tuple[Way, InferenceSession]] = {}
        self._locks: dict[int, threading.Lock] = {}
        self._runs = 0
        self._abreast = False

    def run(self, inputs: Mapping[str, npt.NDArray[Any]], output: str = "features") -> FloatArray:
        """-> one output; inputs that the graph does not have are left out."""
        return self.run_for(inputs, (output,))[0]

    def run_for(self, inputs: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str]) -> list[FloatArray]:
        """-> several outputs of one run."""
        self._runs += 1
        session = self._session()
        wanted = {entry.name for entry in session.get_inputs()}
        with memory_watched():
            found = session.run(list(outputs), {name: array for name, array in inputs.items() if name in wanted})
        return [np.asarray(each, dtype=np.float32) for each in found]

    def width(self) -> int:
        """How many features the tower gives."""
        return int(self._session().get_outputs()[0].shape[1])

    def run_abreast(self) -> None:
        """From now on several threads run it at the same time, each on a core of its own."""
        self._abreast = True

    def _way(self) -> Way:
        if self._tower == "image":
            return "abreast" if self._abreast else "alone"
        return "often" if self._runs > RUNS_BEFORE_PACKING else "rarely"

    def _session(self) -> "InferenceSession":
        process, way = os.getpid(), self._way()
        opened = self._sessions.get(process)
        if opened is None or opened[0] != way:
            with self._locks.setdefault(process, threading.Lock()):
                opened = self._sessions.get(process)
                if opened is None or opened[0] != way:
                    opened = self._sessions[process] = way, _open_session(self._folder, self._tower, way)
        return opened[1]


# To destroy a session, ONNX Runtime (1.32) waits for its threads: for ever in a forked process, since they stayed with
# the parent (github.com/microsoft/onnxruntime/pull/31961). So a forked process never destroys what it inherits.
_OPEN_SESSIONS: "weakref.WeakSet[InferenceSession]" = weakref.WeakSet()


def _spare_inherited_sessions() -> None:
    if not _OPEN_SESSIONS:
        return
    for session in _OPEN_SESSIONS:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))
    # The library's own state goes the same way after Python has ended: leave without it, with the same status.
    libc = ctypes.CDLL(None)
    if hasattr(libc, "on_exit"):  # Linux; not musl
        libc.on_exit(libc._exit, None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_spare_inherited_sessions)


def optimise(model: Path, optimised: Path) -> None:
    """Writes `model` again, its graph optimised as far as that holds on any processor: fused, not laid out for one.

    Weights go to a file beside it, `<name>.data`, which is mapped when the bundle is loaded. Replaces `optimised`.
    """
    import onnxruntime as ort

    options = _quiet_options()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = os.fspath(optimised)
    options.add_session_config_entry(
        "session.optimized_model_external_initializers_file_name", f"{optimised.name}.data"
    )
    options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    options.add_session_config_entry("session.disable_prepacking", "1")  # nothing will run; saves a copy of all weights
    ort.InferenceSession(os.fspath(model), options, providers=["CPUExecutionProvider"])


def _open_session(folder: Path, tower: Graph, way: Way) -> "InferenceSession":
    import onnxruntime as ort
    from onnxruntime.capi import onnxruntime_pybind11_state as failures

    options = _quiet_options()
    # What is left to optimise is the layout for this very processor: it doubles the speed of convolutions
    # (MobileCLIP2-S0: 8.5 -> 16.3 pictures/s a core), does nothing for transformers, and takes time that searches lack.
    levels = ort.GraphOptimizationLevel
    if tower == "image":
        options.graph_optimization_level = levels.ORT_ENABLE_ALL
        if way == "abreast":
            options.intra_op_num_threads = 1
    elif way == "often":
        options.graph_optimization_level = levels.ORT_ENABLE_BASIC  # what follows from weights alone is computed once
    else:
        options.graph_optimization_level = levels.ORT_DISABLE_ALL
        options.add_session_config_entry("session.disable_prepacking", "1")
    # Its threads would wait for work in circles, on the cores that decode the next pictures or that search. A text that
    # comes alone takes as long without, and half of the processor's time.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    path = folder / f"{tower}.onnx"
    try:
        with memory_watched():
            session = ort.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    except (
        failures.Fail,
        failures.InvalidArgument,
        failures.InvalidGraph,
        failures.InvalidProtobuf,
        failures.NoSuchFile,
        failures.NotImplemented,
        failures.RuntimeException,
    ) as error:
        raise damaged(folder, f"{path.name} cannot be loaded") from error
    _OPEN_SESSIONS.add(session)
    return session


def _quiet_options() -> "SessionOptions":
    import onnxruntime as ort

    ort.disable_telemetry_events()  # an app may have imported it before mmsearch could switch that off
    options = ort.SessionOptions()
    options.log_severity_level = 4  # not even errors: they are raised as well
    return options
