"""The scoring grid's own logic: which cells there are, what the table says of them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import scoring
from scoring_table import spread, table

from mint_deploy import plugins


def test_every_criterion_and_estimator_is_a_row() -> None:
    """A criterion that is dropped into the folder is missed here, not forgotten."""
    rows = scoring.methods().values()
    assert {m.criterion for m in rows} == set(plugins.known("criterion"))
    assert {m.estimator for m in rows if m.criterion == "mint"} == set(plugins.known("estimator"))


def test_parts_share_all_cells() -> None:
    def chosen(part: str | None) -> argparse.Namespace:
        return argparse.Namespace(
            seeds=(0, 1), budgets=(0.5, 0.3), only=["mint*", "rand*"], part=part
        )

    whole = [(n, b, s) for n, _, b, s in scoring.wanted(chosen(None))]
    parts = [(n, b, s) for p in ("0/2", "1/2") for n, _, b, s in scoring.wanted(chosen(p))]
    assert sorted(whole) == sorted(parts)
    assert (
        len(set(whole))
        == len(whole)
        == 4 * sum(n.startswith(("mint", "rand")) for n in scoring.methods())
    )


def test_the_table_has_means_spreads_and_controls() -> None:
    cells = {
        "dense": {"validation": 88.34},
        "0.5/mint gaussian/0": {"bn": 79.0, "refit": 84.0},
        "0.5/mint gaussian/1": {"bn": 81.0, "refit": 85.0},
        "0.5/random/0": {"bn": 40.0, "refit": 70.0},
        "sparse/0.5": {"bn": 60.0, "refit": 75.04},
        "test/0.5/mint gaussian/0": {"refit": 83.21},
        "recover/1/dense": {"before": 87.5, "validation": 88.4, "test": 87.6},
        "recover/0.4/random": {"before": 74.0, "validation": 84.0, "test": 83.9},
    }
    text = table(cells, ["mint gaussian", "random", "never run"], [0.5], (0, 1, 2))
    assert "| mint gaussian | 84.5 ± 0.7 |" in text
    assert "| mint gaussian | 80.0 ± 1.4 |" in text
    assert "| random | 70.0 |" in text
    assert "| mint gaussian | 83.2 |" in text
    assert "| bn_scale after sparsity training | 75.0 |" in text
    assert "never run" not in text
    assert text.index("dense + the same steps") < text.index("random, 0.4 | 74.0 | 84.00 | 83.90")
    assert spread([3.0]) == "3.0"


def test_the_best_are_chosen_by_what_was_measured() -> None:
    cells = {
        f"{scoring.RECOVER_AT}/{name}/{seed}": {"refit": value + seed}
        for name, value in (
            ("thinet", 80.0),
            ("mint gaussian", 82.0),
            ("random", 99.0),
            ("fpgm", 70.0),
        )
        for seed in (0, 1)
    }
    assert scoring.best(cells, 2) == ["mint gaussian", "thinet"]


def test_parts_are_read_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "RESULTS", tmp_path)
    for part, key in ((None, "a"), ("0/2", "b"), ("1/2", "c")):
        path = scoring.results("resnet56", part)
        path.write_text(json.dumps({"cells": {key: {}}}))
    assert set(scoring.cells("resnet56")) == {"a", "b", "c"}
