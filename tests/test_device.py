"""The program that travels: as a zip, on a bundle, with nothing but numpy and onnxruntime."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import zipapp
from pathlib import Path

import numpy as np
import pytest
from bundles import here, make_bundle
from onnx_models import save_conv

import mint_deploy
from mint_deploy import artifacts, bench, device, files, plugins
from mint_deploy.artifacts import Engine, Machine
from mint_deploy.parity import Parity, write_parity

PACKAGE = Path(mint_deploy.__file__).parent

#: makes libraries absent that a board need not have
GUARD = """
from importlib.machinery import PathFinder
real = PathFinder.find_spec
def absent(name, path=None, target=None):
    return None if name.partition(".")[0] in {names} else real(name, path, target)
PathFinder.find_spec = absent
"""
HOST_ONLY = [
    "torch",
    "psutil",
    "scipy",
    "sklearn",
    "onnx",
    "typer",
    "rich",
    "jinja2",
    "safetensors",
]


@pytest.fixture(scope="session")
def zipped(tmp_path_factory):
    """The device zip, made of exactly the modules that device.py lists."""
    folder = tmp_path_factory.mktemp("zip")
    for name in device.MODULES:
        place = folder / "app" / "mint_deploy" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PACKAGE / name, place)
    path = folder / "mint_deploy_device.pyz"
    zipapp.create_archive(folder / "app", path, main="mint_deploy.device:main")
    return path


@pytest.fixture
def bundle(tmp_path):
    return make_bundle(tmp_path / "bundle")


def run(program, *arguments, cwd=None, guard=HOST_ONLY, tmp=None, **environment):
    """Run the zip as a board would: only its own path, and without the libraries of the host."""
    settings = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    if tmp is not None:
        (tmp / "guard").mkdir(exist_ok=True)
        (tmp / "guard" / "sitecustomize.py").write_text(GUARD.format(names=set(guard)))
        settings["PYTHONPATH"] = str(tmp / "guard")
    return subprocess.run(
        [sys.executable, str(program), *map(str, arguments)],
        capture_output=True, text=True, check=False, cwd=cwd or program.parent,
        env={**settings, **environment},
    )  # fmt: skip


# ---------------------------------------------------------------- the zip


def _imports(path: Path):
    """Modules of mint_deploy that a file imports, at its head or inside its functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mint_deploy"):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith("mint_deploy"))


