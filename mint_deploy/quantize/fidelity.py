"""How far a network's outputs are from the float32 network's: signal to noise, in decibels.

    snr = 10 log10( sum reference^2 / sum (found - reference)^2 )

Each 6 dB are a bit. 1e-4 relative, what float32 is held to, is 80 dB; 8 bits end near 20 to 40 dB.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mint_deploy.errors import ModelError
from mint_deploy.quantize.network import Arrays, Network

__all__ = ["EXACT_DB", "batches_of", "signal_to_noise", "snr_db"]

#: the most that is told: equal outputs have no noise at all
EXACT_DB = 200.0
#: batch sizes that a file with an open batch is tried at
BATCHES = (1, 2, 8)


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


def batches_of(
    network: Network, reference: Arrays, samples: Arrays
) -> tuple[dict[str, float], tuple[int, ...]]:
    """Return output -> the worst ratio over several batch sizes, and those sizes.

    Args:
        network: the one in question.
        reference: what the float32 network gives for ``samples``.
        samples: input name -> ``[N, ...]``, real ones.

    Raises:
        ModelError: an output is not finite.
    """
    sizes = BATCHES if network.batch is None else (network.batch,)
    worst: dict[str, float] = {}
    for size in sizes:
        found = signal_to_noise(network.infer(samples, batch=size), reference)
        for name, ratio in found.items():
            if not np.isfinite(ratio):
                raise ModelError(
                    f"output '{name}' of the converted network is not finite at batch {size}, or has another shape"
                )
            worst[name] = min(ratio, worst.get(name, EXACT_DB))
    return worst, sizes
