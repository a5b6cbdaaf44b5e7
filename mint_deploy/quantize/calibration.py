"""What range each tensor has on real samples, kept in a file so that it is measured once.

    minmax      lowest and highest value seen
    percentile  the range that holds 99.99 % of the values
    entropy     the range whose 8-bit histogram tells most about the real one (Kullback-Leibler divergence)

ONNX Runtime's calibrators do it. ``calibration.json`` holds the ranges under a key that is a hash of the ONNX
file, the samples and the method, so another file or other samples never find them.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mint_deploy import files
from mint_deploy.errors import DataError, ModelError, UnknownName
from mint_deploy.quantize.network import OPEN_BATCH, Arrays, pieces
from mint_deploy.quantize.quietly import quiet
from mint_deploy.quantize.samples import digest
from mint_deploy.values.precision import Calibration

__all__ = ["DEFAULT", "METHODS", "Cache", "Progress", "calibrate", "calibration_key"]

METHODS = ("minmax", "percentile", "entropy")
#: the best by signal to noise, or within 1 dB of it, on every network of benchmarks/engines.py
DEFAULT = "minmax"
#: per cent of a tensor's values that the percentile method covers
PERCENTILE = 99.99

#: called with what is done, the whole, and a note
Progress = Callable[[float, float, str], None]

_KIND = "Calibrations"


def calibration_key(
    source_sha256: str, samples: Arrays, method: str, symmetric: bool, operators: Sequence[str]
) -> str:
    """Return the hex SHA-256 of what decides the ranges."""
    given = [source_sha256, digest(samples), method, symmetric, sorted(operators), PERCENTILE]
    return hashlib.sha256(json.dumps(given).encode()).hexdigest()


class Cache:
    """A file of calibrations by key; None keeps nothing."""

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        self.path = None if path is None else Path(path)

    def get(self, key: str) -> Calibration | None:
        """Return the calibration of ``key``, or None where there is none.

        Raises:
            DataError: the file is damaged or of another kind.
        """
        return self._all().get(key)

    def put(self, calibration: Calibration) -> None:
        """Add a calibration; the others stay."""
        if self.path is not None:
            body = {"calibrations": {**self._all(), calibration.key: calibration}}
            files.write_json(self.path, body, kind=_KIND)

    def _all(self) -> dict[str, Calibration]:
        if self.path is None or not self.path.exists():
            return {}
        found = files.read_json(self.path, kind=_KIND).get("calibrations")
        if not isinstance(found, dict):
            raise DataError(
                f"{self.path} has no calibrations; remove it, and they are measured anew"
            )
        return {
            key: files.decode(Calibration, value, where=f"{self.path}: {key}")
            for key, value in found.items()
        }


class _Reader:
    """One batch for ONNX Runtime's calibrators, which ask until they get None."""

    def __init__(self, batch: dict[str, Any]) -> None:
        self._left = [batch]

    def get_next(self) -> dict[str, Any] | None:
        return self._left.pop() if self._left else None


def calibrate(
    model: bytes,
    samples: Arrays,
    *,
    key: str,
    method: str,
    symmetric: bool,
    operators: Sequence[str],
    batch: int | None,
    threads: int = 1,
    progress: Progress | None = None,
) -> Calibration:
    """Run the float model on ``samples`` and return the range of every tensor that ``operators`` read or write.

    Args:
        model: a prepared float32 model.
        samples: input name -> ``[N, ...]``.
        key: what the result is kept under.
        method: one of ``METHODS``.
        symmetric: whether the range has to be the same on both sides of zero.
        operators: of the nodes whose tensors are needed.
        batch: samples that the model takes at once; None: any.
        threads: compute threads.
        progress: called after each batch.

    Raises:
        UnknownName: no such method.
        ModelError: ONNX Runtime cannot run the model on the samples, or a tensor of it is not finite.
    """
    if method not in METHODS:
        raise UnknownName("calibration method", method, METHODS)
    from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator

    kind = {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}[method]
    options: dict[str, Any] = {"symmetric": symmetric}
    if method == "percentile":
        options["percentile"] = PERCENTILE
    count = min(len(value) for value in samples.values())
    with tempfile.TemporaryDirectory(prefix="mint-deploy-") as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(model)
        watched = str(Path(folder) / "watched.onnx")
        try:
            with quiet():
                calibrator = create_calibrator(
                    path, list(operators), watched, CalibrationMethod[kind], extra_options=options
                )
                calibrator.infer_session = _session(watched, threads)
            done = 0
            for piece, real in pieces(samples, batch or OPEN_BATCH, batch is None):
                with quiet():  # one batch at a time: the calibrators keep what they are given
                    calibrator.collect_data(_Reader(piece))
                done += real
                if progress:
                    progress(done, count, f"{done} of {count} samples, {method}")
            with quiet():
                found = calibrator.compute_data()
        except Exception as error:
            raise ModelError(f"the network cannot be calibrated: {error}") from error
    ranges = {name: _range(name, data, symmetric) for name, data in sorted(found.items())}
    return Calibration(key=key, method=method, samples=count, symmetric=symmetric, ranges=ranges)


def _session(path: str, threads: int) -> Any:
    """A session that keeps every tensor, with as many threads as are wanted and not one a core."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _range(name: str, data: Any, symmetric: bool) -> tuple[float, float]:
    low, high = (float(np.asarray(v).reshape(-1)[0]) for v in data.range_value)
    if not np.isfinite([low, high]).all():
        raise ModelError(
            f"tensor '{name}' of the float network is not finite on the samples; look for what overflows there"
        )
    if symmetric:  # the histograms' methods cut the range at the values that were seen
        reach = max(abs(low), abs(high))
        return -reach, reach
    return low, high
