"""How many layers stay float: the search alone, the ranking, and the judge."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import quant_nets as qn
from hypothesis import given
from hypothesis import strategies as st

from mint_deploy._signal import EXACT_DB, signal_to_noise, snr_db
from mint_deploy.errors import ConfigError
from mint_deploy.quantize.fidelity import batches_of
from mint_deploy.quantize.judge import Judge
from mint_deploy.quantize.network import Network
from mint_deploy.quantize.search import damage, most_floats, search

# ---------------------------------------------------------------- the search


def recorded(drops: list[float]):
    """A drop for each number of float layers, and what was asked."""
    asked: list[int] = []

    def drop_with(k: int) -> float:
        asked.append(k)
        return drops[k]

    return drop_with, asked


@given(
    falling=st.lists(st.floats(0, 20), min_size=2, max_size=70).map(
        lambda v: sorted(v, reverse=True)
    ),
    limit=st.floats(0, 20),
)
def test_the_fewest_that_hold_are_found_where_more_never_hurts(
    falling: list[float], limit: float
) -> None:
    drop_with, asked = recorded(falling)
    most = len(falling) - 1
    found = search(drop_with, falling[0], most, limit)
    fitting = [k for k, drop in enumerate(falling) if drop <= limit]
    assert found.held == bool(fitting)
    if fitting:
        assert found.floats == fitting[0]
    assert found.drop == falling[found.floats]
    assert len(asked) == len(set(asked)), "nothing is judged twice"
    assert len(asked) <= 2 * math.ceil(math.log2(most + 1)) + 2
    assert all(1 <= k <= most for k in asked)


@given(st.lists(st.floats(0, 20), min_size=2, max_size=40), st.floats(0, 20))
def test_what_is_said_to_hold_does_hold(drops: list[float], limit: float) -> None:
    drop_with, _ = recorded(drops)
    found = search(drop_with, drops[0], len(drops) - 1, limit)
    assert found.drop == drops[found.floats]
    assert found.held == (found.drop <= limit)


def test_nothing_is_asked_where_all_can_be_converted() -> None:
    drop_with, asked = recorded([0.4, 0.0])
    assert search(drop_with, 0.4, 1, 0.5).floats == 0
    assert asked == []


def test_the_best_of_what_fails_is_given() -> None:
    drop_with, asked = recorded([9.0, 8.0, 3.0, 7.0, 7.0])
    found = search(drop_with, 9.0, 4, 0.5)
    assert (found.floats, found.held, found.drop) == (2, False, 3.0)
    assert asked == [1, 2, 4]


def test_no_layer_may_stay() -> None:
    drop_with, asked = recorded([9.0])
    assert not search(drop_with, 9.0, 0, 0.5).held
    assert asked == []


@given(st.lists(st.integers(0, 100), min_size=1, max_size=30))
def test_at_most_half_of_the_work_stays_float(costs: list[int]) -> None:
    macs = {f"l{i}": c for i, c in enumerate(costs)}
    ranking = list(macs)
    k = most_floats(ranking, macs)
    total = sum(costs)
    if total:
        assert sum(costs[:k]) <= total / 2
        assert k == len(costs) or sum(costs[: k + 1]) > total / 2
    else:
        assert k <= len(costs) // 2 + 1


def test_without_costs_half_of_the_layers() -> None:
    assert most_floats(list("abcdef"), {}) == 3
    assert most_floats(["a", "b"], {}) == 1
    assert most_floats(["a"], {}) == 0


# ---------------------------------------------------------------- signal to noise


def test_signal_to_noise_by_hand() -> None:
    reference = np.array([3.0, 4.0])
    assert snr_db(reference + np.array([0.5, 0.0]), reference) == pytest.approx(20.0)
    assert snr_db(reference, reference) == EXACT_DB
    assert snr_db(np.zeros(2), np.zeros(2)) == EXACT_DB
    assert snr_db(np.zeros(3), reference) == -math.inf
    assert snr_db([math.nan, 4.0], reference) == -math.inf


@given(bits=st.integers(4, 16), seed=st.integers(0, 1000))
def test_each_bit_is_six_decibels(bits: int, seed: int) -> None:
    x = np.random.default_rng(seed).uniform(-1, 1, 20_000)
    step = 2.0 / 2**bits
    found = snr_db(np.rint(x / step) * step, x)
    # uniform numbers with an error uniform within half a step: power 1/3 against step^2/12
    assert found == pytest.approx(20 * bits * math.log10(2), abs=0.3)


def test_outputs_that_are_no_floats_are_left_out_and_missing_ones_are_not() -> None:
    reference = {"y": np.ones(3, np.float32), "label": np.arange(3)}
    assert signal_to_noise({"y": np.ones(3, np.float32)}, reference) == {"y": EXACT_DB}
    assert signal_to_noise({}, reference) == {"y": -math.inf}


@pytest.mark.parametrize(("batch", "sizes"), [(None, (1, 2, 8)), (3, (3,))])
def test_outputs_are_compared_at_several_batches(
    batch: int | None, sizes: tuple[int, ...], tmp_path: Path
) -> None:
    network = Network(qn.residual(tmp_path / "net.onnx", batch=batch))
    x = {"input": qn.images(10)}
    reference = network.infer(x)
    worst, tried = batches_of(network, reference, x)
    assert tried == sizes
    assert worst["output"] > 100
    noisy = {"output": reference["output"] + np.float32(0.01)}
    assert batches_of(network, noisy, x)[0]["output"] < 60


def test_the_damage_of_a_layer_is_that_of_the_worst_output(tmp_path: Path) -> None:
    def two(name: str, error: float) -> bytes:
        weights = {"v": (1 + error) * np.eye(4), "w": np.eye(4)}
        nodes: list[qn.Node] = [
            ("MatMul", ["input", "v"], "a", {}),
            ("MatMul", ["input", "w"], "b", {}),
        ]
        cast = {k: v.astype(np.float32) for k, v in weights.items()}
        return qn.save(tmp_path / f"{name}.onnx", nodes, cast, [4], ["a", "b"]).read_bytes()

    x = {"input": qn.images(5, shape=[4])}
    reference = Network(two("reference", 0)).infer(x)
    errors = {"first": 0.1, "second": 0.001}
    told: list[str] = []
    found = damage(
        list(errors),
        lambda layer: two(layer, errors[layer]),
        reference,
        x,
        progress=lambda done, total, note: told.append(f"{done} {total} {note}"),
    )
    assert found["first"] == pytest.approx(20, abs=0.01)
    assert found["second"] == pytest.approx(60, abs=0.1)
    assert told[-1].startswith("2 2 layer 2 of 2")


# ---------------------------------------------------------------- the judge


@pytest.fixture
def network(tmp_path: Path) -> Network:
    return Network(qn.residual(tmp_path / "net.onnx"))


def test_agreement_counts_equal_answers(network: Network, tmp_path: Path) -> None:
    x = {"input": qn.images(60)}
    judge = Judge(network, None, x)
    assert judge.able
    assert (judge.before.measure, judge.before.top1, judge.before.drop) == ("agreement", 1.0, None)
    other = Network(qn.residual(tmp_path / "other.onnx", seed=5))
    same = network.infer(x)["output"].argmax(1) == other.infer(x)["output"].argmax(1)
    after = judge.after(other)
    assert after.top1 == pytest.approx(same.mean())
    assert after.drop == pytest.approx(100 * (1 - same.mean()))
    assert after.drop_low < after.drop < after.drop_high
    assert judge.after(network).drop == 0
    assert judge.evaluations == 2


def test_outputs_that_are_no_scores_cannot_be_judged(tmp_path: Path) -> None:
    nodes: list[qn.Node] = [("Conv", ["input", "w"], "output", {})]
    weights = {"w": np.ones((2, 3, 1, 1), np.float32)}
    maps = Network(qn.save(tmp_path / "maps.onnx", nodes, weights, [3, 8, 8]))
    assert not Judge(maps, None, {"input": qn.images(9)}).able


def test_scores_are_compared_sample_by_sample(network: Network) -> None:
    answers = iter([np.array([1, 1, 0, 1.0]), np.array([1, 0, 1, 0.0])])
    judge = Judge(network, lambda infer: next(answers), {})
    after = judge.after(network)
    assert (judge.before.top1, after.top1, after.drop) == (0.75, 0.5, 25.0)
    assert after.flipped == 3
    assert judge.measure == "score"


def test_one_number_has_no_interval(network: Network) -> None:
    answers = iter([0.9, 0.85])
    judge = Judge(network, lambda infer: next(answers), {})
    after = judge.after(network)
    assert after.drop == pytest.approx(5.0)
    assert (after.drop_low, after.drop_high) == (None, None)


@pytest.mark.parametrize("wrong", [[1.5, 0.0], [-0.1], [], [[0.5]], [math.nan]])
def test_scores_that_are_none_are_refused(wrong, network: Network) -> None:
    with pytest.raises(ConfigError, match="expected one score a sample"):
        Judge(network, lambda infer: wrong, {})


def test_the_same_samples_each_time(network: Network) -> None:
    answers = iter([np.ones(4), np.ones(3)])
    judge = Judge(network, lambda infer: next(answers), {})
    with pytest.raises(ConfigError, match=r"4 scores .* and 3 now"):
        judge.after(network)
