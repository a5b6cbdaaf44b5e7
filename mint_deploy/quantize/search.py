"""Which layers stay float: ranked by the noise that each alone brings, as few of them as hold the promise.

    damage(layer) = signal to noise of the worst output where this layer alone is converted
    the first k of the ranking stay float; k = 1, 2, 4, ... until the drop is small enough, then bisected

The ranking costs one small model a layer, the search a handful of evaluations of the task.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mint_deploy._signal import EXACT_DB, signal_to_noise
from mint_deploy.quantize.calibration import Progress
from mint_deploy.quantize.network import Arrays, Network

__all__ = ["MOST_FLOAT", "Found", "damage", "most_floats", "search"]

#: with more of the multiply-adds in float32, lower precision is not worth having
MOST_FLOAT = 0.5


def damage(
    layers: Sequence[str],
    only: Callable[[str], bytes],
    reference: Arrays,
    samples: Arrays,
    *,
    threads: int = 1,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Return layer -> signal to noise in dB of the worst output where it alone is converted.

    Args:
        layers: names, in the order of execution.
        only: makes the model in which one layer is converted.
        reference: outputs of the float32 network for ``samples``.
        samples: input name -> ``[N, ...]``; a few are enough to rank.
        threads: compute threads.
        progress: called after each layer.
    """
    found = {}
    for i, layer in enumerate(layers):
        ratios = signal_to_noise(Network(only(layer), threads=threads).infer(samples), reference)
        found[layer] = max(-EXACT_DB, min(ratios.values(), default=EXACT_DB))
        if progress:
            progress(
                i + 1, len(layers), f"layer {i + 1} of {len(layers)}: what {layer} costs alone"
            )
    return found


def most_floats(ranking: Sequence[str], macs: Mapping[str, int]) -> int:
    """Return how many of the ranking may stay float: half of the multiply-adds (or of the layers)."""
    weights = {name: macs.get(name, 0) for name in ranking}
    total = sum(weights.values())
    if not total:
        return max(1, int(MOST_FLOAT * len(ranking))) if len(ranking) > 1 else 0
    sum_, count = 0, 0
    for name in ranking:
        sum_ += weights[name]
        if sum_ > MOST_FLOAT * total:
            break
        count += 1
    return count


@dataclass(frozen=True, slots=True)
class Found:
    """The first ``floats`` of the ranking stay float; the drop is then ``drop`` points; does it hold?"""

    floats: int
    drop: float
    held: bool


def search(drop_with: Callable[[int], float], none: float, most: int, max_drop: float) -> Found:
    """Return the smallest number of float layers found that holds ``max_drop``.

    Args:
        drop_with: points lost with the first k of the ranking in float.
        none: points lost with none of them in float.
        most: the largest k that makes sense.
        max_drop: points that may be lost.

    Returns:
        What holds; where nothing does, the best of what was tried.
    """
    tried = {0: none}
    if none > max_drop:
        k = 1
        while k <= most:
            tried[k] = drop_with(k)
            if tried[k] <= max_drop:
                break
            k = min(2 * k, most) if k < most else most + 1
    held = [k for k, drop in tried.items() if drop <= max_drop]
    if not held:
        best = min(tried, key=lambda k: (tried[k], k))
        return Found(best, tried[best], held=False)
    high = min(held)
    low = max((k for k in tried if k < high), default=high)
    while high - low > 1:
        middle = (low + high) // 2
        tried[middle] = drop_with(middle)
        low, high = (low, middle) if tried[middle] <= max_drop else (middle, high)
    return Found(high, tried[high], held=True)
