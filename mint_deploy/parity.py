"""Does a file compute what PyTorch computes? The error measure, and the samples that travel along.

    parity.npz   inputs.NAME, dense.NAME, slim.NAME: real samples and PyTorch's outputs for them

Standard library and numpy only: the board compares its engine with the same numbers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from mint_deploy import files
from mint_deploy.errors import DataError

__all__ = ["Arrays", "Parity", "compare_outputs", "read_parity", "relative_error", "write_parity"]

Arrays = Mapping[str, npt.NDArray[np.generic]]

KIND = "Parity"


def relative_error(found: npt.ArrayLike, expected: npt.ArrayLike) -> float:
    """Return ``max |found - expected| / max(1e-6, max |expected|)``.

    Infinite where shapes differ, or where one is finite and the other is not.
    """
    a, b = np.asarray(found), np.asarray(expected)
    if a.shape != b.shape:
        return float("inf")
    if a.size == 0:
        return 0.0
    a, b = a.astype(np.float64), b.astype(np.float64)
    if not np.isfinite(a).all() or not np.isfinite(b).all():
        return float("inf")
    return float(np.abs(a - b).max() / max(1e-6, np.abs(b).max()))


def compare_outputs(found: Arrays, expected: Arrays) -> dict[str, float]:
    """Return the relative error of each expected output; a missing one counts as infinite."""
    return {
        name: relative_error(found[name], value) if name in found else float("inf")
        for name, value in expected.items()
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """Samples ``inputs {name: [N, ...]}`` and PyTorch's ``outputs {network: {name: [N, ...]}}``.

    ``tolerance`` is the relative error that float32 may have; lower precisions are judged by the
    task.
    """

    inputs: Arrays
    outputs: Mapping[str, Arrays] = field(default_factory=dict)
    tolerance: float = 1e-4

    def check(self, network: str, infer: Callable[[Arrays], Arrays], *, batch: int) -> float:
        """Run the samples through ``infer`` in batches and return the largest relative error.

        The last batch is filled up with the first samples, so every call sees exactly ``batch``.

        Raises:
            DataError: there are no outputs of ``network`` here, or no samples.
        """
        if network not in self.outputs:
            known = ", ".join(sorted(self.outputs)) or "none"
            raise DataError(
                f"no outputs of network '{network}' in the parity file; it has: {known}"
            )
        count = min((len(value) for value in self.inputs.values()), default=0)
        if count == 0:
            raise DataError("the parity file holds no samples; export the run anew")
        worst = 0.0
        for start in range(0, count, batch):
            index = np.arange(start, start + batch) % count
            real = min(batch, count - start)
            found = infer({name: value[index] for name, value in self.inputs.items()})
            expected = {
                name: value[start : start + real] for name, value in self.outputs[network].items()
            }
            errors = compare_outputs({name: v[:real] for name, v in found.items()}, expected)
            worst = max(worst, *errors.values())
        return worst


def write_parity(path: str | os.PathLike[str], parity: Parity) -> None:
    """Write a parity file; equal samples, equal bytes."""
    arrays = {f"inputs.{name}": np.asarray(value) for name, value in parity.inputs.items()}
    for network, outputs in parity.outputs.items():
        arrays |= {f"{network}.{name}": np.asarray(value) for name, value in outputs.items()}
    header = {"kind": KIND, "networks": list(parity.outputs), "tolerance": parity.tolerance}
    files.write_arrays(path, header, arrays)


def read_parity(path: str | os.PathLike[str]) -> Parity:
    """Read what :func:`write_parity` wrote.

    Raises:
        DataError: missing, damaged, or another kind of file.
    """
    header, arrays = files.read_arrays(path)
    if header.get("kind") != KIND:
        raise DataError(f"{path} is a {header.get('kind')!r}, expected a {KIND!r}")
    return Parity(
        inputs=_part(arrays, "inputs"),
        outputs={str(network): _part(arrays, str(network)) for network in header["networks"]},
        tolerance=float(header["tolerance"]),
    )


def _part(arrays: Arrays, name: str) -> dict[str, npt.NDArray[np.generic]]:
    head = f"{name}."
    return {key.removeprefix(head): value for key, value in arrays.items() if key.startswith(head)}
