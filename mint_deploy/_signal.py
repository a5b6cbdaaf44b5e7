"""Signal to noise of a network's outputs, in decibels: what a precision below float32 is judged by.

    snr = 10 log10( sum reference^2 / sum (found - reference)^2 )

Each 6 dB are a bit. 1e-4 relative, what float32 is held to, is 80 dB; 8 bits end near 20 to 40 dB.
Standard library and numpy only: this file travels to the board.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from mint_deploy.parity import Arrays, Parity

__all__ = ["EXACT_DB", "HIGHEST_FLOOR_DB", "OTHER_RUNTIME_DB", "floor_db", "measured_db",
           "signal_to_noise", "snr_db"]  # fmt: skip

#: the most that is told: equal outputs have no noise at all
EXACT_DB = 200.0
#: noise of 3 %: float16 and 8 bits on another machine round elsewhere, and nothing more is asked
HIGHEST_FLOOR_DB = 30.0
#: noise may be twice (in amplitude) what the same file had where it was made
_MARGIN_DB = 6.0
#: and twice that in a runtime that the file was not made for: its 8-bit kernels may round more often
OTHER_RUNTIME_DB = 6.0


def snr_db(found: npt.ArrayLike, reference: npt.ArrayLike) -> float:
    """Return the signal-to-noise ratio of ``found``, at most ``EXACT_DB``.

    ``-inf`` where shapes differ or a value is not finite where the reference is.
    """
    a, b = np.asarray(found), np.asarray(reference)
    if a.shape != b.shape:
        return float("-inf")
    a, b = a.astype(np.float64), b.astype(np.float64)
    noise, signal = float(np.square(a - b).sum()), float(np.square(b).sum())
    if not np.isfinite(noise):
        return float("-inf")
    if noise <= signal * 10 ** (-EXACT_DB / 10):
        return EXACT_DB
    return 10 * float(np.log10(max(signal, np.finfo(np.float64).tiny) / noise))


def signal_to_noise(found: Arrays, reference: Arrays) -> dict[str, float]:
    """Return the ratio of each output of float numbers; a missing output has ``-inf``."""
    return {
        name: snr_db(found[name], value) if name in found else float("-inf")
        for name, value in reference.items()
        if np.asarray(value).dtype.kind == "f"
    }


def floor_db(made_db: float | None = None) -> float:
    """Return the least ratio that a board must reach, in dB.

    Args:
        made_db: of the same file where it was made; None where there is none to compare with (a
            precision that is a flag of the build).
    """
    return HIGHEST_FLOOR_DB if made_db is None else min(made_db - _MARGIN_DB, HIGHEST_FLOOR_DB)


def measured_db(
    parity: Parity, network: str, infer: Callable[[Arrays], Arrays], *, batch: int
) -> float:
    """Run the parity samples through ``infer`` and return the ratio of the worst output, in dB.

    Raises:
        DataError: there are no outputs of ``network`` here, or no samples.
    """
    answers: list[Arrays] = []

    def kept(inputs: Arrays) -> Arrays:
        answers.append({name: np.array(value) for name, value in infer(inputs).items()})
        return answers[-1]

    parity.check(network, kept, batch=batch)  # cuts the samples into full batches
    expected = parity.outputs[network]
    count = min(len(value) for value in parity.inputs.values())
    names = set(answers[0]).intersection(*answers)
    found = {name: np.concatenate([a[name] for a in answers])[:count] for name in names}
    return min(signal_to_noise(found, expected).values(), default=EXACT_DB)
