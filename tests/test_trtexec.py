"""trtexec, driven through a contract double of each release: see trtexec_double."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest
from bundles import here, make_bundle
from onnx import helper, numpy_helper
from onnx_models import save_conv
from trtexec_double import VERSIONS, banner, install

from mint_deploy import engine_file, files, trtexec
from mint_deploy.artifacts import Engine
from mint_deploy.errors import (
    ConfigError,
    DataError,
    EngineMismatch,
    MintDeployError,
    ModelError,
    RuntimeMissing,
)
from mint_deploy.target import load_target


@pytest.fixture
def play(tmp_path, monkeypatch):
    """Returns a function that puts the trtexec of a release on PATH, and the calls it got."""

    def make(version, **world):
        folder = tmp_path / f"trt-{version}"
        install(folder, version)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setenv("DOUBLE_CALLS", str(tmp_path / "calls"))
        for name, value in world.items():
            monkeypatch.setenv(f"DOUBLE_{name.upper()}", str(value))
        return lambda: [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]

    return make


@pytest.fixture
def model(tmp_path):
    return save_conv(tmp_path / "model.onnx")


def half(path):
    loaded = onnx.load(save_conv(path))
    for weight in loaded.graph.initializer:
        name, array = weight.name, numpy_helper.to_array(weight).astype("float16")
        weight.CopyFrom(numpy_helper.from_array(array, f"{name}_half"))
        loaded.graph.node.insert(0, helper.make_node("Cast", [f"{name}_half"], [name], to=1))
    onnx.save(loaded, path)
    return path


# ---------------------------------------------------------------- who it is


@pytest.mark.parametrize("version", VERSIONS)
def test_the_version_is_read_from_the_banner(version):
    text = f"&&&& RUNNING TensorRT.trtexec {banner(version)} # trtexec --help"
    assert trtexec.parse_version(text) == {"version": VERSIONS[version]}
    assert trtexec.parse_version("trtexec: command not found") == {}


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("[TensorRT v8503]", "8.5.3"),
        ("[TensorRT v101303] [b9]", "10.13.3"),
        ("[TensorRT v110401]", "11.4.1"),
    ],
)
def test_banners_of_other_releases(text, version):
    assert trtexec.parse_version(text) == {"version": version}


def test_a_trtexec_without_a_version(tmp_path, monkeypatch, model):
    program = tmp_path / "bin" / "trtexec"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nprint('something else')\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(program.parent))
    with pytest.raises(MintDeployError, match="does not say which TensorRT"):
        trtexec.build(model, tmp_path)


def test_trtexec_off_path_is_found_where_jetpack_puts_it(tmp_path, monkeypatch):
    program = install(tmp_path / "bin", "10.3")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(trtexec, "_JETPACK", program)
    assert trtexec.find() == str(program)


def test_without_trtexec_the_build_is_refused_with_the_command_that_mends_it(
    tmp_path, capsys, monkeypatch
):
    bundle = make_bundle(tmp_path / "b", runtime="tensorrt")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(trtexec, "_JETPACK", tmp_path / "absent")
    with pytest.raises(RuntimeMissing, match="apt-get install libnvinfer-bin"):
        trtexec.build(bundle / "model.onnx", bundle)
    assert here(capsys, "build", bundle)[0] == 2


# ---------------------------------------------------------------- build, in every release


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("open_batch", [True, False])
def test_every_release_builds_what_is_asked(tmp_path, play, version, open_batch):
    """The double exits with 1 for a flag or a value that this release does not take."""
    play(version)
    folder = tmp_path / "b c"  # a blank in the path: no shell is in between
    folder.mkdir()
    model = save_conv(folder / "model.onnx", batch=None if open_batch else 2)
    target = {"batch": 2, "max_batch": 4, "memory_bytes": 8 << 30}
    engine = trtexec.build(model, folder, target=target)
    assert engine.path == str(folder / "engine.plan")
    assert engine.builder["tensorrt"] == VERSIONS[version]
    assert engine.builder["by"] == "trtexec"
    assert engine.flags["onnx_sha256"] == files.sha256(model)
    assert engine.flags["bytes"] == (folder / "engine.plan").stat().st_size
    assert engine.flags["timing_cache"]["sha256"] == files.sha256(folder / "timing.cache")
    given = engine.flags["arguments"]
    assert "--onnx=model.onnx" in given, "by name: the record means the same in another folder"
    assert "--memPoolSize=workspace:2048" in given
    assert any(a.startswith("--optShapes=input:2x") for a in given) == open_batch
    assert engine.flags["settings"]["typing"] == ("strong" if version == "11.1" else "weak")
    assert files.read_value(folder / "engine.json", Engine) == engine
    assert engine_file.plan_version(engine.path) == (
        None if version == "8.5" else f"{VERSIONS[version]}.26"
    )
    left = {p.name for p in folder.iterdir()}
    assert left == {
        "model.onnx", "engine.plan", "engine.json", "engine.layers.json", "timing.cache",
    }  # fmt: skip


@pytest.mark.parametrize("version", VERSIONS)
def test_precisions_by_flag_or_by_file(tmp_path, play, version):
    play(version)
    engine = trtexec.build(half(tmp_path / "half.onnx"), tmp_path / "h", "fp16")
    types = json.loads(Path(engine.path).read_bytes()[28:])["types"]
    assert types == {"8.5": "--fp16", "8.6": "--fp16", "10.3": "strong", "11.1": "strong"}[version]
    plain = save_conv(tmp_path / "plain.onnx")
    if version == "11.1":
        with pytest.raises(ConfigError, match="takes the precision from the ONNX file"):
            trtexec.build(plain, tmp_path / "p", "fp16")
    else:
        engine = trtexec.build(plain, tmp_path / "p", "fp16")
        assert json.loads(Path(engine.path).read_bytes()[28:])["types"] == "--fp16"
    with pytest.raises(ConfigError, match="quantisation nodes"):
        trtexec.build(plain, tmp_path / "p", "int8")
    assert not json.loads(Path(engine.path).read_bytes()[28:])["tf32"]


def test_a_target_says_the_rest_and_the_precision_is_overruled(tmp_path, play, model):
    play("10.3")
    board = load_target("jetson-orin-nano-4gb")
    engine = trtexec.build(model, tmp_path / "out", target=board)
    assert engine.precision == "fp16"
    assert "--memPoolSize=workspace:1024" in engine.flags["arguments"]
    engine = trtexec.build(model, tmp_path / "out", "fp32", target=board)
    assert engine.precision == "fp32"
    assert "--memPoolSize=workspace:1024" in engine.flags["arguments"]
    assert engine.flags["target"] == {"precision": "fp32", "batch": 1, "memory_bytes": 4 << 30}


def test_a_board_has_its_own_memory_where_no_target_says_so(tmp_path, play, model, monkeypatch):
    """The device program knows no target's memory when it only builds."""
    play("10.3")
    monkeypatch.setattr("mint_deploy._trt_build.shares_memory", lambda: True)
    monkeypatch.setattr("mint_deploy._trt_build.memory", lambda: (4 << 30, 0))
    engine = trtexec.build(model, tmp_path / "out")
    assert "--memPoolSize=workspace:1024" in engine.flags["arguments"]


