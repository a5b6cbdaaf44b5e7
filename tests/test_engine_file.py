"""engine.json: what an engine was built for, and whether that is this machine."""

from __future__ import annotations

import dataclasses
import shlex
import shutil
import struct
import subprocess
import sys

import pytest
from cudart_double import Cudart
from hypothesis import given
from hypothesis import strategies as st
from onnx_models import save_conv
from tensorrt_double import install

from mint_deploy import engine_file, files
from mint_deploy._trt_cuda import Cuda
from mint_deploy._trt_here import facts, memory, shares_memory
from mint_deploy.artifacts import Engine
from mint_deploy.errors import DataError, EngineMismatch, RuntimeMissing
from mint_deploy.machine import probe
from mint_deploy.runtimes import tensorrt

ORIN = {
    "tensorrt": "10.3.0", "cuda": "12.6", "driver": "540.4.0", "sm": "8.7", "device": "Orin",
    "l4t": "36.4.3", "jetpack": "6.2", "power_mode": "MAXN", "tpc_pg_mask": "0",
}  # fmt: skip


def engine_at(folder, **changes) -> Engine:
    folder.mkdir(parents=True, exist_ok=True)
    plan = folder / "engine.plan"
    plan.write_bytes(b"a plan")
    fields = {
        "path": str(plan), "runtime": "tensorrt", "precision": "fp16", "sha256": files.sha256(plan),
        "builder": ORIN,
        "flags": {"onnx": "model.onnx", "bytes": 6, "target": {"precision": "fp16", "batch": 2}},
    }  # fmt: skip
    return engine_file.write(Engine(**{**fields, **changes}), folder)


# ---------------------------------------------------------------- read


def test_it_is_found_by_folder_by_record_and_by_plan(tmp_path):
    engine = engine_at(tmp_path / "e")
    for place in ("e", "e/engine.json", "e/engine.plan"):
        assert engine_file.read(tmp_path / place) == engine
    (tmp_path / "e" / "other.plan").touch()
    with pytest.raises(DataError, match=r"describes engine\.plan, not other\.plan"):
        engine_file.read(tmp_path / "e" / "other.plan")


def test_a_folder_may_be_moved(tmp_path):
    engine_at(tmp_path / "a")
    shutil.move(tmp_path / "a", tmp_path / "b")
    found = engine_file.read(tmp_path / "b")
    assert found.path == str(tmp_path / "b" / "engine.plan")
    engine_file.require(found, ORIN)


def test_records_that_are_none(tmp_path):
    with pytest.raises(DataError, match="cannot read"):
        engine_file.read(tmp_path)
    (tmp_path / "engine.json").write_text("{")
    with pytest.raises(DataError, match="damaged"):
        engine_file.read(tmp_path)
    files.write_json(tmp_path / "engine.json", {}, kind="Plan")
    with pytest.raises(DataError, match="expected a 'Engine'"):
        engine_file.read(tmp_path)


# ---------------------------------------------------------------- the head of a plan


@given(st.tuples(*[st.integers(0, 255)] * 4), st.binary(max_size=20))
def test_the_version_stands_in_the_head(tmp_path_factory, version, rest):
    """The layout of printPlanVersion in NVIDIA/TensorRT's sampleEngines.cpp."""
    path = tmp_path_factory.mktemp("plan") / "e.plan"
    path.write_bytes(struct.pack("<II", 0x74727466, 0) + bytes(16) + bytes(version) + rest)
    assert engine_file.plan_version(path) == ".".join(map(str, version))


