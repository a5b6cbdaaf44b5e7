"""A Jetson's part of the record: image, power modes, what they switch off, clocks that are held.

The trees have the form of JetPack 6's files; no board was at hand.
"""

from __future__ import annotations

import pytest
import trees

from mint_deploy import _machine_board


def test_l4t_and_its_jetpack():
    jp6 = (
        "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, "
        "DATE: Wed Jan  8 01:49:37 UTC 2025\n# KERNEL_VARIANT: oot\nTARGET_USERSPACE_LIB_DIR=nvidia"
    )
    jp4 = "# R32 (release), REVISION: 7.1, GCID: 29818004, BOARD: t210ref, EABI: aarch64"
    assert _machine_board.parse_l4t(jp6) == {"l4t": "36.4.3"}
    assert _machine_board.parse_l4t(jp4) == {"l4t": "32.7.1"}
    assert _machine_board.parse_l4t("Ubuntu 22.04") == {}
    for l4t, jetpack in (
        ("36.4.3", "6.2"), ("36.4.7", "6.1 or 6.2"), ("35.4.1", "5.1"), ("35.1.0", "5.0"),
        ("32.7.1", "4.6"), ("38.2", "7.0"), ("99.1", None), ("3", None),
    ):  # fmt: skip
        assert _machine_board.jetpack(l4t) == jetpack


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("NV Power Mode: MAXN\n0\n", {"name": "MAXN", "id": "0"}),
        ("NV Fan Mode:quiet\nNV Power Mode: MODE_15W\n2\n", {"name": "MODE_15W", "id": "2"}),
        ("NVPM WARN: fan mode is not set!\nNV Power Mode: 15W\n0\n", {"name": "15W", "id": "0"}),
        ("NV Power Mode: MAXN_SUPER", {"name": "MAXN_SUPER"}),
        ("nvpmodel: command failed", {}),
    ],
)
def test_nvpmodel(text, found):
    assert _machine_board.parse_nvpmodel(text) == found


def test_power_modes_and_their_masks():
    assert _machine_board.parse_modes(trees.NVPMODEL_CONF) == {
        "MAXN": {"id": 0, "mask": 0},
        "MODE_15W": {"id": 1, "mask": 248},
        "MODE_30W": {"id": 2, "mask": 240},
    }


def test_a_board_with_tpcs_switched_off(tmp_path):
    trees.jetson(tmp_path)
    found, reasons = _machine_board.describe(tmp_path, "MODE_30W")
    assert reasons == {}
    assert found == {
        "soc": "tegra234",
        "l4t": "36.4.3",
        "jetpack": "6.2",
        "gpu_mhz": 306.0,
        "gpu_min_mhz": 306.0,
        "gpu_max_mhz": 624.75,
        "tpc_pg_mask": 240,
        "sms_off": 8,
        "widest_mode": {"id": 0, "name": "MAXN"},
        "clocks_held": False,
    }


def test_a_board_that_holds_its_clocks_in_its_widest_mode(tmp_path):
    trees.jetson(tmp_path, held=True, mask=0)
    found, _ = _machine_board.describe(tmp_path, "MAXN")
    assert found["clocks_held"] is True
    assert found["sms_off"] == 0
    # the GPU alone is not enough
    trees.cpufreq(tmp_path, 3, scaling_min_freq=1, scaling_max_freq=2)
    assert _machine_board.describe(tmp_path, "MAXN")[0]["clocks_held"] is False


def test_without_the_mask_in_sys_the_mode_tells_it(tmp_path):
    trees.jetson(tmp_path, mask=None)
    assert _machine_board.describe(tmp_path, "MODE_15W")[0]["sms_off"] == 10
    # a smaller board never has all of its chip's: what no mode switches on is not missing
    trees.write(
        tmp_path, "etc/nvpmodel.conf", trees.NVPMODEL_CONF.replace("MASK 0\n", "MASK 240\n")
    )
    assert _machine_board.describe(tmp_path, "MODE_15W")[0]["sms_off"] == 2
    assert _machine_board.describe(tmp_path, "MODE_30W")[0]["sms_off"] == 0
    found, reasons = _machine_board.describe(tmp_path, None)
    assert found["tpc_pg_mask"] is found["sms_off"] is None
    assert {"tpc_pg_mask", "sms_off"} == set(reasons)


def test_no_board_at_all(tmp_path):
    found, reasons = _machine_board.describe(tmp_path, None)
    assert set(found.values()) == {None}
    assert set(reasons) == set(found)


@pytest.mark.board
def test_a_real_board_describes_itself():
    from mint_deploy.machine import probe

    found = probe()
    assert found.board is not None
    assert found.details["jetson"]["l4t"] is not None
    assert found.details["jetson"]["gpu_max_mhz"] > 100
    assert found.gpu is not None
    assert found.details["energy"] is not None