def test_the_device_program_builds(tmp_path, capsys, play):
    calls = play("10.3")
    bundle = make_bundle(tmp_path / "b", runtime="tensorrt", precision="fp16")
    code, out, err = here(capsys, "build", bundle)
    assert code == 0, err
    assert "slim: engine.plan for tensorrt, fp16, by tensorrt 10.3.0" in out
    assert "--fp16" in calls()[-1]
    code, _, err = here(capsys, "build", bundle, "--precision", "fp32")
    assert code == 0, err
    assert "--fp16" not in calls()[-1]


# ---------------------------------------------------------------- several builds


def test_several_builds_keep_the_fastest_and_report_the_spread(tmp_path, play, model):
    calls = play("10.3", times_ms="3.0,2.0,2.5", state=tmp_path / "state")
    said = []
    engine = trtexec.build(
        model, tmp_path / "out", target={"batch": 1}, builds=3, progress=lambda *s: said.append(s)
    )
    found = [b["median_ms"] for b in engine.flags["builds"]]
    assert found == pytest.approx([3.0, 2.0, 2.5], rel=0.02)
    assert engine.flags["spread"] == pytest.approx(0.5, abs=0.05)
    assert engine.sha256 == engine.flags["builds"][1]["sha256"]
    assert engine.sha256 == files.sha256(engine.path)
    assert [s[:2] for s in said] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    measured = [c for c in calls() if any(a.startswith("--loadEngine") for a in c)]
    assert len(measured) == 3
    assert all("--noDataTransfers" in c and "--shapes=input:1x3x8x8" in c for c in measured)
    caches = {a for c in calls() for a in c if a.startswith("--timingCacheFile")}
    assert len(caches) == 3, "each starts without a cache, or they would choose alike"