@given(st.binary(max_size=60))
def test_any_other_head_says_nothing(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("plan") / "e.plan"
    path.write_bytes(data)
    if data[:8] != b"ftrt\0\0\0\0" or len(data) < 28:
        assert engine_file.plan_version(path) is None


# ---------------------------------------------------------------- does it belong here


def test_the_same_machine_takes_it(tmp_path):
    engine_file.require(engine_at(tmp_path), ORIN)
    engine_file.require(engine_at(tmp_path), {"tensorrt": "10.3.0"})


@pytest.mark.parametrize(
    ("key", "now", "said"),
    [
        ("tensorrt", "10.7.0", "TensorRT"), ("sm", "11.0", "compute capability"),
        ("device", "Thor", "GPU"), ("l4t", "36.5", "L4T"), ("tpc_pg_mask", "240", "TPC mask"),
        ("cuda", "13.0", "CUDA"),
    ],
)  # fmt: skip
def test_each_difference_that_matters_is_refused_and_told(tmp_path, key, now, said):
    with pytest.raises(EngineMismatch) as caught:
        engine_file.require(engine_at(tmp_path), {**ORIN, key: now})
    error = caught.value
    assert error.built_for == f"{said} {ORIN[key]}"
    assert error.found == f"{said} {now}"
    assert "build it anew: python3 -c" in str(error)


@pytest.mark.parametrize(
    ("key", "now"), [("driver", "560.35"), ("jetpack", "6.2.1"), ("cuda", "12.9")]
)
def test_what_does_not_matter_is_not_refused(tmp_path, key, now):
    engine_file.require(engine_at(tmp_path), {**ORIN, key: now})


def test_another_power_mode_matters_where_it_may_switch_processors_off():
    """The mask says what is switched off; where it is not known the mode's name stands in for it."""
    other = {**ORIN, "power_mode": "15W"}
    assert engine_file.differences(ORIN, other) == {}, (
        "the same mask: the same GPU, at other clocks"
    )
    without = {k: v for k, v in ORIN.items() if k != "tpc_pg_mask"}
    assert engine_file.differences(without, other) == {"power mode": ("MAXN", "15W")}
    assert engine_file.differences(ORIN, {k: v for k, v in other.items() if k != "tpc_pg_mask"})


def test_names_of_gpus_count_where_cuda_gave_both():
    kernel = {**{k: v for k, v in ORIN.items() if k != "sm"}, "device": "Tegra234 (integrated)"}
    assert engine_file.differences(kernel, ORIN) == {}


@given(
    st.dictionaries(st.sampled_from(sorted(ORIN)), st.sampled_from(["1.0", "2.0", "x"])),
    st.dictionaries(st.sampled_from(sorted(ORIN)), st.sampled_from(["1.0", "2.0", "x"])),
)
def test_a_difference_is_one_both_ways_and_never_with_itself(a, b):
    assert engine_file.differences(a, a) == {}
    there, back = engine_file.differences(a, b), engine_file.differences(b, a)
    assert there == {k: (now, was) for k, (was, now) in back.items()}
    assert engine_file.differences(a, {}) == {}


@given(st.binary(min_size=1, max_size=20))
def test_every_altered_plan_is_refused(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("e")
    engine = engine_at(folder)
    if data == b"a plan":
        return
    (folder / "engine.plan").write_bytes(data)
    with pytest.raises(EngineMismatch, match="damaged or was replaced"):
        engine_file.require(engine, ORIN)


def test_a_truncated_plan_says_how_much_is_left(tmp_path):
    engine = engine_at(tmp_path)
    (tmp_path / "engine.plan").write_bytes(b"a pl")
    with pytest.raises(EngineMismatch, match="it has 4 bytes of 6"):
        engine_file.require(engine, ORIN)
    (tmp_path / "engine.plan").unlink()
    with pytest.raises(DataError, match=r"there is no engine .*build it"):
        engine_file.require(engine, ORIN)


# ---------------------------------------------------------------- the command


def test_in_a_bundle_the_command_is_the_device_program(tmp_path):
    folder = tmp_path / "my bundle"
    engine = engine_at(folder)
    (folder / "deploy.json").touch()
    (folder / "mint_deploy_device.pyz").touch()
    assert shlex.split(engine_file.rebuild_command(engine)) == [
        "python3", str(folder / "mint_deploy_device.pyz"), "build", str(folder),
        "--runtime", "tensorrt", "--precision", "fp16",
    ]  # fmt: skip


def test_elsewhere_the_command_builds_the_same_anew(tmp_path, monkeypatch):
    """It is run: with what the refused engine's record says, in a process of its own."""
    world = install(monkeypatch, "10.3.0")
    model = save_conv(tmp_path / "it's a model.onnx")
    engine = tensorrt.build(model, {"precision": "fp16", "max_batch": 3}, tmp_path / "out")
    first = world.built
    (tmp_path / "out" / "engine.plan").write_bytes(b"damaged")
    words = shlex.split(engine_file.rebuild_command(engine))
    assert words[:2] == ["python3", "-c"]
    world.built = {}
    exec(words[2], {})  # noqa: S102  the command itself, in this process for the double's sake
    apart = {"cache", "build"}
    assert {k: v for k, v in world.built.items() if k not in apart} == {
        k: v for k, v in first.items() if k not in apart
    }
    engine_file.require(engine_file.read(tmp_path / "out"), engine.builder)


def test_the_command_runs_in_a_shell_and_says_what_is_missing(tmp_path):
    engine = engine_at(tmp_path, flags={"onnx": "model.onnx"})
    save_conv(tmp_path / "model.onnx")
    command = engine_file.rebuild_command(engine).replace("python3", sys.executable, 1)
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert RuntimeMissing.__name__ in done.stderr


# ---------------------------------------------------------------- this machine


def test_a_board_is_described_in_full(monkeypatch):
    install(monkeypatch, "10.3.0", Cudart(device="Orin", sm=(8, 7), runtime=12060))
    board = dataclasses.replace(
        probe(), power_mode="MAXN", gpu="Tegra234 (integrated)",
        details={
            "jetson": {"l4t": "36.4.3", "jetpack": "6.2", "tpc_pg_mask": 0},
            "gpu": {"driver_version": "540.4.0"},
        },
    )  # fmt: skip
    assert facts("10.3.0", machine=board) == ORIN
    assert facts("10.3.0", machine=board, cuda=Cuda()) == ORIN


def test_what_cannot_be_read_has_no_entry(monkeypatch):
    monkeypatch.setattr("mint_deploy._trt_cuda.find_library", lambda: ["libnone.so"])
    bare = dataclasses.replace(probe(), power_mode=None, gpu=None, details={}, versions={})
    assert facts("10.3.0", machine=bare) == {"tensorrt": "10.3.0"}
    told = dataclasses.replace(bare, versions={"cuda": "12.6.68"})
    assert facts("10.3.0", machine=told) == {"tensorrt": "10.3.0", "cuda": "12.6.68"}


def test_memory_and_swap(tmp_path):
    assert memory(tmp_path) == (0, 0)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal:  8 kB\nMemFree: 1 kB\nSwapTotal:   3 kB\n")
    assert memory(tmp_path) == (8192, 3072)
    assert not shares_memory(tmp_path)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nv_tegra_release").touch()
    assert shares_memory(tmp_path)


@pytest.mark.board
def test_a_real_board_names_itself():
    if not shares_memory():
        pytest.skip("this is no Jetson")
    found = facts("0.0.0")
    assert {"sm", "device", "l4t", "cuda"} <= set(found)
