"""Sentences that differ in a number alone become one: a sweep over batches must not doubt itself twelve times."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["about_runs", "merged"]

#: a number that stands by itself: not the 90 of p90, not a part of a version or a name
_NUMBER = re.compile(r"(?<![\w.\-])[+-]?\d+(?:\.\d+)?(?!\.?\d|[A-Za-z_])")


def merged(said: Iterable[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    """Return each sentence once, with all that it is about; its numbers become ranges where they differ.

    Args:
        said: ``(sentence, what it is about)``.

    >>> merged([("drifts by 6% in A", "x"), ("drifts by 12% in A", "y")])
    [('drifts by 6 to 12% in A', ['x', 'y'])]
    """
    found: dict[str, list[str]] = {}
    about: dict[str, list[str]] = {}
    for text, of in said:
        mask = _NUMBER.sub("\0", text)
        found.setdefault(mask, []).append(text)
        if of not in about.setdefault(mask, []):
            about[mask].append(of)
    return [(_ranges(texts), about[mask]) for mask, texts in found.items()]


def _ranges(texts: Sequence[str]) -> str:
    columns = zip(*(_NUMBER.findall(text) for text in texts), strict=True)
    spans = []
    for column in columns:
        low, high = min(column, key=float), max(column, key=float)
        spans.append(low if float(low) == float(high) else f"{low} to {high}")
    said = iter(spans)
    return _NUMBER.sub(lambda _: next(said), texts[0])


def about_runs(runs: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return what was measured, the batches of a sweep and equal labels together.

    As in ``dense and slim (onnxruntime, offline, batch 1, 8)``.
    """
    batches: dict[tuple[str, str, str], list[str]] = {}
    for run in runs:
        seen = batches.setdefault((run["label"], run["runtime"], run["scenario"]), [])
        if str(run["batch"]) not in seen:
            seen.append(str(run["batch"]))
    labels: dict[tuple[str, str, str], list[str]] = {}
    for (label, runtime, scenario), sizes in batches.items():
        labels.setdefault((runtime, scenario, ", ".join(sizes)), []).append(label)
    return [
        f"{' and '.join(names)} ({runtime}, {scenario}, batch {sizes})"
        for (runtime, scenario, sizes), names in labels.items()
    ]
