"""Signal to noise on the board: the figure of the host, over samples that come in batches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mint_deploy._signal import EXACT_DB, floor_db, measured_db, signal_to_noise, snr_db
from mint_deploy.errors import DataError
from mint_deploy.parity import Parity


@given(st.floats(1e-4, 1e3))
def test_noise_of_a_share_of_the_signal_has_its_decibels(share):
    expected = np.arange(1.0, 9.0)
    assert snr_db(expected * (1 + share), expected) == pytest.approx(-20 * np.log10(share))


def test_what_is_not_comparable_has_no_signal():
    assert snr_db([1.0], [1.0, 2.0]) == -np.inf
    assert snr_db([np.nan], [1.0]) == -np.inf
    assert signal_to_noise({}, {"y": np.ones(2)}) == {"y": -np.inf}
    assert signal_to_noise({}, {"label": np.ones(2, np.int64)}) == {}
    assert snr_db([1.0], [1.0]) == EXACT_DB


@given(st.floats(-20, 200))
def test_a_board_may_have_twice_the_noise_and_need_not_be_better_than_30_db(made):
    assert floor_db(made) <= 30
    assert floor_db(made) <= made - 6
    assert floor_db(made) in (30, made - 6)
    assert floor_db() == 30


@pytest.mark.parametrize("batch", [1, 2, 4, 5, 8])
def test_every_sample_counts_once_whatever_the_batch(batch):
    rng = np.random.default_rng(3)
    x = rng.standard_normal((5, 2))
    noise = rng.standard_normal((5, 2)) * 0.1
    parity = Parity(inputs={"x": x}, outputs={"slim": {"y": x, "z": x}})

    def infer(inputs):
        where = [int(np.flatnonzero((x == row).all(1))[0]) for row in inputs["x"]]
        return {"y": inputs["x"] + noise[where], "z": inputs["x"]}

    assert measured_db(parity, "slim", infer, batch=batch) == snr_db(x + noise, x)


def test_an_output_that_is_missing_and_a_network_that_is():
    parity = Parity(inputs={"x": np.ones((3, 2))}, outputs={"slim": {"y": np.ones((3, 2))}})
    assert measured_db(parity, "slim", lambda i: {"other": i["x"]}, batch=2) == -np.inf
    with pytest.raises(DataError, match="no outputs of network 'dense'"):
        measured_db(parity, "dense", lambda i: i, batch=2)


def test_a_buffer_that_a_runner_uses_again_does_not_matter():
    x = np.arange(1.0, 7.0).reshape(3, 2)
    parity = Parity(inputs={"x": x}, outputs={"slim": {"y": x}})
    buffer = np.empty((1, 2))

    def infer(inputs):
        buffer[:] = inputs["x"]
        return {"y": buffer}

    assert measured_db(parity, "slim", infer, batch=1) == EXACT_DB
