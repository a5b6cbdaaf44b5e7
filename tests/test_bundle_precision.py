"""A bundle in int8 or fp16: the files travel, the recipe is theirs, and a board holds them to what they were."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bundles import here
from test_bundle import NAMES, make_run

from mint_deploy import bench, files
from mint_deploy._arrived import Bundle
from mint_deploy.artifacts import ExportedModel
from mint_deploy.bundle import NETWORKS, unpack_bundle, verify_bundle, write_bundle
from mint_deploy.cli.inspecting import inspected
from mint_deploy.errors import DataError
from mint_deploy.manifest import listing
from mint_deploy.onnx_file import read_onnx
from mint_deploy.parity import read_parity
from mint_deploy.quantize import quantize_file
from mint_deploy.target import Target, load_target


def lowered(run: Path, target: Target) -> Target:
    """What the export stage writes beside the float32 files."""
    samples = np.random.default_rng(0).standard_normal((64, 3, 8, 8)).astype(np.float32)
    entries = {}
    for label, file in NETWORKS.items():
        path = run / f"{Path(file).stem}.{target.precision}.onnx"
        made = quantize_file(
            run / file, {"input": samples}, out=path, target=target, precision=target.precision,
            cache=run / "calibration.json", max_drop=None,
        )  # fmt: skip
        facts = read_onnx(path)
        exported = ExportedModel(
            path=path.name, opset=facts.opset, ir_version=facts.ir_version, inputs=facts.inputs,
            outputs=facts.outputs, sha256=made.sha256, bytes=made.bytes, max_error=0.1,
            parity_batches=made.batches, metadata={**facts.metadata, "precision": made.precision},
        )  # fmt: skip
        entries[label] = {"quantized": made, "exported": exported}
    body = {"precision": target.precision, "networks": entries}
    files.write_json(run / "precision.json", body, kind="Precision")
    return target


CASES = {
    "int8": ("cpu", {"precision": "int8"}),
    "fp16": ("cpu", {"precision": "fp16"}),
    "board": ("jetson", {"precision": "int8"}),
    "eleven": ("jetson", {"precision": "fp16", "tensorrt": "11.1"}),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The float32 files of a run, exported once for all: what is built of them is the target's."""
    return make_run(tmp_path_factory.mktemp("plain") / "run", "jetson")


@pytest.fixture(scope="module")
def made(plain, tmp_path_factory):
    """case -> its run folder, bundle packed; and its target."""
    runs = {}
    for case, (name, changes) in CASES.items():
        run = Path(shutil.copytree(plain, tmp_path_factory.mktemp(case) / "run"))
        target = lowered(run, dataclasses.replace(load_target(name), **changes))
        write_bundle(run, target)
        runs[case] = run, target
    return runs


@pytest.fixture
def bundle(made, request, tmp_path):
    run, _ = made[getattr(request, "param", "int8")]
    return unpack_bundle(run / "bundle.tar.gz", tmp_path / "board")


# ---------------------------------------------------------------- what is in it


@pytest.mark.parametrize("case", CASES)
def test_the_files_in_the_targets_precision_travel_with_their_hashes(made, case, tmp_path):
    run, target = made[case]
    there = unpack_bundle(run / "bundle.tar.gz", tmp_path)
    lower = {f"{stem}.{target.precision}.onnx" for stem in ("dense", "model")}
    also = {"calibration.json"}
    assert {p.name for p in there.iterdir()} == NAMES | lower | also
    deploy = verify_bundle(there)
    assert set(deploy["files"]) == (NAMES | lower | also) - {"deploy.json"}
    for label in ("dense", "slim"):
        model = deploy["lower"][label]["model"]
        assert model["sha256"] == files.sha256(there / model["path"])
        assert model["metadata"]["precision"] == target.precision
        assert deploy[label]["path"] == NETWORKS[label]
        assert f"| {model['path']} | the {label} network in" in (there / "README.md").read_text()
    assert f"FILE = 'model.{target.precision}.onnx'" in (there / "example.py").read_text() or (
        target.runtime == "tensorrt"
    )


