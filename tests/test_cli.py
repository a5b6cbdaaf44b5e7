"""The command line: exit codes, what stands on stdout and stderr, and no traceback but for bugs."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import tiny
import torch

import mint_deploy
from mint_deploy import cli, pipeline, plugins, steps
from mint_deploy.scores_file import read_scores
from mint_deploy.settings import DEMO

ROOT = Path(__file__).parents[1]


class Said(NamedTuple):
    code: int
    out: str
    err: str


Command = Callable[..., Said]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny.write(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(steps, "BENCH_S", 1.0)
    monkeypatch.setattr(steps, "RESTARTS", 2)
    monkeypatch.setenv("COLUMNS", "120")
    return tmp_path


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*args: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["mint-deploy", *args])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return Said(int(ended.value.code or 0), out, err)

    return run


SMALL = ("net.py:make", "--data", "npz:data.npz", "--epochs", "1", "--workers", "1")
SCORED = ("net.py:make", "--data", "npz:data.npz", "--workers", "1")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("finished")
    tiny.write(place)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(steps, "BENCH_S", 1.0)
        patch.setattr(steps, "RESTARTS", 2)
        patch.setattr(sys, "argv", ["mint-deploy", "compress", *SMALL, "--out", "run", "--quiet"])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
    return place


# ---------------------------------------------------------------- help, versions, bad flags


def test_help_lists_the_commands_in_the_order_of_the_work(command: Command) -> None:
    said = command("--help")
    assert said.code == 0
    places = [said.out.index(f"│ {name} ") for name in cli.COMMANDS]
    assert places == sorted(places)


def test_no_command_is_help(command: Command) -> None:
    assert "compress" in command().out


def test_the_version(command: Command) -> None:
    assert command("--version") == (0, f"mint-deploy {mint_deploy.__version__}\n", "")


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_every_command_has_help(command: Command, name: str) -> None:
    said = command(name, "--help")
    assert said.code == 0
    assert len(said.out.splitlines()) > 5


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("compres",), "No such command"),
        (("compress", "--mac", "0.5"), "--macs"),
        (("compress", "--macs", "half"), "--macs"),
        (("compress", "--macs", "0"), "--macs is 0.0, expected a number above 0"),
        (("compress", "--macs", "0.5", "--ratio", "0.5"), "two budgets"),
        (("compress", "--input", "3,32"), "expected sizes such as 1x3x32x32"),
        (("compress", "--mean", "a"), "--mean is 'a', expected numbers"),
        (("compress", "--until", "plam"), "did you mean 'plan'"),
        (("compress", "--target", "jetsen"), "did you mean 'jetson'"),
        (("compress", "--config", "none.toml"), "cannot read none.toml"),
        (("compress", "resnet57-cifar10"), "did you mean 'resnet56-cifar10'"),
        (("compress", "resnet56-cifar10"), "give --data"),
        (("compress", "nothing.py:make"), "nothing.py"),
        (
            ("compress", "net.py:fails", "--data", "npz:data.npz"),
            "net.py:fails raised RuntimeError: no such luck",
        ),
        (("compress", "net.py:Frozen", "--data", "npz:data.npz"), "every layer is frozen"),
        (("plan", "nowhere"), "nowhere is not a run folder: it does not exist"),
        (("targets", "jetsen"), "did you mean 'jetson'"),
        (("inspect", "nothing"), "no such file"),
        (("inspect", "net.py"), "not a file that mint-deploy wrote"),
        (("bench", "nothing.onnx"), "nothing.onnx"),
        (("bench", "net.py", "--batch", "x"), "--batch is 'x'"),
        (("compare", "a", "b"), "cannot read a"),
        (("doctor", "net.py:make"), "--input 1x3x32x32"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, tuple) else "",
)
def test_bad_input_is_exit_code_2_and_no_traceback(
    command: Command, here: Path, args: tuple[str, ...], said: str
) -> None:
    before = sorted(here.iterdir())
    found = command(*args)
    assert found.code == 2
    assert said in " ".join(found.err.replace("│", " ").split())
    assert "Traceback" not in found.err
    assert found.out == ""
    assert sorted(here.iterdir()) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here, so it is no error")
def test_a_device_that_is_not_here(command: Command, here: Path) -> None:
    found = command("compress", *SMALL, "--device", "cuda", "--out", "run")
    assert found.code == 2
    assert "'cuda' is not here" in found.err
    assert not (here / "run").exists()


def test_our_own_bug_is_exit_code_70_with_its_traceback(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(pipeline, "run", broken)
    found = command("compress")
    assert found.code == 70
    assert "ZeroDivisionError: division by zero" in found.err
    assert "Traceback" in found.err
    assert "this is a bug in mint-deploy" in found.err


def test_ctrl_c_anywhere_is_exit_code_130(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mint_deploy.target.target_names", stopped)
    found = command("targets")
    assert (found.code, found.out) == (130, "")
    assert "Traceback" not in found.err


# ---------------------------------------------------------------- compress


def test_a_run_says_its_result_on_stdout(finished: Path, command: Command) -> None:
    os.chdir(finished)
    found = command("compress", *SMALL, "--out", "run")
    assert found.code == 0
    assert "was done before" in found.out
    assert "Multiply-adds (MACs)" in found.out
    assert "report.html" in found.out
    assert "next:" in found.out


def test_json_is_one_object_on_stdout(finished: Path, command: Command) -> None:
    os.chdir(finished)
    found = command("compress", *SMALL, "--out", "run", "--json")
    body = json.loads(found.out)
    assert body["done"] == []
    assert body["report"]["status"]["state"] == "done"


def test_other_settings_in_the_same_folder(finished: Path, command: Command) -> None:
    os.chdir(finished)
    found = command("compress", *SMALL, "--out", "run", "--macs", "0.4")
    assert found.code == 2
    assert "macs is not set there, 0.4 here" in found.err
    assert "--force" in found.err


def test_progress_goes_to_stderr_and_quiet_has_none(command: Command) -> None:
    found = command("compress", *SMALL, "--until", "score", "--out", "a")
    assert "sample" in found.err
    assert "sample" not in found.out
    assert command("compress", *SMALL, "--until", "score", "--out", "b", "--quiet").err == ""


@pytest.mark.parametrize("criterion", [c for c in plugins.known("criterion") if c != "mint"])
def test_every_criterion_on_the_command_line(command: Command, criterion: str) -> None:
    found = command("score", *SCORED, "--criterion", criterion, "--out", "run", "--json")
    assert found.code == 0
    body = json.loads(found.out)["scores"]
    assert body["criterion"] == criterion
    assert {g["name"] for g in body["groups"]} == {"0", "3"}
    assert command("plan", "run", "--macs", "0.5").code == 0


@pytest.mark.parametrize("estimator", plugins.known("estimator"))
def test_every_estimator_on_the_command_line(command: Command, estimator: str, here: Path) -> None:
    found = command("score", *SCORED, "--estimator", estimator, "--out", "run", "--json")
    assert found.code == 0
    assert json.loads(found.out)["scores"]["estimator"] == estimator
    assert command("plan", "run", "--macs", "0.5").code == 0
    made = read_scores(here / "run" / "scores.npz")
    assert bool(made.dependency) == (estimator != "gaussian")
    assert all(g.spread is not None for g in made.groups.values()) == (estimator == "gaussian")


def test_a_criterion_that_needs_labels_says_so(command: Command) -> None:
    found = command("score", "net.py:make", "--data", "npz:unlabelled.npz", "--criterion", "taylor")
    assert found.code == 2
    assert "gradients of the loss need labels" in found.err
    assert "mint, magnitude, thinet" in found.err


def test_a_dry_run_does_nothing(command: Command, here: Path) -> None:
    before = sorted(here.iterdir())
    found = command("compress", *SMALL, "--target", "jetson", "--dry-run")
    assert found.code == 0
    assert "runs/net-make-jetson" in found.out
    for stage in pipeline.STAGES:
        assert stage.name in found.out
    body = json.loads(command("compress", *SMALL, "--dry-run", "--json").out)
    assert body["settings"]["epochs"] == 1.0
    assert sorted(here.iterdir()) == before


def test_the_demo_is_announced(command: Command) -> None:
    found = command("compress", "--dry-run")
    assert f"no MODEL was named: this is the embedded demo, {DEMO}" in found.err
    assert "embedded demo" not in command("compress", *SMALL, "--dry-run").err


def test_a_config_is_named_and_so_is_the_code_it_runs(command: Command, here: Path) -> None:
    (here / "mint.toml").write_text('model = "net.py:make"\ndata = "npz:data.npz"\nmacs = 0.3\n')
    found = command("compress", "--dry-run")
    assert "settings from mint.toml; flags win" in found.err
    assert "mint.toml names net.py:make: it will be imported and run" in found.err
    assert "--macs 0.3" in found.out
    assert "--ratio 0.2" in command("compress", "--ratio", "0.2", "--dry-run").out


def test_a_stopped_run_is_taken_up_with_nothing_but_its_folder(command: Command) -> None:
    command("compress", *SMALL, "--until", "score", "--out", "run", "--seed", "4")
    found = command("compress", "--out", "run", "--resume", "--until", "plan", "--json")
    assert found.code == 0
    assert json.loads(found.out)["done"] == ["plan"]
    found = command("compress", "--out", "run", "--resume", "--seed", "5")
    assert found.code == 2
    assert "seed is 4 there, 5 here" in found.err


def test_a_broken_promise_is_exit_code_1_after_the_result(command: Command, here: Path) -> None:
    tiny.train(here)
    found = command(
        "compress", *SMALL, "--weights", "net.safetensors", "--macs", "0.1", "--recover", "none",
        "--max-accuracy-drop", "0", "--until", "recover", "--quiet",
    )  # fmt: skip
    assert found.code == 1
    assert "a promise is broken" in found.err
    assert "Multiply-adds" in found.out


def test_a_promise_the_data_cannot_decide_is_a_warning(command: Command, here: Path) -> None:
    tiny.train(here)
    found = command(
        "compress", *SMALL, "--weights", "net.safetensors", "--macs", "0.9", "--recover", "refit",
        "--max-accuracy-drop", "1", "--until", "recover", "--quiet",
    )  # fmt: skip
    assert found.code == 0
    assert "undecided" in found.out
    assert "neither kept nor broken" in found.err


# ---------------------------------------------------------------- stages as commands


def test_a_run_stage_by_stage(command: Command) -> None:
    assert command("score", *SMALL[:3], "--workers", "1", "--out", "run").code == 0
    assert command("plan", "run", "--macs", "0.4").code == 0
    assert command("cut", "run").code == 0
    assert command("recover", "run", "--epochs", "1").code == 0
    found = command("report", "run")
    assert found.code == 0, found.err
    assert Path("run/report.html").exists()
    again = command("cut", "run")
    assert again.code == 0
    assert "'cut' was done before" in again.out


def test_a_budget_out_of_reach(command: Command) -> None:
    command("score", *SMALL[:3], "--out", "run")
    found = command("plan", "run", "--macs", "0.001")
    assert found.code == 2
    assert "out of reach: the nearest is" in found.err


def test_a_folder_in_use(command: Command) -> None:
    command("score", *SMALL[:3], "--out", "run")
    hold = (
        "from mint_deploy.runfolder import RunFolder; r = RunFolder.open('run');"
        "print('held', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(mint_deploy.__file__).parents[1])},
    ) as holder:  # fmt: skip
        assert holder.stdout is not None
        holder.stdout.readline()
        found = command("plan", "run")
        holder.send_signal(signal.SIGKILL)
    assert found.code == 2
    assert f"in use by process {holder.pid}" in found.err


# ---------------------------------------------------------------- looking


def test_targets(command: Command) -> None:
    listed = command("targets").out
    assert "jetson" in listed
    one = command("targets", "jetson").out
    assert "round_to" in one
    assert "TensorRT" in one
    assert json.loads(command("targets", "cpu", "--json").out)["name"] == "cpu"
    assert len(json.loads(command("targets", "--json").out)["targets"]) > 5


def test_doctor_lists_what_is_here(command: Command) -> None:
    found = command("doctor")
    for word in ("onnxruntime", "mint", "resnet56-cifar10", "jetson", "trtexec"):
        assert word in found.out
    body = json.loads(command("doctor", "--json").out)
    assert body["runtimes"]["onnxruntime"]["missing"] is None


def test_doctor_of_a_model(command: Command) -> None:
    found = command("doctor", "net.py:make", "--input", "1x1x8x8")
    assert "pruning groups" in found.out
    assert "frozen: reaches the network's output" in found.out
    body = json.loads(command("doctor", "net.py:make", "--input", "1x1x8x8", "--json").out)
    assert body["groups"]
    assert body["frozen"]


def test_doctor_of_the_machine(command: Command) -> None:
    found = command("doctor", "--machine", "--seconds", "1")
    assert "the harness itself takes" in found.out
    assert (
        json.loads(command("doctor", "--machine", "--seconds", "1", "--json").out)["machine"][
            "cores"
        ]
        > 0
    )


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("run", "a run folder"),
        ("run/plan.json", "a PruningPlan"),
        ("run/model.onnx", "an ONNX file"),
        ("run/slim.safetensors", "weights"),
        ("run/moments.npz", "arrays of Moments"),
        ("run/measurements.jsonl", "a Measurement"),
        ("run/engine.json", "an engine"),
        ("run/bundle", "a bundle"),
        ("run/bundle.tar.gz", "a bundle in an archive"),
        ("run/bundle/mint_deploy_device.pyz", "the device program"),
    ],
)
def test_inspect(finished: Path, command: Command, name: str, what: str) -> None:
    os.chdir(finished)
    found = command("inspect", name)
    assert found.code == 0, found.err
    assert found.out.startswith(f"{name}: {what}")
    assert json.loads(command("inspect", name, "--json").out)["what"] == what


def test_inspect_knows_which_cut_a_file_is_of(finished: Path, command: Command) -> None:
    os.chdir(finished)
    plan = json.loads(command("inspect", "run/plan.json", "--json").out)
    onnx = json.loads(command("inspect", "run/model.onnx", "--json").out)
    weights = json.loads(command("inspect", "run/slim.safetensors", "--json").out)
    assert plan["digest"] == onnx["mint_deploy.plan_digest"] == weights["plan"]


# ---------------------------------------------------------------- measuring and judging


def test_bench_of_files_and_a_baseline(finished: Path, command: Command) -> None:
    os.chdir(finished)
    found = command(
        "bench", "run/dense.onnx", "--against", "run/model.onnx", "--seconds", "1.5",
        "--restarts", "2", "--save-baseline", "base.jsonl", "--html", "page.html",
    )  # fmt: skip
    assert found.code == 0, found.err
    assert "of the time of dense" in found.out
    page = Path("page.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert "dense" in page
    kept = [json.loads(line) for line in Path("base.jsonl").read_text().splitlines()]
    assert [m["figures"]["file_bytes"] for m in kept] == [
        Path("run/dense.onnx").stat().st_size, Path("run/model.onnx").stat().st_size
    ]  # fmt: skip
    body = json.loads(command("inspect", "base.jsonl", "--json").out)
    assert body["what"] == "a Measurement"


def test_compare_of_runs(finished: Path, command: Command) -> None:
    os.chdir(finished)
    limits = ("--max-size", "+0%", "--max-accuracy-drop", "0")
    found = command("compare", "run", "run", *limits)
    assert found.code == 0, found.err
    assert found.out.endswith("pass\n")
    worse = command("compare", "run", "run", "--max-size", "-10%")
    assert worse.code == 1
    assert "fail" in worse.out
    body = json.loads(command("compare", "run", "run", *limits, "--json").out)
    assert body["state"] == "pass"


def test_compare_of_measurements_without_a_run(finished: Path, command: Command) -> None:
    os.chdir(finished)
    found = command("compare", "run/measurements.jsonl", "run", "--max-accuracy-drop", "1")
    assert found.code == 2
    assert "compare two run folders" in found.err


def test_inconclusive_is_exit_code_3_under_strict(
    finished: Path, here: Path, command: Command
) -> None:
    lines = (finished / "run/measurements.jsonl").read_text().splitlines()
    body = json.loads(lines[1])
    body["machine"]["hostname"] = "elsewhere"
    Path("other.jsonl").write_text(json.dumps(body) + "\n")
    Path("this.jsonl").write_text(lines[1] + "\n")
    found = command("compare", "this.jsonl", "other.jsonl", "--max-latency", "+5%")
    assert (found.code, found.out.splitlines()[-1]) == (0, "inconclusive")
    assert command("compare", "this.jsonl", "other.jsonl", "--strict").code == 3


# ---------------------------------------------------------------- as a process


def test_sigint_from_outside(here: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "mint_deploy", "compress", *SMALL, "--epochs", "500", "--out", "r"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(mint_deploy.__file__).parents[1])},
    ) as process:  # fmt: skip
        assert process.stderr is not None
        seen = ""
        for line in process.stderr:
            seen += line
            if "repair" in line:
                break
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert re.search("stopped in stage '(repair|recover)'", err)
    assert "--resume" in err
    assert "Traceback" not in seen + err
    assert out == ""
