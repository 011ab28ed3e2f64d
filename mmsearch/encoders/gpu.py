"""The image tower of a bundle on a CUDA GPU, run by torch, which comes with CUDA where mmsearch does.

ONNX Runtime's build for GPUs is another package that takes the plain one's place, and nothing can ask pip for it just
where there is a GPU. torch is here anyway, and runs the tower's ONNX graph (`torch_graph`) in 16 bits; its sums, norms
and softmax add up in 32. Before a tower is used it has to agree with ONNX Runtime on drawn pictures: in 16 bits, or
where the model's numbers do not fit into those, in 32.
"""

import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmsearch.encoders.base import FloatArray, PixelArray
from mmsearch.encoders.operators import UnknownOperatorError
from mmsearch.encoders.torch_graph import TorchGraph
from mmsearch.errors import ModelError, in_a_line

LEAST_COSINE = 0.999  # of a row with ONNX Runtime's
PICTURES_A_CALL = 128
PICTURES_TO_TRY = 32


class GpuTower:
    """An image tower on a CUDA GPU. Safe to use from several threads, not in a process forked later."""

    def __init__(self, path: Path, sample: PixelArray, expected: FloatArray) -> None:
        """Load a tower and compare it. Raises ModelError where torch cannot run it, or not as ONNX Runtime does.

        sample: (n, h, w, 3). expected: (n, features), what ONNX Runtime made of it.
        """
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._at_once = PICTURES_A_CALL
        self._by_planes = False
        cosine = -1.0
        for dtype in (torch.float16, torch.float32):
            try:
                self._copies = torch.cuda.Stream()  # type: ignore[no-untyped-call]
                self._graph = TorchGraph(path, torch.device("cuda"), dtype)
                cosine = _least_cosine(self._run([torch.from_numpy(sample)]), expected)
                if cosine >= LEAST_COSINE:
                    self._by_planes = self._is_faster_by_planes(sample.shape[1:])
                    return
            except UnknownOperatorError as error:
                raise ModelError(f"the model has an operator that is not known on a GPU yet, {error}") from error
            except Exception as error:  # torch's, of the GPU and its memory, and whatever an unusual graph leads to
                raise ModelError(f"torch cannot run it on the GPU ({in_a_line(error)})") from error
        raise ModelError(f"the GPU's vectors are not the processor's (cosine {cosine:.4f})")

    @property
    def usable(self) -> bool:
        """Whether this is the process that loaded it: CUDA does not survive a fork."""
        return os.getpid() == self._process

    def features(self, pixels: PixelArray) -> FloatArray:
        """(n, h, w, 3) -> (n, features) float32. Where the GPU's memory does not do, with fewer pictures a call.

        Raises ModelError where the GPU fails.
        """
        ready = torch.from_numpy(np.ascontiguousarray(pixels))
        with self._lock:
            while True:
                try:
                    return self._run(torch.split(ready, self._at_once))
                except torch.cuda.OutOfMemoryError as error:
                    if self._at_once == 1:
                        raise ModelError(
                            f"The GPU's memory does not do: {in_a_line(error)}. Take --device cpu."
                        ) from error
                except RuntimeError as error:
                    raise ModelError(f"The GPU failed: {in_a_line(error)}. Take --device cpu.") from error
                self._at_once //= 2
                torch.cuda.empty_cache()

    def _run(self, parts: Sequence[Tensor]) -> FloatArray:
        """Each part is on its way to the GPU while the one before is read."""
        here = torch.cuda.current_stream()
        found = []
        for part in parts:
            with torch.cuda.stream(self._copies):
                pixels = part.to("cuda")
            here.wait_stream(self._copies)
            pixels.record_stream(here)
            found.append(self._graph.run(self._laid_out(pixels))["features"])
        features: FloatArray = torch.cat(found).float().cpu().numpy()
        return features

    def _laid_out(self, pixels: Tensor) -> Tensor:
        """The same pictures, where convolutions are faster so, with their colours one after the other in memory."""
        return pixels.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1) if self._by_planes else pixels

    def _is_faster_by_planes(self, shape: tuple[int, ...]) -> bool:
        """Tried, since it depends on the model: dense convolutions want colours together, those by channel do not."""
        pixels = torch.zeros(PICTURES_TO_TRY, *shape, dtype=torch.uint8, device="cuda")
        seconds = {}
        for self._by_planes in (False, True):
            for _ in range(3):  # the last counts
                torch.cuda.synchronize()
                started = time.perf_counter()
                self._graph.run(self._laid_out(pixels))
                torch.cuda.synchronize()
                seconds[self._by_planes] = time.perf_counter() - started
        return seconds[True] < seconds[False]


def _least_cosine(rows: FloatArray, expected: FloatArray) -> float:
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(expected, axis=1)
    return float(np.nan_to_num(((rows * expected).sum(axis=1) / lengths), nan=-1.0).min())