@pytest.mark.parametrize(
    ("case", "flags"), [("board", {"--int8"}), ("eleven", {"--stronglyTyped"})]
)
def test_the_recipe_is_that_of_the_delivered_file(made, case, flags):
    run, target = made[case]
    how = files.read_json(run / "bundle/build.json", kind="Recipe")
    assert "reason" not in how
    for label, stem in (("dense", "dense"), ("slim", "model")):
        given = how["commands"][label]["build"]
        assert f"--onnx={stem}.{target.precision}.onnx" in given
        assert "--fp16" not in given or target.precision == "int8"
        if target.tensorrt != "11.1":
            assert flags <= set(given)


def test_files_of_another_precision_stay_at_home(made, tmp_path):
    run, target = made["int8"]
    run = Path(shutil.copytree(run, tmp_path / "run"))
    there = write_bundle(run, dataclasses.replace(target, precision="fp32"))
    assert {p.name for p in there.iterdir()} == NAMES
    assert "lower" not in verify_bundle(there)


def test_a_record_of_another_export_or_file_gives_no_bundle(made, tmp_path):
    run, target = made["int8"]
    run = Path(shutil.copytree(run, tmp_path / "run"))
    body = json.loads((run / "precision.json").read_text())
    body["networks"]["slim"]["quantized"]["source_sha256"] = "0"
    (run / "precision.json").write_text(json.dumps(body))
    with pytest.raises(DataError, match=r"tells of another model\.onnx than deploy\.json"):
        write_bundle(run, target)
    shutil.copy(made["int8"][0] / "precision.json", run)
    (run / "dense.int8.onnx").write_bytes(b"another")
    with pytest.raises(DataError, match=r"dense\.int8\.onnx is not the file"):
        write_bundle(run, target)


# ---------------------------------------------------------------- on the board


@pytest.mark.parametrize("bundle", ["int8", "fp16", "board"], indirect=True)
def test_verify_holds_float_to_1e4_and_the_rest_to_signal_to_noise(bundle, capsys):
    code, out, err = here(capsys, "verify", bundle, "--json", "--runtime", "onnxruntime")
    assert code == 0, err
    found = json.loads(out)
    target = json.loads((bundle / "deploy.json").read_text())["target"]
    precision = target["precision"]
    far = 6 if target["runtime"] == "onnxruntime" else 12
    assert set(found["errors"]) == {"dense", "slim"}
    assert max(found["errors"].values()) < 1e-5
    assert set(found["snr_db"]) == {f"dense {precision}", f"slim {precision}"}
    lower = files.read_json(bundle / "deploy.json", kind="Deploy")["lower"]
    for label, entry in lower.items():
        there = found["snr_db"][f"{label} {precision}"]
        assert there == pytest.approx(min(entry["snr_db"].values()), abs=far)
        assert entry["floor_db"] <= 30
        assert there < 79, "1e-4 would have refused it"


def test_a_file_that_computes_something_else_is_refused(bundle, capsys):
    """The slim int8 file under the dense one's name, with a manifest that agrees."""
    deploy = json.loads((bundle / "deploy.json").read_text())
    shutil.copy(bundle / "model.int8.onnx", bundle / "dense.int8.onnx")
    deploy["lower"]["dense"]["model"]["sha256"] = files.sha256(bundle / "model.int8.onnx")
    deploy["files"] = listing(bundle, sorted(deploy["files"]))
    (bundle / "deploy.json").write_text(json.dumps(deploy))
    code, _, err = here(capsys, "verify", bundle)
    assert code == 2
    assert "signal to noise" in err
    assert "'dense int8' in onnxruntime" in err


def test_inspect_tells_the_delivered_files(bundle):
    found = inspected(bundle)
    lower = files.read_json(bundle / "deploy.json", kind="Deploy")["lower"]["slim"]
    said = next(v for k, v in found.items() if k.startswith("slim in "))
    assert said.startswith(f"{lower['model']['path']}, {lower['model']['bytes']} bytes")
    assert f"{min(lower['snr_db'].values()):.1f} dB" in said


