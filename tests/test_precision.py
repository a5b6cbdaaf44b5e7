"""--precision in a run: which files are written, what is recorded of them, and when they go again."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny

from mint_deploy import files, pipeline
from mint_deploy import precision as stage
from mint_deploy.artifacts import ExportedModel
from mint_deploy.errors import ConfigError
from mint_deploy.job import Job
from mint_deploy.progress import Progress
from mint_deploy.quantize import Quantized
from mint_deploy.quantize.network import Network
from mint_deploy.runfolder import RunFolder
from mint_deploy.settings import Request, restore
from mint_deploy.target import Target, load_target

RUN = {**tiny.SMALL, "recover": "bn", "seed": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in int8 up to its export."""
    place = tmp_path_factory.mktemp("run")
    tiny.write(place)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        pipeline.compress(**RUN, precision="int8", int8_max_drop=100.0, out="int8", until="export")
    return place


def record(run: Path, label: str) -> tuple[Quantized, ExportedModel]:
    body = files.read_json(run / "precision.json", kind="Precision")["networks"][label]
    return (
        files.decode(Quantized, body["quantized"]),
        files.decode(ExportedModel, body["exported"]),
    )


def test_both_networks_are_written_and_recorded(folder: Path) -> None:
    run = folder / "int8"
    body = files.read_json(run / "precision.json", kind="Precision")
    assert (body["precision"], body["max_drop"], body["kept"]) == ("int8", 100.0, True)
    for label, name in (("dense", "dense"), ("slim", "model")):
        made, exported = record(run, label)
        path = run / f"{name}.int8.onnx"
        assert made.sha256 == exported.sha256 == files.sha256(path)
        assert made.source_sha256 == files.sha256(run / f"{name}.onnx")
        assert made.scheme == "u8s8-reduced"
        assert (made.after.measure, made.before.samples) == ("top1", made.after.samples)
        assert exported.metadata["precision"] == "int8"
        assert made.path == exported.path == path.name, "the record is the same in any folder"
        assert 0 < exported.max_error < 0.2
        operators = {node.op_type for node in onnx.load(path).graph.node}
        assert {"QuantizeLinear", "DequantizeLinear"} <= operators
    assert not list(run.glob("*.fp16.onnx"))


def test_the_judged_images_are_those_of_validation(folder: Path) -> None:
    made, _ = record(folder / "int8", "dense")
    steps = files.read_json(folder / "int8/accuracy.json", kind="AccuracySteps")["steps"]
    assert made.before.top1 == pytest.approx(steps[0]["validation"]["top1"])
    assert made.before.samples == steps[0]["validation"]["samples"]


def test_the_slim_file_still_tells_the_classes_apart(folder: Path) -> None:
    data = np.load(folder / "data.npz")
    x = {"input": data["x"]}
    run = folder / "int8"
    float_, int8 = (Network(run / name).infer(x) for name in ("model.onnx", "model.int8.onnx"))
    same = next(iter(float_.values())).argmax(1) == next(iter(int8.values())).argmax(1)
    assert same.mean() > 0.95


# ---------------------------------------------------------------- once more


@contextlib.contextmanager
def at_work(run: Path, progress: Progress | None = None, **changes: object) -> Iterator[Job]:
    """The run as its stages see it, with other settings."""
    with contextlib.closing(RunFolder.open(run)) as opened:
        request = restore(opened.manifest.settings, run, changes)
        yield Job(opened, request, progress or Progress(), {})


def lowered(run: Path, progress: Progress | None = None, **changes: object) -> dict[str, Quantized]:
    deploy = files.read_json(run / "deploy.json", kind="Deploy")
    exported = {label: files.decode(ExportedModel, deploy[label]) for label in ("dense", "slim")}
    with at_work(run, progress, **changes) as job:
        return stage.lower(job, exported)


