"""How far a network's outputs are from the float32 network's, over several batch sizes, by signal to noise."""

from __future__ import annotations

import numpy as np

from mint_deploy._signal import EXACT_DB, signal_to_noise
from mint_deploy.errors import ModelError
from mint_deploy.quantize.network import Arrays, Network

__all__ = ["batches_of"]

#: batch sizes that a file with an open batch is tried at
BATCHES = (1, 2, 8)


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
