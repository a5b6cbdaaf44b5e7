"""Samples to calibrate and to judge by: ``[N, ...]`` under the names of the model's inputs, checked.

{"input": [N, 3, 32, 32]}      arrays, one for each input
[N, 3, 32, 32]                 the array alone, where there is one input
samples.npz                    the same under the inputs' names, or under ``x`` where there is one input
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mint_deploy.artifacts import TensorSpec
from mint_deploy.errors import DataError
from mint_deploy.quantize.network import Arrays
from mint_deploy.runtimes import DYNAMIC

__all__ = ["ENOUGH", "LEAST", "Samples", "checked", "digest", "read_samples"]

#: fewer samples are refused; fewer than ENOUGH are doubted
LEAST, ENOUGH = 8, 100

Samples = Arrays | np.ndarray[Any, np.dtype[Any]] | str | os.PathLike[str]


def checked(
    samples: Samples, inputs: Sequence[TensorSpec], *, what: str = "calibration samples"
) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
    """Return ``samples`` as input name -> ``[N, ...]``.

    Args:
        samples: arrays by name, one array, or an ``.npz`` file of them.
        inputs: what the model takes; the first dimension is the batch.
        what: what they are called in messages.

    Raises:
        DataError: a missing or unknown name, another shape or element type than the model takes, values that are
            not finite, unequal numbers of samples, or fewer than ``LEAST``; what was expected is said.
    """
    if isinstance(samples, (str, os.PathLike)):
        what = f"{what} of {os.fspath(samples)}"
        samples = read_samples(samples, inputs)
    expected = ", ".join(_shown(spec) for spec in inputs)
    if isinstance(samples, np.ndarray):
        if len(inputs) != 1:
            raise DataError(
                f"the {what} are one array, and the model has {len(inputs)} inputs; expected {expected}"
            )
        samples = {inputs[0].name: samples}
    if not isinstance(samples, Mapping):
        raise DataError(f"the {what} are a {type(samples).__name__}; expected arrays: {expected}")
    missing = [s.name for s in inputs if s.name not in samples]
    unknown = sorted(set(samples) - {s.name for s in inputs})
    if missing or unknown:
        wrong = f"lack '{missing[0]}'" if missing else f"have an unknown '{unknown[0]}'"
        raise DataError(f"the {what} {wrong}; expected {expected}")
    out = {spec.name: _one(np.asarray(samples[spec.name]), spec, what) for spec in inputs}
    counts = {name: len(value) for name, value in out.items()}
    if len(set(counts.values())) > 1:
        raise DataError(f"the {what} have unequal numbers of rows {counts}; expected one N for all")
    count = min(counts.values(), default=0)
    if count < LEAST:
        raise DataError(
            f"{count} {what} are too few; expected at least {LEAST}, better {ENOUGH} and more, of the kind "
            "that the network will see"
        )
    return out


def _one(
    array: np.ndarray[Any, np.dtype[Any]], spec: TensorSpec, what: str
) -> np.ndarray[Any, np.dtype[Any]]:
    if not spec.shape:
        raise DataError(
            f"input '{spec.name}' is a single number without a batch; such a network cannot be calibrated here"
        )
    fits = array.ndim == len(spec.shape) and all(
        want in (DYNAMIC, have) for want, have in zip(spec.shape[1:], array.shape[1:], strict=True)
    )
    if not fits:
        raise DataError(
            f"the {what} for input '{spec.name}' have shape {list(array.shape)}; expected {_shown(spec)}"
        )
    if array.dtype.name != spec.dtype:
        raise DataError(
            f"the {what} for input '{spec.name}' are {array.dtype.name}; expected {_shown(spec)}, "
            "normalised as the network was trained"
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        row = int(np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(1))[0])
        raise DataError(
            f"row {row} of the {what} for input '{spec.name}' is not finite; look there"
        )
    return np.ascontiguousarray(array)


def _shown(spec: TensorSpec) -> str:
    dims = ["N", *("any" if d == DYNAMIC else str(d) for d in spec.shape[1:])]
    return f"'{spec.name}' {spec.dtype} [{', '.join(dims)}]"


def read_samples(
    path: str | os.PathLike[str], inputs: Sequence[TensorSpec]
) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
    """Read the arrays of an ``.npz`` that the inputs name (never unpickles); ``x`` stands for a single input.

    Raises:
        DataError: no such file, not an npz, or none of the names is there.
    """
    try:
        with Path(path).open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            names = [spec.name for spec in inputs]
            if len(names) == 1 and names[0] not in stored and "x" in stored:
                return {names[0]: stored["x"]}
            found = {name: stored[name] for name in names if name in stored}
            held = ", ".join(sorted(stored)) or "nothing"
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # a damaged zip raises whatever it was read as
        raise DataError(
            f"{path} is no .npz of arrays ({error}); write it with numpy.savez"
        ) from error
    if not found:
        expected = ", ".join(_shown(spec) for spec in inputs)
        raise DataError(f"{path} holds {held}; expected arrays named as the inputs: {expected}")
    return found


def digest(samples: Arrays) -> str:
    """Return the hex SHA-256 of names, shapes, types and bytes."""
    total = hashlib.sha256()
    for name in sorted(samples):
        array = np.ascontiguousarray(samples[name])
        total.update(f"{name}{array.shape}{array.dtype.name}".encode())
        total.update(array.data)
    return total.hexdigest()