def test_the_list_of_modules_is_what_the_program_can_reach():
    reached, waiting = set(), ["mint_deploy.device", "mint_deploy._bench_worker"]
    waiting += [f"mint_deploy.runtimes.{name}" for name in plugins.known("runtime")]
    while waiting:
        name = waiting.pop()
        path = PACKAGE.parent.joinpath(*name.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        relative = path.relative_to(PACKAGE).as_posix()
        if not path.is_file() or relative in reached:
            continue
        reached.add(relative)
        parent = name.rpartition(".")[0]  # a module is imported through its package
        waiting += [parent] if parent not in ("", PACKAGE.name) else []
        # the package's own head names everything for type checkers and imports nothing of it
        waiting += [] if relative == "__init__.py" else list(_imports(path))
    assert reached | {"__init__.py"} == set(device.MODULES)
    assert list(device.MODULES) == sorted(device.MODULES)


def test_no_module_of_the_zip_imports_more_than_numpy_at_its_head():
    for name in device.MODULES:
        for node in ast.parse((PACKAGE / name).read_text(encoding="utf-8")).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            roots = {str(n).partition(".")[0] for n in names}
            allowed = set(sys.stdlib_module_names) | {"numpy", "mint_deploy"}
            assert roots <= allowed, f"{name}: {roots - allowed}"


def test_the_zip_probes_without_the_libraries_of_the_host(zipped, tmp_path):
    done = run(zipped, "probe", "--json", tmp=tmp_path)
    assert done.returncode == 0, done.stderr
    found = files.decode(Machine, json.loads(done.stdout)["machine"])
    assert found.cores > 0
    assert run(zipped, "probe", tmp=tmp_path).stdout.startswith("hostname")


def test_the_zip_verifies_builds_and_benches_a_bundle(zipped, bundle, tmp_path):
    shutil.copy(zipped, bundle)
    program = bundle / zipped.name
    done = run(program, "verify", tmp=tmp_path)  # the bundle is the folder it lies in
    assert done.returncode == 0, done.stderr
    assert "dense: largest relative error" in done.stdout
    assert "slim: largest relative error" in done.stdout

    done = run(program, "build", "--json", tmp=tmp_path)
    assert done.returncode == 0, done.stderr
    engine = files.read_value(bundle / "engine.json", Engine)
    assert engine.sha256 == files.sha256(bundle / "model.onnx")
    assert json.loads(done.stdout)["network"] == "slim"

    done = run(program, "bench", "--restarts", "2", "--seconds", "3", tmp=tmp_path)
    assert done.returncode == 0, done.stderr
    said = re.search(r"slim takes (\d[\d.]*) ?(.*) of dense's time", done.stdout)
    assert said, done.stdout
    measured = bench.read(bundle)
    assert [m.task.label for m in measured] == ["dense", "slim"]
    assert all(len(m.restarts_ns) >= 2 for m in measured)  # more where there is time
    assert measured[0].task.sha256 == files.sha256(bundle / "dense.onnx")
    kept = files.read_json(bundle / "comparison.json", kind="Comparisons")["comparisons"]
    width = kept[0]["high"] - kept[0]["low"]  # two restarts: as many digits as that supports
    assert float(said[1]) == pytest.approx(kept[0]["ratio"], abs=width)
    assert said[2].startswith(("± ", "("))


def test_the_zip_without_numpy_says_what_installs_it(zipped, tmp_path):
    done = run(zipped, "probe", tmp=tmp_path, guard=["numpy"])
    assert done.returncode == 2
    assert "sudo apt-get install python3-numpy" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_zip_without_onnxruntime_says_what_installs_it(zipped, bundle, tmp_path):
    done = run(zipped, "verify", bundle, tmp=tmp_path, guard=["onnxruntime"])
    assert done.returncode == 2
    assert "pip install onnxruntime" in done.stderr
    assert "not installed" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_older_python_is_told_so(monkeypatch, capsys):
    monkeypatch.setattr(sys, "version_info", (3, 8, 10))
    code, _, err = here(capsys, "probe")
    assert code == 2
    assert "this is Python 3.8.10, 3.10 or newer is needed" in err


def test_the_zip_whose_output_nobody_reads_ends_quietly(zipped):
    with subprocess.Popen(
        [sys.executable, str(zipped), "probe"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        words = process.stderr.read()
    assert (process.returncode, words) == (0, b"")


# ---------------------------------------------------------------- the commands


def test_verify_refuses_a_file_that_was_changed(bundle, capsys):
    save_conv(bundle / "model.onnx", channels=6)
    code, out, err = here(capsys, "verify", bundle)
    assert (code, out) == (2, "")
    assert "model.onnx has SHA-256" in err
    assert "copy the bundle anew" in err


def test_verify_refuses_outputs_that_differ(bundle, capsys):
    from mint_deploy.parity import read_parity

    parity = read_parity(bundle / "parity.npz")
    wrong = {n: v * np.float32(1.01) for n, v in parity.outputs["slim"].items()}
    write_parity(
        bundle / "parity.npz",
        Parity(inputs=parity.inputs, outputs={**parity.outputs, "slim": wrong}),
    )
    code, _, err = here(capsys, "verify", bundle)
    assert code == 2
    assert "output 'output'" in err
    assert "'slim' in onnxruntime" in err


@pytest.mark.parametrize("command", ["verify", "build", "bench"])
def test_a_folder_that_is_no_bundle(tmp_path, capsys, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    code, _, err = here(capsys, command, tmp_path)
    assert code == 2
    assert "holds no deploy.json" in err


def test_a_bundle_that_lacks_a_file(bundle, capsys):
    (bundle / "dense.onnx").unlink()
    code, _, err = here(capsys, "bench", bundle)
    assert code == 2
    assert "lacks dense.onnx" in err
    assert not (bundle / "measurements.jsonl").exists()


def test_a_deploy_file_without_networks(bundle, capsys):
    files.write_json(bundle / "deploy.json", {"target": {}}, kind="Deploy")
    code, _, err = here(capsys, "verify", bundle)
    assert code == 2
    assert "names no network" in err


def test_a_target_whose_runtime_is_not_here_is_measured_elsewhere_and_says_so(tmp_path, capsys):
    bundle = make_bundle(tmp_path / "b", runtime="tensorrt", precision="fp16")
    code, out, err = here(capsys, "verify", bundle)
    assert code == 0, err
    assert "note: the target's runtime is tensorrt; these figures are onnxruntime's" in out
    code, _, err = here(capsys, "verify", bundle, "--runtime", "tensort")
    assert code == 2
    assert "no runtime named 'tensort'" in err


def test_the_batch_of_the_target_is_the_batch_that_is_measured(tmp_path, capsys):
    bundle = make_bundle(tmp_path / "b", batch=4, threads=2)
    code, _, err = here(capsys, "bench", bundle, "--restarts", 2, "--seconds", 1)
    assert code == 0, err
    assert {(m.task.batch, m.task.threads) for m in bench.read(bundle)} == {(4, 2)}


def test_ctrl_c_while_measuring_keeps_and_shows_what_was_measured(bundle, capsys, monkeypatch):
    real = bench.interleave

    def stopped(*args, **settings):
        measured, compared = real(*args, **settings)
        raise bench.MeasuringStopped("interrupted after 2 restarts", measured, compared)

    monkeypatch.setattr(bench, "interleave", stopped)
    code, out, err = here(capsys, "bench", bundle, "--restarts", 2, "--seconds", 1)
    assert code == 130
    assert "slim takes" in out
    assert f"what was measured is kept in {bundle}" in err
    assert [m.task.label for m in bench.read(bundle)] == ["dense", "slim"]


def test_ctrl_c_exits_with_130_and_a_bug_with_70(monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr("mint_deploy.machine.probe", interrupted)
    assert here(capsys, "probe")[0] == 130

    def bug():
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("mint_deploy.machine.probe", bug)
    code, _, err = here(capsys, "probe")
    assert code == 70
    assert "ZeroDivisionError: a bug" in err


def test_no_command_shows_the_usage(capsys):
    code, _, err = here(capsys)
    assert code == 2
    assert "probe" in err


def test_the_schema_of_the_bundle_is_checked(bundle, capsys):
    body = json.loads((bundle / "deploy.json").read_text())
    body["schema"] = artifacts.SCHEMA + 1
    (bundle / "deploy.json").write_text(json.dumps(body))
    code, _, err = here(capsys, "verify", bundle)
    assert code == 2
    assert "update mint-deploy" in err
