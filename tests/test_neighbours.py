"""The benchmark of restarts against themselves: what it counts, resumes and prints."""

from __future__ import annotations

import json
import math

import neighbours
import pytest

from mint_deploy import _bench_turns


@pytest.fixture
def quick(monkeypatch):
    """No process: a restart answers with its own number."""
    asked = []

    def restart(paths, number, *, pin, block_ms):
        asked.append((number, pin, block_ms))
        return dict.fromkeys(neighbours.FIGURES, 0.01 * (number % 2))

    monkeypatch.setattr(neighbours, "restart", restart)
    return asked


def test_the_spread_and_its_robust_kin():
    plain, robust = neighbours.spread([0.0, 0.01, -0.01, 0.02, -0.02, 0.5])
    assert plain == pytest.approx(20.46, abs=0.01)
    assert robust < 3
    normal = [0.01 * x for x in (-1.28, -0.84, -0.52, -0.25, 0.0, 0.25, 0.52, 0.84, 1.28)]
    assert neighbours.spread(normal)[1] == pytest.approx(0.77, abs=0.01)


def test_every_way_once_a_round_and_none_twice(quick, tmp_path, capsys):
    a_round = 4 * len(neighbours.WAYS)
    neighbours.main(["--rounds", "1", "--results", str(tmp_path)])
    assert len(quick) == a_round
    neighbours.main(["--rounds", "2", "--results", str(tmp_path)])
    assert len(quick) == 2 * a_round
    assert {number for number, *_ in quick} == {0, 1}
    rows = [json.loads(line) for line in (tmp_path / "neighbours.jsonl").read_text().splitlines()]
    keys = {(r["round"], r["of"], r["busy"], r["pin"], r["block_ms"]) for r in rows}
    assert len(keys) == len(rows) == 2 * a_round
    page = (tmp_path / "neighbours.md").read_text()
    assert page.count("\n| ") == 1 + a_round * len(neighbours.FIGURES)
    assert "| itself | busy | one | 5 ms | pairs | 2 | 1.005 | 0.7 % | 0.7 % |" in page
    neighbours.main(["--table", "--results", str(tmp_path)])
    assert len(quick) == 2 * a_round
    assert (tmp_path / "neighbours.md").read_text() == page


def test_pairs_are_medians_of_blocks():
    found = neighbours.pairs([1, 1, 9, 4, 4], [2, 2, 2, 12, 12], (3, 2), (3, 2))
    assert found == pytest.approx((math.log(2) + math.log(3)) / 2)


def test_an_interrupt_leaves_the_table_of_what_there_is(tmp_path, monkeypatch, capsys):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(neighbours, "restart", stop)
    with pytest.raises(KeyboardInterrupt):
        neighbours.main(["--rounds", "1", "--results", str(tmp_path)])
    assert "Two files and their neighbours" in (tmp_path / "neighbours.md").read_text()


def test_a_restart_of_a_real_file(tmp_path):
    model = neighbours.onnx_file(tmp_path / "m.onnx", layers=2)
    before = _bench_turns.BLOCK_S
    found = neighbours.restart((model, model), 1, pin=True, block_ms=10)
    assert before == _bench_turns.BLOCK_S
    assert set(found) == set(neighbours.FIGURES)
    # the same file: not even a busy machine makes one of them twice as fast
    assert all(abs(v) < 0.7 for v in found.values())


def test_the_committed_table_is_that_of_its_lines():
    rows = neighbours.read(neighbours.HERE / "results" / "neighbours.jsonl")
    assert len(rows) >= 100
    assert (neighbours.HERE / "results" / "neighbours.md").read_text() == neighbours.page(rows)
