"""The error measure, and the samples that travel with a bundle."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mint_deploy import files
from mint_deploy.errors import DataError
from mint_deploy.parity import Parity, compare_outputs, read_parity, relative_error, write_parity

numbers = arrays(np.float64, st.integers(1, 20), elements=st.floats(-1e3, 1e3))


@given(numbers)
def test_no_difference_no_error(a):
    assert relative_error(a, a.copy()) == 0.0


@given(numbers, st.floats(1e-3, 1e3))
def test_the_error_is_the_largest_difference_over_the_largest_value(b, wrong):
    b[0] = np.abs(b).max() + 1.0
    a = b.copy()
    a[-1] += wrong
    assert relative_error(a, b) == pytest.approx(wrong / b[0], rel=1e-6)


def test_what_is_not_comparable_is_infinitely_wrong():
    assert relative_error([1.0, np.nan], [1.0, 2.0]) == np.inf
    assert relative_error([1.0, 2.0], [1.0, np.inf]) == np.inf
    assert relative_error([1.0], [1.0, 2.0]) == np.inf
    assert relative_error([], []) == 0.0
    assert compare_outputs({}, {"logits": np.zeros(2)}) == {"logits": np.inf}


def test_tiny_outputs_are_measured_against_a_floor():
    assert relative_error([2e-9], [1e-9]) == pytest.approx(1e-3)


@pytest.fixture
def parity():
    x = np.arange(10, dtype=np.float32).reshape(5, 2)
    return Parity(inputs={"x": x}, outputs={"dense": {"y": x * 2}}, tolerance=1e-3)


@pytest.mark.parametrize("batch", [1, 2, 4, 5, 8])
def test_every_sample_is_compared_and_every_call_sees_a_full_batch(parity, batch):
    seen = []

    def infer(inputs):
        assert len(inputs["x"]) == batch
        seen.extend(inputs["x"][:, 0].tolist())
        return {"y": inputs["x"] * 2}

    assert parity.check("dense", infer, batch=batch) == 0.0
    assert set(seen) == {0.0, 2.0, 4.0, 6.0, 8.0}


@pytest.mark.parametrize("row", range(5))
def test_one_wrong_sample_is_noticed_wherever_it_is(parity, row):
    def infer(inputs):
        y = inputs["x"] * 2
        y[inputs["x"][:, 0] == 2 * row] += 1
        return {"y": y}

    assert parity.check("dense", infer, batch=2) > 0.05


def test_a_file_gives_the_samples_back_and_equal_samples_give_equal_bytes(parity, tmp_path):
    write_parity(tmp_path / "a.npz", parity)
    write_parity(tmp_path / "b.npz", parity)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    back = read_parity(tmp_path / "a.npz")
    assert back.tolerance == 1e-3
    np.testing.assert_array_equal(back.outputs["dense"]["y"], parity.outputs["dense"]["y"])


def test_other_files_and_empty_ones_are_refused(parity, tmp_path):
    files.write_arrays(tmp_path / "m.npz", {"kind": "Moments"}, {})
    with pytest.raises(DataError, match="is a 'Moments', expected a 'Parity'"):
        read_parity(tmp_path / "m.npz")
    with pytest.raises(DataError, match="no outputs of network 'slim'"):
        parity.check("slim", dict, batch=1)
    nothing = Parity(inputs={"x": np.zeros((0, 2))}, outputs={"dense": {}})
    with pytest.raises(DataError, match="no samples"):
        nothing.check("dense", dict, batch=1)