def test_bench_measures_the_delivered_files(bundle, capsys):
    code, _, err = here(capsys, "bench", bundle, "--restarts", 2, "--seconds", 1)
    assert code == 0, err
    for m, stem in zip(bench.read(bundle), ("dense", "model"), strict=True):
        assert m.task.sha256 == files.sha256(bundle / f"{stem}.int8.onnx")
        assert m.task.precision == "int8"


def test_a_flag_of_the_build_is_no_precision_where_the_runtime_has_none(plain, tmp_path):
    run = Path(shutil.copytree(plain, tmp_path / "run"))  # fp16 by flag: the files are float32
    bundle = Bundle(write_bundle(run, load_target("jetson")))
    assert bundle.target_in("tensorrt")["precision"] == "fp16"
    assert bundle.target_in("onnxruntime")["precision"] == "fp32"
    assert [(c.name, c.floor_db) for c in bundle.checks("tensorrt")] == [
        ("dense", 30),
        ("slim", 30),
    ]
    assert [c.floor_db for c in bundle.checks("onnxruntime")] == [None, None]


def test_an_int8_engine_is_never_asked_of_a_float_file(made):
    bundle = Bundle(made["board"][0] / "bundle")
    names = [(c.name, Path(c.model.path).name) for c in bundle.checks("tensorrt")]
    assert names == [("dense int8", "dense.int8.onnx"), ("slim int8", "model.int8.onnx")]
    assert [c.target["precision"] for c in bundle.checks("openvino")] == ["fp32"] * 2 + ["int8"] * 2
    assert bundle.path("slim").name == "model.int8.onnx"
    own, other = (bundle.checks(runtime)[-1].floor_db for runtime in ("tensorrt", "onnxruntime"))
    assert own == bundle.deploy["lower"]["slim"]["floor_db"]
    assert other == own - 6, "its 8-bit kernels are not those that the file was made for"


# ---------------------------------------------------------------- a bare Python

BARE = """
import atexit, os, runpy, sys
TAKEN = set(sys.stdlib_module_names) | {"numpy", "onnxruntime", "mint_deploy", "__main__"}
class Bare:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in TAKEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Bare())
def origin():
    ours = sys.modules.get("mint_deploy")
    if ours is not None and "mint_deploy_device.pyz" not in str(ours.__file__):
        os.write(2, f"not the zip's: {ours.__file__}".encode())
        os._exit(99)
atexit.register(origin)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def bare(folder: Path, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program of the bundle where nothing but numpy and onnxruntime can be imported."""
    guard = folder.parent / "bare.py"
    guard.write_text(BARE)
    return subprocess.run(
        [sys.executable, "-I", str(guard), program, *arguments],
        cwd=folder, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def test_unpacked_in_an_empty_folder_it_runs_with_numpy_and_onnxruntime_alone(made, tmp_path):
    (tmp_path / "empty").mkdir()
    with_tar = [sys.executable, "-I", "-m", "tarfile", "-e", str(made["int8"][0] / "bundle.tar.gz")]
    subprocess.run([*with_tar, str(tmp_path / "empty")], check=True, capture_output=True)
    there = tmp_path / "empty" / "bundle"
    done = bare(there, "mint_deploy_device.pyz", "verify")
    assert done.returncode == 0, done.stderr
    assert "dense int8: signal to noise" in done.stdout
    done = bare(there, "example.py")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 5
    assert {line.split()[1] for line in lines} == {"a", "b", "c", "d", "e"}
    best = read_parity(there / "parity.npz").outputs["slim"]["output"][0]
    assert float(lines[0].split()[0]) == pytest.approx(best.max(), abs=float(np.ptp(best)) / 5)


def test_the_guard_of_the_bare_python_guards(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "p.py").write_text("import torch")
    assert "No module named 'torch'" in bare(tmp_path / "b", "p.py").stderr