@pytest.fixture
def run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run, in its place."""
    monkeypatch.chdir(folder)
    copy = folder / tmp_path.name
    shutil.copytree(folder / "int8", copy)
    return copy


def test_other_precisions_replace_the_files(run: Path) -> None:
    lowered(run, precision="fp16")
    assert sorted(p.name for p in run.glob("*.*.onnx")) == ["dense.fp16.onnx", "model.fp16.onnx"]
    made, exported = record(run, "slim")
    assert (made.precision, exported.metadata["precision"]) == ("fp16", "fp16")
    assert min(made.snr_db.values()) > 40
    assert lowered(run, precision="fp32") == {}
    assert not list(run.glob("*.*.onnx"))
    assert not (run / "precision.json").exists()
    assert not (run / "calibration.json").exists()


def test_doing_it_again_finds_the_ranges_and_gives_the_same(run: Path) -> None:
    ranges = (run / "calibration.json").read_bytes()
    before = files.sha256(run / "model.int8.onnx")
    told: list[str] = []

    class Told(Progress):
        def _step(self, done: float, total: float, note: str) -> None:
            told.append(note)

    made = lowered(run, Told())
    assert made["slim"].sha256 == files.sha256(run / "model.int8.onnx") == before
    assert (run / "calibration.json").read_bytes() == ranges
    assert any("the slim network in int8: judging" in note for note in told)
    assert not any("samples, minmax" in note for note in told), "it was calibrated once more"


def test_a_broken_promise_is_told_and_the_file_kept(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = stage.quantize_file

    def broken(*given, **how):
        made = real(*given, **how)
        return dataclasses.replace(made, kept=False, verdict="broken: too much was lost")

    monkeypatch.setattr(stage, "quantize_file", broken)
    progress = Progress()
    lowered(run, progress)
    assert "the slim network in int8: broken: too much was lost" in progress.warnings
    assert files.read_json(run / "precision.json", kind="Precision")["kept"] is False
    assert (run / "model.int8.onnx").is_file()


def test_the_target_of_a_run_is_that_of_the_precision(run: Path) -> None:
    with at_work(run) as job:
        assert job.target.precision == "int8"
    with at_work(run, precision="fp16") as job:
        assert job.target.precision == "fp16"
    assert load_target(run / "target.toml").precision == "fp32"


def test_another_precision_does_the_export_alone(run: Path) -> None:
    before = files.sha256(run / "model.onnx")
    result = pipeline.advance(run, "export", changes={"precision": "fp16"})
    assert result.done == ("export",)
    assert files.sha256(run / "model.onnx") == before
    assert record(run, "slim")[0].precision == "fp16"
    assert pipeline.advance(run, "export", changes={}).done == ()


# ---------------------------------------------------------------- what has to stand in the file


@pytest.mark.parametrize(
    ("runtime", "tensorrt", "precision", "file"),
    [
        ("onnxruntime", None, "fp32", False),
        ("onnxruntime", None, "fp16", True),
        ("onnxruntime", None, "int8", True),
        ("tensorrt", "8.5", "fp16", False),
        ("tensorrt", "10.3", "fp16", False),
        ("tensorrt", "11.4", "fp16", True),
        ("tensorrt", "99.1", "fp16", True),
        ("tensorrt", None, "fp16", True),
        ("tensorrt", "10.3", "int8", True),
        ("tensorrt", "10.3", "fp32", False),
    ],
)
def test_fp16_is_a_flag_where_tensorrt_takes_one(
    runtime: str, tensorrt: str | None, precision: str, file: bool
) -> None:
    target = Target(name="t", family="gpu", runtime=runtime, tensorrt=tensorrt, precision=precision)
    assert stage.in_the_file(target) is file


def test_the_shipped_jetson_keeps_its_flag() -> None:
    target = load_target("jetson")
    assert target.precision == "fp16"
    assert not stage.in_the_file(target)


def test_what_is_delivered_is_in_the_targets_precision() -> None:
    run, target = Path("run"), load_target("jetson")
    assert stage.delivered(run, target)["slim"] == run / "model.onnx"
    int8 = dataclasses.replace(target, precision="int8")
    assert stage.delivered(run, int8) == {
        "dense": run / "dense.int8.onnx",
        "slim": run / "model.int8.onnx",
    }


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"precision": "int4"}, "--precision is 'int4', expected one of fp32, fp16, int8"),
        ({"int8_max_drop": -1.0}, "--int8-max-drop is -1"),
        ({"int8_max_drop": 101.0}, "points of accuracy from 0 to 100"),
        ({"calibration": "max"}, "--calibration is 'max', expected one of minmax"),
    ],
)
def test_settings_are_checked(how, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Request(**how)


def test_the_names_of_settings_are_those_of_the_tools() -> None:
    from mint_deploy import settings, target
    from mint_deploy.quantize import METHODS, PRECISIONS

    assert set(settings.CALIBRATIONS) == set(METHODS)
    assert tuple(settings.PRECISIONS) == tuple(target.PRECISIONS)
    assert set(PRECISIONS) == set(target.PRECISIONS) - {"fp32"}
