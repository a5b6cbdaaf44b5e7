"""Samples for calibration: what is taken, and what is said of those that do not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import quant_nets as qn
from hypothesis import given
from hypothesis import strategies as st

from mint_deploy.artifacts import TensorSpec
from mint_deploy.errors import DataError, ModelError
from mint_deploy.quantize.network import OPEN_BATCH, Network, pieces
from mint_deploy.quantize.samples import LEAST, checked, digest

IMAGE = (TensorSpec(name="input", shape=(1, 3, 8, 8)),)
PAIR = (
    TensorSpec(name="ids", shape=(-1, -1), dtype="int64"),
    TensorSpec(name="mask", shape=(-1, 4)),
)


def test_one_array_a_mapping_and_a_file_are_the_same(tmp_path: Path) -> None:
    x = qn.images(20)
    np.savez(tmp_path / "named.npz", input=x, y=np.arange(20))
    np.savez(tmp_path / "x.npz", x=x, y=np.arange(20))
    for given_ in (x, {"input": x}, tmp_path / "named.npz", str(tmp_path / "x.npz")):
        found = checked(given_, IMAGE)
        assert list(found) == ["input"]
        np.testing.assert_array_equal(found["input"], x)


def test_several_inputs_come_by_name(tmp_path: Path) -> None:
    given_ = {"ids": np.zeros((9, 7), np.int64), "mask": np.ones((9, 4), np.float32)}
    assert set(checked(given_, PAIR)) == {"ids", "mask"}
    np.savez(tmp_path / "pair.npz", **given_)
    assert set(checked(tmp_path / "pair.npz", PAIR)) == {"ids", "mask"}


@pytest.mark.parametrize(
    ("samples", "inputs", "said"),
    [
        (np.zeros((20, 3, 8, 9), np.float32), IMAGE, r"\[20, 3, 8, 9\]; expected 'input' float32 \[N, 3, 8, 8\]"),
        (np.zeros((20, 3, 64), np.float32), IMAGE, r"expected 'input' float32 \[N, 3, 8, 8\]"),
        (np.zeros((20, 3, 8, 8)), IMAGE, r"are float64; expected 'input' float32"),
        (np.zeros((20, 3, 8, 8), np.uint8), IMAGE, r"are uint8; expected .* normalised as the network was"),
        (np.zeros((7, 3, 8, 8), np.float32), IMAGE, r"7 calibration samples are too few; expected at least 8"),
        (np.full((20, 3, 8, 8), np.nan, np.float32), IMAGE, r"row 0 .* is not finite"),
        ({"image": np.zeros((20, 3, 8, 8), np.float32)}, IMAGE, r"lack 'input'; expected 'input'"),
        ({"input": np.zeros((20, 3, 8, 8), np.float32), "y": np.zeros(20)}, IMAGE, r"unknown 'y'"),
        (np.zeros((20, 4), np.float32), PAIR, r"one array, and the model has 2 inputs"),
        ([1, 2, 3], IMAGE, r"are a list; expected arrays"),
        ({"ids": np.zeros((9, 7), np.int64), "mask": np.ones((8, 4), np.float32)}, PAIR, r"unequal numbers"),
        (np.zeros(20, np.float32), (TensorSpec(name="t", shape=()),), r"single number without a batch"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(samples, inputs, said: str) -> None:
    with pytest.raises(DataError, match=said):
        checked(samples, inputs)


def test_the_bad_row_is_named() -> None:
    x = qn.images(20)
    x[13, 0, 0, 0] = np.inf
    with pytest.raises(DataError, match="row 13"):
        checked(x, IMAGE)


def test_held_out_samples_are_called_so() -> None:
    with pytest.raises(DataError, match="held-out samples"):
        checked(np.zeros((2, 3, 8, 8), np.float32), IMAGE, what="held-out samples")


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read"):
        checked(tmp_path / "absent.npz", IMAGE)
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(DataError, match=r"is no \.npz of arrays"):
        checked(tmp_path / "broken.npz", IMAGE)
    np.savez(tmp_path / "pickled.npz", input=np.array([{}], dtype=object))
    with pytest.raises(DataError, match=r"is no \.npz of arrays"):
        checked(tmp_path / "pickled.npz", IMAGE)
    np.savez(tmp_path / "other.npz", pictures=np.zeros(3))
    with pytest.raises(DataError, match="holds pictures; expected arrays named"):
        checked(tmp_path / "other.npz", IMAGE)


def test_the_digest_tells_samples_apart() -> None:
    x = qn.images(LEAST)
    same = digest({"input": x.copy()})
    assert digest({"input": x}) == same
    assert digest({"image": x}) != same
    assert digest({"input": x.reshape(LEAST, -1)}) != same
    changed = x.copy()
    changed[-1, -1, -1, -1] += 1
    assert digest({"input": changed}) != same


@given(count=st.integers(1, 40), batch=st.integers(1, 9), smaller=st.booleans())
def test_pieces_hold_every_row_once_in_order(count: int, batch: int, smaller: bool) -> None:
    x = np.arange(count)
    rows = []
    for piece, real in pieces({"x": x}, batch, smaller):
        assert len(piece["x"]) == (real if smaller else batch)
        rows += piece["x"][:real].tolist()
    assert rows == x.tolist()


# ---------------------------------------------------------------- networks of any batch


@pytest.mark.parametrize("batch", [None, 1, 3])
def test_a_network_answers_any_number_of_samples(batch: int | None, tmp_path: Path) -> None:
    free = Network(qn.residual(tmp_path / "free.onnx"))
    network = Network(qn.residual(tmp_path / "net.onnx", batch=batch))
    assert network.batch == batch
    for count in (1, 2, OPEN_BATCH + 3):
        x = {"input": qn.images(count)}
        found = network.infer(x)["output"]
        assert found.shape == (count, 5)
        np.testing.assert_allclose(found, free.infer(x, batch=count)["output"], atol=1e-5)


def test_a_network_without_an_output_for_each_sample_is_refused(tmp_path: Path) -> None:
    nodes: list[qn.Node] = [
        ("Gemm", ["input", "w"], "y", {}),
        ("ReduceSum", ["y"], "output", {"keepdims": 0}),
    ]
    path = qn.save(tmp_path / "sum.onnx", nodes, {"w": np.eye(4, dtype=np.float32)}, [4])
    with pytest.raises(ModelError, match="one row per sample"):
        Network(path).infer({"input": qn.images(3, shape=[4])})


def test_what_onnx_runtime_refuses_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot load the model"):
        Network(b"nonsense")
    path = qn.residual(tmp_path / "net.onnx")
    with pytest.raises(ModelError, match="fails on a batch of 2"):
        Network(path).infer({"input": qn.images(2, shape=(3, 8))})