def test_one_build_starts_from_the_cache_that_is_there(tmp_path, play, model, monkeypatch):
    play("10.3")
    first = trtexec.build(model, tmp_path / "out")
    seen = []
    original = trtexec.Trtexec.build

    def build(self, job):
        seen.append(job.cache.read_bytes() if job.cache.is_file() else None)
        return original(self, job)

    monkeypatch.setattr(trtexec.Trtexec, "build", build)
    kept = (tmp_path / "out" / "timing.cache").read_bytes()
    trtexec.build(model, tmp_path / "out")
    assert seen == [kept]
    play("11.1")
    trtexec.build(model, tmp_path / "out")
    assert seen[1] is None, "the cache of another release"
    assert first.flags["timing_cache"]["file"] == "timing.cache"


# ---------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("version", VERSIONS)
def test_an_operator_that_the_parser_lacks_is_named_with_its_layer(tmp_path, play, version):
    play(version, lacks="GlobalAveragePool")
    loaded = onnx.load(save_conv(tmp_path / "model.onnx"))
    loaded.graph.node[-2].name = "head/pool"
    onnx.save(loaded, tmp_path / "model.onnx")
    with pytest.raises(ModelError, match=r"no GlobalAveragePool \(node 4, 'head/pool'\)") as caught:
        trtexec.build(tmp_path / "model.onnx", tmp_path / "out")
    assert f"TensorRT {VERSIONS[version]} could not build model.onnx" in str(caught.value)
    assert list((tmp_path / "out").iterdir()) == [], "nothing is left of it"


def test_a_build_that_the_system_ended_has_numbers(tmp_path, play, model, monkeypatch):
    play("8.5", memory="kill")
    monkeypatch.setattr("mint_deploy._trt_build.memory", lambda: (4 << 30, 2 << 30))
    with pytest.raises(MintDeployError, match=r"want of memory \(signal 9\)") as caught:
        trtexec.build(model, tmp_path / "out", target={"memory_bytes": 4 << 30})
    text = str(caught.value)
    assert "this machine has 4.0 GiB and 2.0 GiB of swap" in text
    assert "1024 MiB of scratch memory" in text
    assert "add 2 GiB of swap (sudo fallocate -l 2G /swapfile" in text
    assert "workspace_mib = 512" in text


