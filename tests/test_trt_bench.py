"""bench through trtexec, where Python has no TensorRT: through the contract double of each release."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from bundles import here, make_bundle
from trtexec_double import VERSIONS, install

from mint_deploy import _trt_bench, bench, files, trtexec
from mint_deploy.artifacts import TensorSpec
from mint_deploy.errors import ConfigError
from mint_deploy.parity import Parity, write_parity

RELEASES = ["8.5", "10.3", "11.1"]


@pytest.fixture
def play(tmp_path, monkeypatch):
    """Put the trtexec of a release on PATH, without the Python package; returns the calls it got."""

    def make(version, **world):
        install(tmp_path / f"trt-{version}", version)
        monkeypatch.setenv("PATH", f"{tmp_path / f'trt-{version}'}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setenv("DOUBLE_CALLS", str(tmp_path / "calls"))
        for name, value in world.items():
            monkeypatch.setenv(f"DOUBLE_{name.upper()}", str(value))
        monkeypatch.setattr("mint_deploy.runtimes.tensorrt.missing", lambda: "not installed")
        return lambda: [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]

    return make


def flag(call: list[str], name: str) -> str:
    return next((a.partition("=")[2] for a in call if a.startswith(f"--{name}=")), "")


@pytest.mark.parametrize("version", RELEASES)
def test_the_device_program_builds_and_measures_through_trtexec(tmp_path, capsys, play, version):
    # the first engine that is built takes 3 ms a query, the second 2 ms
    calls = play(version, times_ms="3.0,2.0", state=tmp_path / "state")
    bundle = make_bundle(tmp_path / "b c", runtime="tensorrt", precision="fp32", batch=2)
    code, out, err = here(capsys, "bench", bundle, "--restarts", 3, "--seconds", 24)
    assert code == 0, err
    assert "built and measured through trtexec" in out
    assert "onnxruntime" not in out

    measured = bench.read(bundle)
    assert [m.task.label for m in measured] == ["dense", "slim"]
    for m, ms in zip(measured, (3.0, 2.0), strict=True):
        assert (m.task.runtime, m.task.precision, m.task.batch) == ("tensorrt", "fp32", 2)
        assert m.task.inputs == (TensorSpec(name="input", shape=(2, 3, 8, 8)),)
        assert [len(restart) for restart in m.restarts_ns] == [662] * 3
        assert np.median(m.restarts_ns) == pytest.approx(ms * 1e6, rel=0.02)
        flags = dict(m.task.flags)
        assert (flags["measured_by"], flags["time"]) == ("trtexec", "GPU")
        assert (flags["transfers"], flags["tensorrt"]) == ("left out", VERSIONS[version])
        assert [row.layer for row in m.layers] == ["c0", "c1", "pooled", "output"]
        engine = files.read_json(
            next((bundle / "engines").glob(f"{'dense' if ms == 3.0 else 'model'}-*/engine.json")),
            kind="Engine",
        )
        assert m.task.sha256 == engine["sha256"]
    kept = files.read_json(bundle / "comparison.json", kind="Comparisons")["comparisons"]
    assert (kept[0]["a"], kept[0]["b"], kept[0]["restarts"]) == ("dense", "slim", 3)
    assert kept[0]["ratio"] == pytest.approx(2 / 3, rel=0.02)
    assert kept[0]["low"] <= kept[0]["ratio"] <= kept[0]["high"]
    assert re.search(r"slim takes .* of dense's time", out)

    runs = [c for c in calls() if flag(c, "loadEngine")]
    order = [Path(flag(c, "loadEngine")).parent.name.split("-")[0] for c in runs]
    assert order == ["dense", "model", "model", "dense", "dense", "model"], "A B, B A, A B"
    assert all(flag(c, "shapes") == "input:2x3x8x8" for c in runs)
    assert {flag(c, "duration") for c in runs} == {"2"}, "24 s for 3 restarts of 2, and the layers"


def test_what_that_way_cannot_give_is_said(tmp_path, capsys, play):
    play("10.3")
    bundle = make_bundle(tmp_path / "b", runtime="tensorrt", precision="fp16")
    code, out, err = here(capsys, "bench", bundle, "--restarts", 2, "--seconds", 1)
    assert code == 0, err
    for m in bench.read(bundle):
        assert m.task.precision == "fp16"
        assert "were not compared with PyTorch's" in m.nulls["parity"]
        assert "without the call from Python" in m.nulls["host_ns"]
        for name in ("peak_rss_bytes", "import_rss_bytes", "gpu_bytes", "energy_mj"):
            assert getattr(m, name) is None
            assert "trtexec" in m.nulls[name]
        assert (m.load_ns, m.warmup_ns) == ((), ())
        assert {m.nulls["parity"], m.nulls["host_ns"]} <= set(m.doubts)
    for words in ("not compared with PyTorch's", "the GPU's alone", "not by blocks", "2 restarts"):
        assert f"doubt: {words}" in out or words in out
    # and it is true: wrong outputs go unnoticed
    x = np.zeros((5, 3, 8, 8), np.float32)
    wrong = {n: {"output": np.full((5, 8), 7.0, np.float32)} for n in ("dense", "slim")}
    write_parity(bundle / "parity.npz", Parity(inputs={"input": x}, outputs=wrong))
    assert here(capsys, "bench", bundle, "--restarts", 2, "--seconds", 1)[0] == 0


def test_engines_are_built_once(tmp_path, capsys, play):
    calls = play("10.3")
    bundle = make_bundle(tmp_path / "b", runtime="tensorrt", precision="fp16")
    for _ in range(2):
        assert here(capsys, "bench", bundle, "--restarts", 2, "--seconds", 1)[0] == 0
    assert len([c for c in calls() if flag(c, "saveEngine")]) == 2


def test_it_stands_in_where_only_trtexec_is_here(play, monkeypatch, tmp_path):
    play("10.3")
    assert _trt_bench.stands_in("tensorrt")
    assert not _trt_bench.stands_in("onnxruntime")
    with monkeypatch.context() as patch:
        patch.setattr("mint_deploy.runtimes.tensorrt.missing", lambda: None)
        assert not _trt_bench.stands_in("tensorrt"), "the Python package measures whole calls"
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(trtexec, "_JETPACK", tmp_path / "absent")
    assert not _trt_bench.stands_in("tensorrt")


def test_another_runtime_may_still_be_asked_for(tmp_path, capsys, play):
    play("10.3")
    bundle = make_bundle(tmp_path / "b", runtime="tensorrt", precision="fp16")
    given = ("--restarts", 2, "--seconds", 1, "--runtime", "onnxruntime")
    code, _, err = here(capsys, "bench", bundle, *given)
    assert code == 0, err
    found = {(m.task.runtime, m.task.precision) for m in bench.read(bundle)}
    assert found == {("onnxruntime", "fp32")}, "the file is float32, whatever flag TensorRT gets"


def test_a_release_that_does_not_take_the_target_says_so(tmp_path, capsys, play):
    play("11.1")
    bundle = make_bundle(tmp_path / "b", runtime="tensorrt", precision="fp16")
    code, _, err = here(capsys, "bench", bundle, "--restarts", 2, "--seconds", 1)
    assert code == 2
    assert "takes the precision from the ONNX file" in err
    assert not (bundle / "measurements.jsonl").exists()


def pair(tmp_path):
    bundle = make_bundle(tmp_path / "b", runtime="tensorrt")
    spec = (TensorSpec(name="input", shape=(-1, 3, 8, 8)),)
    return {
        "paths": {"dense": bundle / "dense.onnx", "slim": bundle / "model.onnx"},
        "target": {"precision": "fp32"},
        "inputs": {"dense": spec, "slim": spec},
        "batch": 1,
        "budget_s": 1.0,
    }


@pytest.mark.parametrize("change", [{"restarts": 1}, {"budget_s": 0.0}, {"batch": 0}])
def test_settings_that_make_no_sense(tmp_path, play, change):
    play("10.3")
    with pytest.raises(ConfigError):
        _trt_bench.through_trtexec(**{**pair(tmp_path), **change})


@pytest.mark.parametrize(("after", "whole"), [(5, 2), (3, None)])
def test_ctrl_c_keeps_whole_restarts_or_is_passed_on(tmp_path, play, monkeypatch, after, whole):
    play("10.3")
    real, seen = trtexec.measure, []

    def measure(*given, **how):
        seen.append(given)
        if len(seen) == after:
            raise KeyboardInterrupt
        return real(*given, **how)

    monkeypatch.setattr(trtexec, "measure", measure)
    with pytest.raises(KeyboardInterrupt) as caught:
        _trt_bench.through_trtexec(**pair(tmp_path), restarts=4)
    if whole is None:
        assert not isinstance(caught.value, bench.MeasuringStopped)
        return
    assert isinstance(caught.value, bench.MeasuringStopped)
    assert [len(m.restarts_ns) for m in caught.value.measured] == [whole, whole]
    assert not any(m.converged for m in caught.value.measured)
    assert "interrupted after 2 restarts" in caught.value.compared[0].doubts


def test_progress_goes_from_nothing_to_the_whole(tmp_path, play):
    play("10.3")
    said = []
    _trt_bench.through_trtexec(**pair(tmp_path), restarts=2, progress=lambda *s: said.append(s))
    done = [s[0] for s in said]
    assert done == sorted(done)
    assert (done[0], done[-1], {s[1] for s in said}) == (0, 6, {6})
