"""The grid of ``scoring.py`` as Markdown: accuracy per method and budget, mean and spread over sampling seeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["spread", "table"]


def table(
    cells: Mapping[str, Any],
    methods: Sequence[str],
    budgets: Sequence[float],
    seeds: Sequence[int],
) -> str:
    """Return what is there: a table for each repair, the test images, and what recovery makes of the best."""
    parts = []
    dense = cells.get("dense")
    if dense:
        parts.append(f"Dense: {dense['validation']:.2f} % of the validation split.")
    for key, title in (("bn", "BN only"), ("refit", "refit + BN")):
        head = (
            f"| {title}, validation | " + " | ".join(f"{b:g} of the MACs" for b in budgets) + " |"
        )
        rows = [
            _row(name, [_over_seeds(cells, b, name, seeds, key) for b in budgets])
            for name in methods
        ]
        rows += [
            _row("bn_scale after sparsity training", [_sparse(cells, b, key) for b in budgets])
        ]
        parts.append("\n".join([head, "|---" * (len(budgets) + 1) + "|", *(r for r in rows if r)]))
    tested = [
        _row(name, [_plain(cells, f"test/{b}/{name}/{seeds[0]}", "refit") for b in budgets])
        for name in methods
    ]
    if any(tested):
        head = "| refit + BN, test | " + " | ".join(f"{b:g} of the MACs" for b in budgets) + " |"
        parts.append(
            "\n".join([head, "|---" * (len(budgets) + 1) + "|", *(r for r in tested if r)])
        )
    recovered = {
        k.removeprefix("recover/"): c for k, c in cells.items() if k.startswith("recover/")
    }
    if recovered:
        lines = ["| 200 steps of recovery | before | validation | test |", "|---|---|---|---|"]
        for key, cell in sorted(recovered.items(), key=lambda item: -item[1]["test"]):
            budget, _, name = key.partition("/")
            label = "dense + the same steps (control)" if name == "dense" else f"{name}, {budget}"
            before = f"{cell['before']:.1f}"
            lines.append(f"| {label} | {before} | {cell['validation']:.2f} | {cell['test']:.2f} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def spread(values: Sequence[float]) -> str:
    """Return the mean, and the standard deviation over seeds where there are several."""
    middle = f"{statistics.mean(values):.1f}"
    return f"{middle} ± {statistics.stdev(values):.1f}" if len(values) > 1 else middle


def _row(name: str, figures: Sequence[str]) -> str:
    """Return a line of a table; empty where there is no figure."""
    return f"| {name} | " + " | ".join(figures) + " |" if any(figures) else ""


def _over_seeds(
    cells: Mapping[str, Any], budget: float, name: str, seeds: Sequence[int], key: str
) -> str:
    found = [cells[k][key] for s in seeds if (k := f"{budget}/{name}/{s}") in cells]
    return spread(found) if found else ""


def _plain(cells: Mapping[str, Any], key: str, figure: str) -> str:
    return f"{cells[key][figure]:.1f}" if key in cells else ""


def _sparse(cells: Mapping[str, Any], budget: float, key: str) -> str:
    return _plain(cells, f"sparse/{budget}", key)
