"""The data's own measure as the judge of converted files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import quant_nets as qn
import torch

from mint_deploy.data import as_part
from mint_deploy.evaluate import evaluate
from mint_deploy.quantize import quantize_file
from mint_deploy.quantize.network import Network
from mint_deploy.quantize.task import OnnxModule, judge_on, samples_of


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return qn.residual(tmp_path_factory.mktemp("net") / "net.onnx", batch=2)


def labelled(count: int = 90):
    x = torch.from_numpy(qn.images(count))
    return as_part((x, torch.arange(count) % 5))


def test_a_file_is_evaluated_as_a_module_is(net: Path) -> None:
    infer = Network(net).infer
    part = labelled()
    outcome = evaluate(OnnxModule(infer, "input"), part)
    x = qn.images(90)
    expected = infer({"input": x})["output"].argmax(1)
    np.testing.assert_array_equal(outcome.predictions, expected)
    np.testing.assert_array_equal(judge_on(part)(infer), expected == np.arange(90) % 5)


def test_a_metric_is_used_and_named(net: Path) -> None:
    def half(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.full((len(y),), 0.5)

    judge = judge_on(labelled(), metric=half)
    assert judge.measure == "half"  # type: ignore[attr-defined]  # a judge carries its name
    np.testing.assert_array_equal(judge(Network(net).infer), np.full(90, 0.5))


def test_without_labels_it_is_the_agreement_with_the_first(net: Path, tmp_path: Path) -> None:
    part = as_part(torch.from_numpy(qn.images(60)))
    first = Network(net).infer
    other = Network(qn.residual(tmp_path / "other.onnx", seed=4)).infer
    judge = judge_on(part)
    assert judge.measure == "agreement"  # type: ignore[attr-defined]  # a judge carries its name
    assert judge(first).tolist() == [1.0] * 60
    x = {"input": qn.images(60)}
    same = first(x)["output"].argmax(1) == other(x)["output"].argmax(1)
    np.testing.assert_array_equal(judge(other), same)
    assert 0 < same.mean() < 1


def test_the_samples_are_balanced_and_seeded() -> None:
    part = labelled(90)
    x = samples_of(part, 20, seed=3)
    assert x.shape == (20, 3, 8, 8)
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x, samples_of(part, 20, seed=3))
    rows = [int(np.flatnonzero((qn.images(90) == one).all((1, 2, 3)))[0]) for one in x]
    assert np.bincount(np.array(rows) % 5).tolist() == [4] * 5
    assert len(samples_of(part, 500)) == 90


def test_it_judges_a_conversion(net: Path, tmp_path: Path) -> None:
    part = labelled(90)
    made = quantize_file(
        net, samples_of(part, 40), evaluate=judge_on(part), out=tmp_path / "q.onnx", max_drop=100.0
    )
    assert (made.before.measure, made.before.samples) == ("top1", 90)
    assert made.kept is True