def test_ctrl_c_ends_trtexec_too_and_leaves_nothing(tmp_path, play, model):
    pid = tmp_path / "pid"
    play("10.3", sleep=pid)
    code = (
        f"from mint_deploy import trtexec; trtexec.build({str(model)!r}, {str(tmp_path / 'out')!r})"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 60
        while not (pid.is_file() and pid.read_text()) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert "KeyboardInterrupt" in process.communicate(timeout=60)[1]
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    assert list((tmp_path / "out").iterdir()) == []


def test_memory_of_the_gpu_that_ran_out(tmp_path, play, model, monkeypatch):
    play("10.3", memory="gpu")
    monkeypatch.setattr("mint_deploy._trt_build.memory", lambda: (8 << 30, 0))
    with pytest.raises(MintDeployError, match="one tensor alone is larger than the memory"):
        trtexec.build(model, tmp_path / "out")


def test_a_build_that_fails_keeps_the_engine_that_is_there(tmp_path, play, model, monkeypatch):
    play("10.3")
    engine = trtexec.build(model, tmp_path / "out")
    monkeypatch.setenv("DOUBLE_MEMORY", "gpu")
    with pytest.raises(MintDeployError):
        trtexec.build(model, tmp_path / "out")
    monkeypatch.delenv("DOUBLE_MEMORY")
    assert files.sha256(engine.path) == engine.sha256
    assert engine_file.read(tmp_path / "out") == engine


def test_files_that_are_no_model(tmp_path, play):
    play("10.3")
    with pytest.raises(ModelError, match="no such file"):
        trtexec.build(tmp_path / "absent.onnx", tmp_path / "out")
    (tmp_path / "text.onnx").write_text("this is no model")
    with pytest.raises(ModelError, match="is not an ONNX file, or was cut short"):
        trtexec.build(tmp_path / "text.onnx", tmp_path / "out")


def test_an_open_size_is_refused_before_anything_runs(tmp_path, play):
    calls = play("10.3")
    loaded = onnx.load(save_conv(tmp_path / "model.onnx"))
    loaded.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    onnx.save(loaded, tmp_path / "model.onnx")
    with pytest.raises(ModelError, match="leaves dimension 2 open"):
        trtexec.build(tmp_path / "model.onnx", tmp_path / "out")
    assert calls() == [["--help"]]


@pytest.mark.parametrize("version", ["8.5", "8.6", "10.3"])
def test_the_accelerator_and_what_fell_back(tmp_path, play, version):
    play(version, dla="2", not_on_dla="GlobalAveragePool,Flatten")
    model = save_conv(tmp_path / "model.onnx", batch=1)
    engine = trtexec.build(model, tmp_path / "out", target={"precision": "fp16", "dla_core": 1})
    assert engine.flags["fell_back"] == ["pooled", "output"]
    assert {"--useDLACore=1", "--allowGPUFallback"} <= set(engine.flags["arguments"])
    plain = trtexec.build(model, tmp_path / "gpu", target={"precision": "fp16"})
    assert "fell_back" not in plain.flags
    with pytest.raises(MintDeployError, match="Cannot create DLA engine, 2 not available"):
        trtexec.build(model, tmp_path / "out", target={"precision": "fp16", "dla_core": 2})


# ---------------------------------------------------------------- measure


@pytest.mark.parametrize("version", VERSIONS)
def test_measuring_reads_the_exports(tmp_path, play, model, version):
    calls = play(version, times_ms="2.0")
    engine = trtexec.build(model, tmp_path / "out", target={"batch": 2, "max_batch": 4})
    times, layers = trtexec.measure(engine, seconds=1)
    assert len(times.compute_ns) == 662
    assert min(times.compute_ns) >= 1_980_000
    assert times.latency_ns == times.compute_ns
    assert "--shapes=input:2x3x8x8" in calls()[-1]
    assert [row.layer for row in layers] == ["c0", "c1", "pooled", "output"]
    assert [(row.op, row.width) for row in layers][:2] == [("Conv", 8), ("Conv", 8)]
    assert sum(row.ns for row in layers) == pytest.approx(2e6, rel=0.01)
    whole, _ = trtexec.measure(engine, batch=4, transfers=True, seconds=1)
    assert "--shapes=input:4x3x8x8" in calls()[-1]
    assert min(b - a for a, b in zip(whole.compute_ns, whole.latency_ns, strict=True)) > 390_000


def test_an_engine_of_another_release_is_refused_with_the_command(tmp_path, play, model):
    play("10.3")
    engine = trtexec.build(model, tmp_path / "out", "fp16")
    play("11.1")
    with pytest.raises(
        EngineMismatch, match=r"'TensorRT 10\.3\.0', found 'TensorRT 11\.1\.0'"
    ) as caught:
        trtexec.measure(engine)
    assert "tensorrt.build(" in str(caught.value)
    assert "fp16" in str(caught.value)


def test_what_trtexec_says_of_a_foreign_plan_is_read(tmp_path, play, model):
    """The record says nothing of the version, so the program itself has to find out."""
    play("10.3")
    engine = trtexec.build(model, tmp_path / "out")
    play("11.1")
    program = trtexec.Trtexec()
    with pytest.raises(
        EngineMismatch, match=r"built for TensorRT '10\.3\.0\.26', found '11\.1\.0\.26'"
    ):
        program.times(Path(engine.path), {}, None, seconds=1)


def test_an_altered_plan_is_not_measured(tmp_path, play, model):
    play("10.3")
    engine = trtexec.build(model, tmp_path / "out")
    plan = Path(engine.path)
    plan.write_bytes(plan.read_bytes()[:-9])
    with pytest.raises(EngineMismatch, match="the plan with SHA-256"):
        trtexec.measure(engine)
    plan.unlink()
    with pytest.raises(DataError, match="there is no engine"):
        trtexec.measure(engine)


# ---------------------------------------------------------------- the double itself


@pytest.mark.parametrize(
    ("version", "wrong"),
    [
        ("8.5", "--skipInference"), ("8.5", "--infStreams=1"), ("8.5", "--builderOptimizationLevel=3"),
        ("8.5", "--memPoolSize=workspace:1G"), ("8.6", "--stronglyTyped"), ("10.3", "--buildOnly"),
        ("10.3", "--workspace=1"), ("10.3", "--explicitBatch"), ("11.1", "--fp16"), ("11.1", "--int8"),
        ("11.1", "--best"), ("11.1", "--calib=x"), ("10.3", "--noCudaGraph"),
        ("10.3", "--includeDataTransfers"), ("10.3", "--sparsity=some"), ("10.3", "--percentile=101"),
    ],
)  # fmt: skip
def test_the_double_refuses_what_the_release_refuses(tmp_path, play, model, version, wrong):
    play(version)
    code, log = trtexec.Trtexec()._run([f"--onnx={model}", wrong])
    assert code == 1
    assert "[E]" in log
    assert f"&&&& FAILED TensorRT.trtexec {banner(version)}" in log
