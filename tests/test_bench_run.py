"""The bench of a run: what it writes beside the latency, and what it writes where that fails or has no time."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx_models import save_conv
from report_runs import timed

from mint_deploy import bench, bench_run, files
from mint_deploy.artifacts import Comparison
from mint_deploy.bench import Settings, read
from mint_deploy.bench_run import BATCHES, CALL_S, MEASURE_S, START_S, measure_run, sweep_batches
from mint_deploy.errors import MintDeployError, ModelError
from mint_deploy.onnx_figures import FIGURES
from mint_deploy.report.folder import Folder
from mint_deploy.report.timing import latency
from mint_deploy.target import Target


class Run:
    """Just so much of a run folder as the bench needs."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __truediv__(self, name: str) -> Path:
        return self.path / name


@pytest.fixture
def job(tmp_path, monkeypatch):
    save_conv(tmp_path / "dense.onnx", channels=16, batch=1)
    save_conv(tmp_path / "model.onnx", channels=8, batch=1)
    whole = bench.interleave
    quick = Settings(warmup_s=0.0, warmup_count=2, min_s=0.0, min_count=10, precision=1e9)

    def interleave(paths, **more):
        assert more.pop("half_width") == bench_run.HALF_WIDTH
        return whole(paths, **more, half_width=None, settings=quick)

    monkeypatch.setattr(bench, "interleave", interleave)
    monkeypatch.setattr(bench_run, "BATCHES", (1, 4))
    monkeypatch.setattr(bench_run, "SWEEP_RESTARTS", 1)
    told: list[tuple[float, float, str]] = []
    return SimpleNamespace(
        run=Run(tmp_path),
        target=Target(name="here", family="cpu"),
        request=SimpleNamespace(seed=0),
        progress=SimpleNamespace(step=lambda *step: told.append(step)),
        told=told,
    )


@pytest.fixture
def patient(monkeypatch):
    """Time enough for the rest, however busy the machine is."""
    monkeypatch.setattr(bench_run, "REST_S", 90.0)
    monkeypatch.setattr(bench_run, "REST_SHARE", 0.9)


@pytest.fixture
def canned(monkeypatch):
    """The comparison as if it had been made: it is not what these tests are of."""
    found = [timed("dense", 0.2), timed("slim", 0.1)]
    compared = [
        Comparison(a="dense", b="slim", ratio=0.5, low=0.4, high=0.6, confidence=0.95, restarts=5)
    ]
    monkeypatch.setattr(bench, "interleave", lambda *_, **__: (found, compared))
    return found, compared


def by_scenario(path: Path) -> dict[str, list]:
    found: dict[str, list] = {}
    for m in read(path):
        found.setdefault(m.task.scenario, []).append(m)
    return found


def test_everything_there_is_to_know_is_written(job, patient):
    measure_run(job, budget_s=100.0, restarts=2)
    found = by_scenario(job.run.path)
    dense, slim = found["single_stream"]
    assert (dense.task.label, slim.task.label) == ("dense", "slim")
    for m, name in ((dense, "dense.onnx"), (slim, "model.onnx")):
        assert set(m.figures) == set(FIGURES)
        assert m.figures["file_bytes"] == (job.run / name).stat().st_size
        assert {t.layer for t in m.layers} >= {"w0", "w1"}
        assert "layers" not in m.nulls
        assert "knee" not in m.nulls
    assert [t.width for t in dense.layers if t.layer == "w1"] == [16]
    swept = [(m.task.label, m.task.batch) for m in found["offline"]]
    assert swept == [("dense", 1), ("dense", 4), ("slim", 1), ("slim", 4)]
    for m in found["offline"]:
        assert dict(m.task.flags)["batch"] == "opened in a copy of the file"
        assert m.figures == (dense if m.task.label == "dense" else slim).figures
        assert m.machine == dense.machine
    notes = " ".join(note for _, _, note in job.told)
    assert "where the time goes in slim" in notes
    assert "dense over the batch" in notes
    # and the report takes each for what it is
    section = latency(Folder(job.run.path))
    assert section is not None
    assert section["ratio"]["restarts"] == 2
    assert [r["scenario"] for r in section["runs"]].count("single_stream") == 2
    sweeps = {(s["label"], len(s["points"])) for s in section["sweeps"]}
    assert sweeps == {("dense", 2), ("slim", 2)}


