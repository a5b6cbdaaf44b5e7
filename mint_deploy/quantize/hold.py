"""Convert every layer; where that loses more than was promised, leave the worst ones in float32."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from mint_deploy.artifacts import Accuracy
from mint_deploy.quantize.calibration import Progress
from mint_deploy.quantize.judge import Judge
from mint_deploy.quantize.network import Arrays, Network
from mint_deploy.quantize.search import damage, most_floats, search
from mint_deploy.quantize.source import Source
from mint_deploy.values.precision import Calibration, FloatLayer

__all__ = ["Maker", "Outcome", "hold"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Maker:
    """One precision, with everything decided but which layers stay float32.

    ``layers``: name and operator of what is converted, in the order of execution; ``fixed``: those that cannot
    be. ``make(floats)`` returns the file with those layers in float32, ``only(layer)`` the one in which this
    layer alone is converted.
    """

    scheme: str
    layers: tuple[tuple[str, str], ...]
    fixed: tuple[FloatLayer, ...]
    calibration: Calibration
    settings: dict[str, str]
    make: Callable[[Collection[str]], bytes]
    only: Callable[[str], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The file, the layers that the search left in float32, and whether the promise holds (None: no judge)."""

    content: bytes
    floats: tuple[FloatLayer, ...]
    after: Accuracy | None
    kept: bool | None
    verdict: str
    damage: dict[str, float]


def hold(
    maker: Maker,
    source: Source,
    reference: Network,
    judge: Judge,
    max_drop: float | None,
    *,
    always: Sequence[str] = (),
    samples: Arrays,
    threads: int = 1,
    progress: Progress | None = None,
) -> Outcome:
    """Return the file that holds ``max_drop`` with few layers in float32, or the best that was found.

    Args:
        maker: makes the files.
        source: the float32 model, for what its layers cost.
        reference: the same, running.
        judge: measures the drop.
        max_drop: points; None: convert everything.
        always: layers that stay float32 anyhow.
        samples: the few that layers are ranked by.
        threads: compute threads.
        progress: called before each evaluation and after each ranked layer.
    """
    if not judge.able:
        why = "not judged: the first output is not [N, C] scores; give evaluate"
        return _outcome(maker, always, None, None, why)

    judged: dict[int, Accuracy] = {}
    ranking: list[str] = []

    def drop_with(k: int) -> float:
        if progress:
            note = f"{k} layers in float32" if k else "every layer converted"
            progress(judge.evaluations, 0, f"judging: {note}")
        content = maker.make([*always, *ranking[:k]])
        judged[k] = judge.after(Network(content, threads=threads))
        drop = judged[k].drop
        return math.inf if drop is None else drop

    none = drop_with(0)
    if max_drop is None:
        return _outcome(
            maker, always, judged[0], None, "nothing was promised: every layer is converted"
        )
    hurt: dict[str, float] = {}
    if none > max_drop:
        free = [name for name, _ in maker.layers if name not in always]
        expected = reference.infer(samples)
        hurt = damage(free, maker.only, expected, samples, threads=threads, progress=progress)
        ranking += sorted(free, key=lambda name: (hurt[name], free.index(name)))
    most = most_floats(ranking, source.macs)
    best = search(drop_with, none, most, max_drop)
    operators = dict(maker.layers)
    floats = tuple(
        FloatLayer(
            name=name,
            operator=operators[name],
            reason=f"alone it leaves {hurt[name]:.1f} dB: number {i + 1} of {len(ranking)} by damage",
            snr_db=hurt[name],
        )
        for i, name in enumerate(ranking[: best.floats])
    )
    verdict = _verdict(
        judged[best.floats], max_drop, best.held, len(floats), most, len(maker.layers)
    )
    return _outcome(maker, always, judged[best.floats], best.held, verdict, floats, hurt)


def _outcome(
    maker: Maker,
    always: Sequence[str],
    after: Accuracy | None,
    kept: bool | None,
    verdict: str,
    floats: tuple[FloatLayer, ...] = (),
    hurt: dict[str, float] | None = None,
) -> Outcome:
    return Outcome(
        content=maker.make([*always, *(layer.name for layer in floats)]),
        floats=floats,
        after=after,
        kept=kept,
        verdict=verdict,
        damage=hurt or {},
    )


def _verdict(
    after: Accuracy, max_drop: float, held: bool, floats: int, most: int, layers: int
) -> str:
    interval = ""
    if after.drop_low is not None and after.drop_high is not None:
        interval = f" (95 % interval {after.drop_low:.2f} to {after.drop_high:.2f})"
    text = (
        f"{'kept' if held else 'broken'}: {after.measure} on {after.samples} held-out samples dropped by "
        f"{after.drop or 0.0:.2f} points{interval} with {floats} of {layers} layers in float32; "
        f"at most {max_drop:g} points were promised"
    )
    if held:
        return text
    return (
        f"{text}; up to {most} of the most sensitive layers, half of the work, were tried in float32: allow a "
        "larger drop (--int8-max-drop), take --precision fp16, or recover longer before the export"
    )
