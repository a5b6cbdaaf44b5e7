"""The story on real networks: what a run leaves, stage by stage, and taken up to the same bits."""

import dataclasses
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from safetensors.numpy import load_file

import mint_deploy as md
from mint_deploy import files, pipeline, steps
from mint_deploy.artifacts import PruningPlan
from mint_deploy.errors import (
    Interrupted,
    ModelError,
    PlanError,
    PromiseBroken,
    RunFolderError,
    UnknownName,
)
from mint_deploy.progress import Progress
from mint_deploy.runfolder import FILES, RunFolder, read_manifest
from mint_deploy.settings import Request
from mint_deploy.stages import NAMES, STAGES

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny.write(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(steps, "BENCH_S", 1.0)
    monkeypatch.setattr(steps, "RESTARTS", 2)
    return tmp_path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One small run to the end, for a board, with a promise that cannot be broken."""
    place = tmp_path_factory.mktemp("finished")
    tiny.write(place)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(steps, "BENCH_S", 1.0)
        patch.setattr(steps, "RESTARTS", 2)
        request = Request(**tiny.SMALL, target="jetson", out="run", max_accuracy_drop=100.0)
        pipeline.run(request, command=["mint-deploy", "compress"])
    return place


def request(**changes: object) -> Request:
    return Request(**{**tiny.SMALL, "out": "run", **changes})  # type: ignore[arg-type]


def weights(path: Path) -> dict[str, np.ndarray]:
    return load_file(path)


def same_weights(a: Path, b: Path) -> bool:
    one, other = weights(a), weights(b)
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


def kept(path: Path) -> list[int]:
    return [len(g.keep) for g in files.read_value(path / "plan.json", PruningPlan).groups]


# ---------------------------------------------------------------- a whole run


def test_a_finished_run_holds_every_file(finished: Path) -> None:
    run = finished / "run"
    missing = {name for name in FILES if not (run / name).exists()}
    # its weights were not trained on the spot, there is no TensorRT here, and other forms were not asked for
    other = {f"{n}.{p}.onnx" for n in ("dense", "model") for p in ("int8", "fp16")}
    other |= {"precision.json", "calibration.json", "model.pt2"}
    assert missing == {"dense.safetensors", "engine.plan", "timing.cache", *other}
    assert list(read_manifest(run).stages) == list(NAMES)
    assert not list(run.glob(".*.part"))


def test_every_file_in_the_run_folder_is_a_known_one(finished: Path) -> None:
    names = {p.name for p in (finished / "run").iterdir()}
    assert names <= {*FILES, ".lock"}
    assert {n for s in STAGES for n in s.writes if "/" not in n} <= set(FILES)


def test_the_report_says_what_was_done(finished: Path) -> None:
    body = files.read_json(finished / "run" / "report.json", kind="Report")
    assert body["status"]["state"] == "kept"
    assert body["run"]["command"] == "mint-deploy compress"
    rows = {row["key"]: row for row in body["headline"]}
    assert rows["macs"]["ratio"] <= 0.5
    steps = {s["step"]: s for s in body["accuracy"]["steps"]}
    assert list(steps) == ["dense", "cut", "repair", "recover", "control"]
    # the test part is for final figures alone
    assert {name for name, s in steps.items() if s["test"]} == {"dense", "recover", "control"}
    assert body["accuracy"]["promise"]["kept"] is True


def test_figures_for_a_board_are_predicted_and_those_of_this_machine_measured(
    finished: Path,
) -> None:
    body = files.read_json(finished / "run" / "report.json", kind="Report")
    assert body["predicted"]["done"]
    assert body["latency"]["done"]
    text = (finished / "run" / "report.md").read_text().lower()
    assert "predicted, not measured" in text


def test_the_gate_proved_every_group(finished: Path) -> None:
    cut = files.read_json(finished / "run" / "cut.json", kind="Cut")
    assert cut["max_error"] < 1e-8
    assert {g["status"] for g in cut["groups"].values()} <= {"proven", "whole"}
    assert cut["cost_after"]["macs"] < cut["cost_before"]["macs"]
    assert any(layer["after"] < layer["before"] for layer in cut["layers"])


def test_the_network_can_be_loaded_and_is_the_one_that_was_exported(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    monkeypatch.chdir(finished)
    slim = md.load("run")
    x = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession("run/model.onnx", providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    with torch.no_grad():
        np.testing.assert_allclose(found, slim(x).numpy(), rtol=1e-4, atol=1e-5)


def test_the_same_request_again_does_nothing_and_shows_the_result(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished)
    before = {p.name: p.stat().st_mtime_ns for p in Path("run").iterdir() if p.name != ".lock"}
    again = Request(**tiny.SMALL, target="jetson", out="run", max_accuracy_drop=100.0)
    result = pipeline.run(again)
    assert result.done == ()
    assert result.kept is True
    assert result.report["status"]["state"] == "kept"
    after = {p.name: p.stat().st_mtime_ns for p in Path("run").iterdir() if p.name != ".lock"}
    assert after == before


# ---------------------------------------------------------------- stage by stage


def test_stages_one_by_one_are_the_same_run(here: Path) -> None:
    pipeline.run(request(out="whole"), until="recover")
    first = pipeline.run(request(out="parts"), until="score")
    assert first.done == ("prepare", "sample", "score")
    for stage in ("plan", "cut", "recover"):
        result = pipeline.advance("parts", stage)
        assert stage in result.done
    assert (here / "parts/plan.json").read_bytes() == (here / "whole/plan.json").read_bytes()
    assert same_weights(here / "parts/slim.safetensors", here / "whole/slim.safetensors")


def test_another_budget_for_the_plan_makes_the_rest_anew(here: Path) -> None:
    pipeline.run(request(), until="cut")
    wide, dense = (
        kept(here / "run"),
        files.read_json(Path("run/accuracy.json"), kind="AccuracySteps"),
    )
    result = pipeline.advance("run", "plan", changes={"macs": 0.25})
    assert result.done == ("plan",)
    assert sum(kept(here / "run")) < sum(wide)
    left = {p.name for p in Path("run").iterdir()}
    assert "slim.safetensors" not in left, "it belongs to the plan that was"
    assert "cut.json" not in left
    steps = files.read_json(Path("run/accuracy.json"), kind="AccuracySteps")["steps"]
    assert steps == dense["steps"][:1]
    assert pipeline.advance("run", "cut").done == ("cut",)
    assert read_manifest(Path("run")).settings["macs"] == 0.25


def test_a_budget_out_of_reach_leaves_the_run_as_it_was(here: Path) -> None:
    pipeline.run(request(), until="cut")
    before = (here / "run/plan.json").read_bytes()
    with pytest.raises(PlanError, match="out of reach: the nearest is"):
        pipeline.advance("run", "plan", changes={"macs": 0.001})
    assert (here / "run/plan.json").read_bytes() == before
    assert read_manifest(Path("run")).settings["macs"] is None
    assert pipeline.advance("run", "cut").done == ()


def test_a_plan_edited_by_hand_is_cut_as_it_is(here: Path) -> None:
    pipeline.run(request(), until="plan")
    body = json.loads(Path("run/plan.json").read_text())
    body["groups"][0] |= {"keep": [5, 1, 3], "round_to": 1}
    Path("run/plan.json").write_text(json.dumps(body))
    assert pipeline.advance("run", "cut").done == ("cut",)
    assert kept(here / "run")[0] == 3
    assert pipeline.advance("run", "cut").done == ()


def test_measuring_again_writes_the_report_again(finished: Path, here: Path) -> None:
    shutil.copytree(finished, here, dirs_exist_ok=True)
    before = Path("run/measurements.jsonl").read_bytes()
    result = pipeline.advance("run", "bench")
    assert result.done == ("bench", "report")
    assert Path("run/measurements.jsonl").read_bytes() != before


@pytest.mark.parametrize("level", ["none", "bn", "refit"])
def test_recovery_without_training(here: Path, level: str) -> None:
    pipeline.run(request(recover=level), until="recover")
    steps = files.read_json(Path("run/accuracy.json"), kind="AccuracySteps")["steps"]
    names = [s["step"] for s in steps]
    assert names == (["dense", "cut"] if level == "none" else ["dense", "cut", "repair"])
    assert steps[0]["test"]
    assert steps[-1]["test"]
    cut, slim = (
        weights(here / "run/checkpoints/cut.safetensors"),
        weights(Path("run/slim.safetensors")),
    )
    changed = {k for k in cut if not np.array_equal(cut[k], slim[k])}
    if level == "none":
        assert not changed
    elif level == "bn":
        assert changed
        assert all("running" in k or "num_batches" in k for k in changed)
    else:
        assert any(k.endswith("weight") for k in changed)


def test_data_without_labels(here: Path) -> None:
    result = pipeline.run(request(data="npz:unlabelled.npz"), until="recover")
    assert any("no labels" in text for text in result.warnings)
    steps = files.read_json(Path("run/accuracy.json"), kind="AccuracySteps")["steps"]
    assert {s["validation"]["measure"] for s in steps} == {"agreement"}


def test_a_loss_and_a_metric_of_ones_own(here: Path) -> None:
    plain = pipeline.run(request(out="plain", distill=False), until="recover")
    own = pipeline.run(
        request(loss="net.py:squared", metric="net.py:near", distill=False), until="recover"
    )
    assert own.report["accuracy"]["measure"] == "near"
    assert plain.report["accuracy"]["measure"] == "top1"
    assert not same_weights(here / "run/slim.safetensors", here / "plain/slim.safetensors")
    with pytest.raises(md.MintDeployError, match=r"net.py has no 'nearly'"):
        pipeline.run(request(out="other", metric="net.py:nearly"))
    with pytest.raises(md.MintDeployError, match="expected a function"):
        pipeline.run(request(out="other", metric="net.py:NUMBER"))


def test_other_versions_are_a_warning(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline.run(request(), until="score")
    now = pipeline.versions()
    monkeypatch.setattr(pipeline, "versions", lambda: {**now, "torch": "9.9"})
    result = pipeline.advance("run", "plan")
    assert any(f"torch {now['torch']} then, 9.9 now" in text for text in result.warnings)


# ---------------------------------------------------------------- promises and refusals


def test_a_promise_that_is_broken(here: Path) -> None:
    tiny.train(here)
    given = request(weights="net.safetensors", macs=0.1, recover="none", max_accuracy_drop=0.0)
    result = pipeline.run(given, until="recover")
    assert result.kept is False
    with pytest.raises(PromiseBroken, match="broken: top1 on 'test'"):
        result.require_promise()


def test_a_stopped_run_is_not_taken_up_by_accident(here: Path) -> None:
    pipeline.run(request(), until="score")
    with pytest.raises(RunFolderError, match=r"stopped before 'plan'; --resume takes it up"):
        pipeline.run(request(), until="plan")
    assert pipeline.run(request(), until="plan", resume=True).done == ("plan",)
    assert pipeline.run(request(), until="score", force=True).done == NAMES[:3]


def test_a_model_that_is_frozen_everywhere_says_why(here: Path) -> None:
    with pytest.raises(ModelError, match=r"every layer is frozen: .*reaches the network's output"):
        pipeline.run(request(model="net.py:Frozen"))
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("changes", "kind", "said"),
    [
        ({"model": "net.py:fails"}, ModelError, "no such luck"),
        ({"model": "net.py:a_number"}, ModelError, "returned a int"),
        ({"model": "resnet57-cifar10"}, UnknownName, "did you mean 'resnet56-cifar10'"),
        ({"model": "net.py:nan"}, ModelError, r"(?i)nan|finite"),
        ({"weights": "nothing.safetensors"}, ModelError, "nothing.safetensors"),
        ({"data": "npz:nothing.npz"}, md.MintDeployError, "nothing.npz"),
        ({"data": None}, md.MintDeployError, "give --data"),
        ({"target": "jetsen"}, UnknownName, "did you mean 'jetson'"),
        ({"criterion": "mind"}, UnknownName, "did you mean 'mint'"),
    ],
    ids=lambda v: next(iter(v.values())) if isinstance(v, dict) else "",
)
def test_bad_input_leaves_no_folder(
    here: Path, changes: dict[str, object], kind: type[Exception], said: str
) -> None:
    before = sorted(here.iterdir())
    with pytest.raises(kind, match=said):
        pipeline.run(request(**changes))
    if "criterion" not in changes:  # known only when it is its turn; what was sampled is kept
        assert sorted(here.iterdir()) == before


def test_no_such_stage() -> None:
    with pytest.raises(UnknownName, match="no stage named 'plam'; did you mean 'plan'"):
        pipeline.run(request(), until="plam")


def test_weights_that_changed_since(here: Path) -> None:
    pipeline.run(request(), until="plan")
    source = Path("net.py").read_text().replace("manual_seed(1)", "manual_seed(2)")
    Path("net.py").write_text(source + "\n# changed\n")
    with pytest.raises(RunFolderError, match="the weights of net-make changed since"):
        pipeline.advance("run", "cut")


def test_data_that_changed_since(here: Path) -> None:
    pipeline.run(request(), until="plan")
    with np.load("data.npz") as stored:
        np.savez("data.npz", x=stored["x"] + 1, y=stored["y"])
    with pytest.raises(RunFolderError, match=r"data .* changed since the run began"):
        pipeline.advance("run", "cut")


def test_a_full_disk_in_the_middle(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    pipeline.run(request(), until="plan")
    before = sorted(p.name for p in Path("run").iterdir())

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("mint_deploy.loading.save", full)
    with pytest.raises(RunFolderError, match="is full: stage 'cut'"):
        pipeline.advance("run", "cut")
    monkeypatch.undo()
    monkeypatch.chdir(here)
    assert sorted(p.name for p in Path("run").iterdir()) == before
    assert pipeline.advance("run", "cut").done == ("cut",)


# ---------------------------------------------------------------- Python


def test_a_module_and_tensors_in_memory(here: Path) -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 16, 3), torch.nn.ReLU(), torch.nn.Conv2d(16, 16, 3), torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(16, 3),
    )  # fmt: skip
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with np.load("data.npz") as stored:
        data = torch.from_numpy(stored["x"]), torch.from_numpy(stored["y"])
    settings = {"target": "cpu", "macs": 0.5, "out": "run", "epochs": 1.0}
    result = md.compress(net, data, until="cut", **settings)
    assert result.report["cost"]["done"]
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items()), "it was altered"
    with pytest.raises(RunFolderError, match="lived in the memory of a Python program"):
        pipeline.advance("run", "recover")
    done = md.compress(net, data, until="recover", resume=True, **settings)
    assert done.done == ("repair", "recover")
    slim = md.load("run", net)
    assert sum(p.numel() for p in slim.parameters()) < sum(p.numel() for p in net.parameters())
    with torch.no_grad():
        net[0].weight += 1
    with pytest.raises(RunFolderError, match=r"weights of .* changed"):
        md.compress(net, data, until="export", resume=True, **settings)


# ---------------------------------------------------------------- killed, and taken up


def killed(folder: Path, *places: tuple[str, str]) -> list[dict[str, Any]]:
    """How each process of ``killed.py`` ended: place, returncode, stdout, stderr."""
    done = subprocess.run(
        [sys.executable, str(HERE / "killed.py"), str(folder), *itertools.chain(*places)],
        capture_output=True, text=True, check=False, timeout=240,
        env={**os.environ, "PYTHONPATH": str(Path(md.__file__).parents[1])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def assert_equal_runs(folder: Path, other: Path) -> None:
    for name in ("plan.json", "scores.npz", "moments.npz", "accuracy.json", "target.toml"):
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name
    assert same_weights(folder / "dense.safetensors", other / "dense.safetensors")
    assert same_weights(folder / "slim.safetensors", other / "slim.safetensors")
    for folders in (folder, other):
        left = sorted(p.name for p in (folders / "checkpoints").iterdir())
        assert left == ["cut.safetensors", "repair.safetensors"]


def test_killed_and_interrupted_again_and_again(tmp_path: Path) -> None:
    """One folder, ended in training, in sampling, after files and in both recoveries."""
    places = (
        ("prepare:3", "SIGINT"),
        ("prepare:7", "SIGKILL"),
        ("sample:1", "SIGKILL"),
        ("plan:after", "SIGINT"),
        ("cut:after", "SIGKILL"),
        ("recover:3", "SIGKILL"),
        ("recover:9", "SIGINT"),
    )
    whole = ("-", "SIGKILL")
    (undisturbed,) = killed(tmp_path / "undisturbed", whole)
    *ends, last = killed(tmp_path / "run", *places, whole)
    for (place, how), end in zip(places, ends, strict=True):
        if how == "SIGKILL":
            assert end["returncode"] == -signal.SIGKILL, end
            continue
        assert end["returncode"] == 130, end
        assert f"stopped in stage '{place.partition(':')[0]}'" in end["stdout"]
        assert "--resume" in end["stdout"]
        assert "Traceback" not in end["stderr"]
    assert (undisturbed["returncode"], last["returncode"]) == (0, 0), (undisturbed, last)
    assert_equal_runs(tmp_path / "undisturbed", tmp_path / "run")


def test_ctrl_c_in_python(here: Path) -> None:
    class Stop(Progress):
        def _begin(self, name: str, title: str) -> None:
            if name == "plan":
                raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="stopped in stage 'plan'; what is finished is kept"):
        pipeline.run(request(), progress=Stop())
    RunFolder.open("run").close()
    assert list(read_manifest(Path("run")).stages) == ["prepare", "sample", "score"]


# ---------------------------------------------------------------- the table of stages


def test_what_a_stage_reads_was_written_before() -> None:
    written: set[str] = set()
    for stage in STAGES:
        assert set(stage.reads) <= written | set(stage.writes), stage.name
        written |= set(stage.writes)
    assert all(hasattr(steps, name) for name in NAMES)


def test_every_setting_belongs_to_a_stage() -> None:
    used = {name for stage in STAGES for name in stage.settings}
    assert used == {f.name for f in dataclasses.fields(Request)} - {"out"}