def test_files_in_the_targets_precision_take_turns_with_the_float32_ones(job):
    job.target = replace(job.target, precision="int8")
    for name in ("dense", "model"):
        shutil.copy(job.run / f"{name}.onnx", job.run / f"{name}.int8.onnx")
    measure_run(job, budget_s=1.0, restarts=2)
    found = by_scenario(job.run.path)["single_stream"]
    labels = ["dense", "slim", "dense int8", "slim int8"]
    assert [m.task.label for m in found] == labels
    assert [m.task.precision for m in found] == ["fp32", "fp32", "int8", "int8"]
    assert found[3].figures["file_bytes"] == (job.run / "model.int8.onnx").stat().st_size
    kept = files.read_json(job.run / "comparison.json", kind="Comparisons")["comparisons"]
    assert [(c["a"], c["b"]) for c in kept] == [("dense", label) for label in labels[1:]]


def test_where_the_targets_runtime_is_not_here_only_the_float32_files_are_measured(job):
    job.target = replace(job.target, runtime="tensorrt", precision="int8", tensorrt="10.3")
    shutil.copy(job.run / "model.onnx", job.run / "model.int8.onnx")
    measure_run(job, budget_s=1.0, restarts=2)
    found = by_scenario(job.run.path)["single_stream"]
    assert [(m.task.label, m.task.runtime, m.task.precision) for m in found] == [
        ("dense", "onnxruntime", "fp32"),
        ("slim", "onnxruntime", "fp32"),
    ]


def test_a_small_budget_is_kept_and_what_it_has_no_time_for_says_so(job):
    measure_run(job, budget_s=1.0, restarts=2)
    found = by_scenario(job.run.path)
    assert set(found) == {"single_stream"}
    for m in found["single_stream"]:
        assert "time budget" in m.nulls["layers"]
        assert "time budget" in m.nulls["knee"]
        assert set(m.figures) == set(FIGURES)


@pytest.mark.parametrize("broken", ["layer_times", "open_batch"])
def test_what_fails_costs_itself_alone(job, monkeypatch, patient, canned, broken):
    def fail(*_, **__):
        raise ModelError("it does not work")

    monkeypatch.setattr(bench_run, broken, fail)
    measure_run(job, budget_s=100.0, restarts=2)
    found = by_scenario(job.run.path)
    key = {"layer_times": "layers", "open_batch": "knee"}[broken]
    for m in found["single_stream"]:
        assert "it does not work" in m.nulls[key]
        assert bool(m.layers) == (broken == "open_batch")
    assert ("offline" in found) == (broken == "layer_times")


@pytest.mark.parametrize("when", ["in turns", "after"])
def test_an_interrupt_keeps_what_was_measured(job, monkeypatch, patient, canned, when):
    def stop(*_, **__):
        raise KeyboardInterrupt if when == "after" else bench.MeasuringStopped("stopped", *canned)

    if when == "after":
        monkeypatch.setattr(bench_run, "layer_times", stop)
    else:
        monkeypatch.setattr(bench, "interleave", stop)
    with pytest.raises(KeyboardInterrupt):
        measure_run(job, budget_s=100.0, restarts=2)
    found = by_scenario(job.run.path)
    assert len(found["single_stream"]) == 2
    assert all(set(m.figures) == set(FIGURES) for m in found["single_stream"])
    assert files.read_json(job.run / "comparison.json", kind="Comparisons")["comparisons"]


def test_a_process_that_dies_is_told(job):
    (job.run / "model.onnx").write_bytes(b"\xff")
    with pytest.raises(MintDeployError):
        measure_run(job, budget_s=2.0, restarts=2)


# ---------------------------------------------------------------- what there is time for

seconds = st.floats(1e-6, 10.0)


@given(seconds, st.floats(-5, 60), st.floats(START_S, 5), st.integers(1, 3))
def test_a_sweep_fits_its_time_or_says_why_there_is_none(per_sample, left, start, count):
    batches, reason = sweep_batches(per_sample, left, start, count)
    assert bool(batches) != bool(reason)
    if batches:
        assert batches == list(BATCHES[: len(batches)])
        assert len(batches) >= 2
        assert all(b * per_sample <= CALL_S for b in batches)
        assert count * ((len(batches) + 1) * start + len(batches) * MEASURE_S) <= left * (1 + 1e-9)


@given(seconds, st.floats(0, 60), st.floats(START_S, 5))
def test_more_time_never_sweeps_less(per_sample, left, start):
    sizes = [len(sweep_batches(per_sample, left + more, start)[0]) for more in (0, 5, 50)]
    assert all(a <= b for a, b in itertools.pairwise(sizes))


def test_a_quiet_machine_and_a_small_network_have_the_whole_sweep():
    assert sweep_batches(0.2e-3, 9.0, 0.4) == (list(BATCHES), "")
    assert "longer than" in sweep_batches(0.1, 60.0, 0.4)[1]
    assert "time budget" in sweep_batches(0.2e-3, 1.0, 0.4)[1]
