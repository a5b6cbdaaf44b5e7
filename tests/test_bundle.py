"""The bundle: complete, verified on arrival, equal bytes, unpacked in its own folder, and it runs."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import nets
import pytest
import torch

from mint_deploy import bundle as bundles
from mint_deploy import device, files
from mint_deploy.bundle import (
    unpack_bundle,
    verify_bundle,
    write_bundle,
    write_device_zip,
)
from mint_deploy.errors import DataError, InternalError
from mint_deploy.export import export, parity_of
from mint_deploy.manifest import differences
from mint_deploy.parity import write_parity
from mint_deploy.target import load_target

#: what a board need not have
HOST_ONLY = ("torch", "onnx", "onnxscript", "typer", "rich", "jinja2", "safetensors", "sklearn")
NAMES = {
    "README.md",
    "build.json",
    "deploy.json",
    "dense.onnx",
    "example.py",
    "mint_deploy_device.pyz",
    "model.onnx",
    "parity.npz",
}


def make_run(run: Path, target_name: str) -> Path:
    """The files that the export stage leaves in a run folder."""
    run.mkdir()
    target = load_target(target_name)
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    networks = {"dense": nets.build("option_b")[0], "slim": nets.build("option_b", seed=1)[0]}
    exported = {
        label: export(model, run / bundles.NETWORKS[label], x, target)
        for label, model in networks.items()
    }
    write_parity(run / "parity.npz", parity_of(networks, x))
    body = {
        **exported,
        "target": target,
        "plan_digest": "abc",
        "class_names": ["a", "b", "c", "d", "e"],
        "mean": [0.1, 0.2, 0.3],
        "std": [1.0, 1.0, 1.0],
    }
    files.write_json(run / "deploy.json", body, kind="Deploy")
    return run


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("bundle") / "run", "jetson")


@pytest.fixture
def run(exported, tmp_path):
    return Path(shutil.copytree(exported, tmp_path / "run"))


@pytest.fixture
def bundle(run):
    return write_bundle(run, load_target("jetson"))


def board(program: Path, *arguments: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Run the program as a board would: isolated, and without the libraries of the host."""
    guard = tmp_path / "guard.py"
    guard.write_text(
        "import runpy, sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {HOST_ONLY!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    return subprocess.run(
        [sys.executable, "-I", str(guard), str(program), *arguments],
        cwd=program.parent, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


# ---------------------------------------------------------------- what is in it


def test_a_bundle_holds_what_a_board_needs_and_nothing_more(bundle, run):
    assert {path.name for path in bundle.iterdir()} == NAMES
    assert (run / "bundle.tar.gz").is_file()
    assert not list(run.glob(".*")), "nothing half-written is left"
    deploy = verify_bundle(bundle)
    assert set(deploy["files"]) == NAMES - {"deploy.json"}
    assert deploy["mean"] == [0.1, 0.2, 0.3]
    assert deploy["class_names"] == ["a", "b", "c", "d", "e"]
    assert deploy["target"]["name"] == "jetson"
    assert (deploy["dense"]["path"], deploy["slim"]["path"]) == ("dense.onnx", "model.onnx")


def test_no_path_of_the_machine_that_wrote_it_travels(bundle, run):
    for path in bundle.iterdir():
        assert os.fspath(run).encode() not in path.read_bytes(), path.name


def test_equal_runs_give_equal_bytes(exported, tmp_path, monkeypatch):
    content = []
    for name, now in (("one", 1.5e9), ("two", 1.6e9)):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        run = Path(shutil.copytree(exported, tmp_path / name))
        for path in run.iterdir():
            os.utime(path, (1e9, 1e9 + len(content)))
        write_bundle(run, load_target("jetson"))
        content.append((run / "bundle.tar.gz").read_bytes())
    assert content[0] == content[1]


def test_a_second_bundle_replaces_the_first(bundle, run):
    (bundle / "engine.plan").write_bytes(b"of the first")
    again = write_bundle(run, load_target("cpu"))
    assert again == bundle
    assert {path.name for path in bundle.iterdir()} == NAMES
    assert verify_bundle(bundle)["target"]["name"] == "cpu"


def test_the_recipe_is_data_and_text(bundle):
    how = files.read_json(bundle / "build.json", kind="Recipe")
    build = how["commands"]["slim"]["build"]
    assert build[0] == "trtexec"
    assert {"--onnx=model.onnx", "--saveEngine=model.plan", "--fp16", "--skipInference"} <= set(
        build
    )
    readme = (bundle / "README.md").read_text()
    for word in (*build, *how["commands"]["dense"]["measure"]):
        assert word in readme
    assert max(map(len, [line for line in readme.splitlines() if "--" in line])) <= 100


def test_the_two_commands_of_the_readme_are_those_of_the_program(bundle):
    readme = (bundle / "README.md").read_text()
    commands = [line.split() for line in readme.splitlines() if line.startswith("    python3")]
    assert [c[2:] for c in commands] == [["verify"], ["bench"]]
    assert all(c[1] == "mint_deploy_device.pyz" for c in commands)


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize("name", sorted(NAMES - {"deploy.json"}))
def test_every_altered_file_is_named(bundle, name):
    path = bundle / name
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(DataError, match=f"damaged: {name} has SHA-256"):
        verify_bundle(bundle)
    path.unlink()
    with pytest.raises(DataError, match=f"{name} is missing"):
        verify_bundle(bundle)


def test_files_that_are_added_on_the_board_do_not_matter(bundle):
    (bundle / "engine.plan").write_bytes(b"built here")
    verify_bundle(bundle)


def test_a_list_that_leaves_its_folder_is_not_followed(bundle):
    deploy = json.loads((bundle / "deploy.json").read_text())
    deploy["files"]["../run.json"] = {"sha256": "0", "bytes": 1}
    (bundle / "deploy.json").write_text(json.dumps(deploy))
    with pytest.raises(DataError, match=r"the list names '\.\./run\.json'"):
        verify_bundle(bundle)
    assert differences(bundle, {"/etc/passwd": {}, "..": {}}) == [
        "the list names '..', which is no file of this folder",
        "the list names '/etc/passwd', which is no file of this folder",
    ]


def test_a_run_folder_is_not_a_bundle(run):
    with pytest.raises(DataError, match="lists no files"):
        verify_bundle(run)


@pytest.mark.parametrize("name", ["dense.onnx", "parity.npz", "deploy.json"])
def test_a_run_that_lacks_a_file_gives_no_bundle(run, name):
    (run / name).unlink()
    with pytest.raises(DataError, match=name):
        write_bundle(run, load_target("cpu"))
    assert not list(run.glob("*bundle*"))


def test_a_network_that_was_changed_after_the_export_is_not_packed(bundle, run):
    (run / "model.onnx").write_bytes(b"another")
    before = (run / "bundle.tar.gz").read_bytes()
    with pytest.raises(DataError, match=r"model\.onnx is not the file that deploy\.json describes"):
        write_bundle(run, load_target("cpu"))
    verify_bundle(bundle)
    assert (run / "bundle.tar.gz").read_bytes() == before


# ---------------------------------------------------------------- the archive


def test_what_is_packed_comes_out_the_same(bundle, run, tmp_path):
    there = unpack_bundle(run / "bundle.tar.gz", tmp_path / "board")
    assert there == tmp_path / "board" / "bundle"
    assert {p.name: p.read_bytes() for p in there.iterdir()} == {
        p.name: p.read_bytes() for p in bundle.iterdir()
    }
    assert os.access(there / "mint_deploy_device.pyz", os.X_OK)
    with pytest.raises(DataError, match="is there already"):
        unpack_bundle(run / "bundle.tar.gz", tmp_path / "board")


def evil(path: Path, *members: tarfile.TarInfo, content: bytes = b"x") -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for member in members:
            if member.isreg():
                member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def link(name: str, to: str, kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, to
    return member


@pytest.mark.parametrize(
    "members",
    [
        [tarfile.TarInfo("../escaped")],
        [tarfile.TarInfo("/tmp/escaped")],  # noqa: S108  a name inside an archive
        [tarfile.TarInfo("bundle/../../escaped")],
        [tarfile.TarInfo("bundle/..")],
        [tarfile.TarInfo("bundle/sub/file")],
        [tarfile.TarInfo("other/file")],
        [link("bundle/a", "/etc/passwd", tarfile.SYMTYPE)],
        [link("bundle/a", "../../escaped", tarfile.LNKTYPE)],
        [link("bundle/a", "", tarfile.CHRTYPE)],
        [link("bundle/a", "", tarfile.FIFOTYPE)],
        [tarfile.TarInfo("bundle/a"), tarfile.TarInfo("bundle/a")],
    ],
    ids=lambda m: m[0].name + str(m[0].type),
)
def test_an_archive_that_leaves_its_folder_is_refused(tmp_path, members):
    archive = evil(tmp_path / "evil.tar.gz", *members)
    with pytest.raises(DataError, match="nothing was unpacked"):
        unpack_bundle(archive, tmp_path / "board")
    assert not list((tmp_path / "board").iterdir())
    assert {p.name for p in tmp_path.iterdir()} == {"evil.tar.gz", "board"}


def test_archives_that_are_damaged_or_missing(run, bundle, tmp_path):
    whole = (run / "bundle.tar.gz").read_bytes()
    short = tmp_path / "short.tar.gz"
    short.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError):
        unpack_bundle(short, tmp_path / "board")
    (tmp_path / "text.tar.gz").write_text("no archive")
    with pytest.raises(DataError, match=r"cannot read|damaged"):
        unpack_bundle(tmp_path / "text.tar.gz", tmp_path / "board")
    with pytest.raises(DataError, match="cannot read"):
        unpack_bundle(tmp_path / "none.tar.gz", tmp_path / "board")
    flipped = bytearray(gzip.decompress(whole))
    flipped[flipped.index(b"Written by mint-deploy")] ^= 1
    (tmp_path / "flipped.tar.gz").write_bytes(gzip.compress(bytes(flipped)))
    with pytest.raises(DataError, match=r"README\.md has SHA-256"):
        unpack_bundle(tmp_path / "flipped.tar.gz", tmp_path / "board")
    assert not list((tmp_path / "board").iterdir())


# ---------------------------------------------------------------- the program


def test_the_program_is_the_device_half_and_nothing_else(tmp_path):
    write_device_zip(tmp_path / "a.pyz")
    write_device_zip(tmp_path / "b.pyz")
    assert (tmp_path / "a.pyz").read_bytes() == (tmp_path / "b.pyz").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.pyz") as archive:
        names = archive.namelist()
        dates = {entry.date_time for entry in archive.infolist()}
    assert names == sorted(["__main__.py", *(f"mint_deploy/{n}" for n in device.MODULES)])
    assert dates == {(1980, 1, 1, 0, 0, 0)}
    assert os.access(tmp_path / "a.pyz", os.X_OK)
    assert (tmp_path / "a.pyz").read_bytes().startswith(b"#!/usr/bin/env python3\n")


def test_a_module_that_is_not_installed_is_our_bug(tmp_path, monkeypatch):
    monkeypatch.setattr(device, "MODULES", (*device.MODULES, "absent.py"))
    with pytest.raises(InternalError, match=r"lacks absent\.py"):
        write_device_zip(tmp_path / "a.pyz")
    assert not (tmp_path / "a.pyz").exists()


def test_it_probes_and_verifies_on_a_bare_python(bundle, run, tmp_path):
    """Unpacked somewhere else, isolated, with numpy and onnxruntime alone."""
    there = unpack_bundle(run / "bundle.tar.gz", tmp_path / "board")
    program = there / "mint_deploy_device.pyz"
    done = board(program, "probe", "--json", tmp_path=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["machine"]["python"]
    done = board(program, "verify", "--json", tmp_path=tmp_path)
    assert done.returncode == 0, done.stderr
    errors = json.loads(done.stdout)["errors"]
    assert set(errors) == {"dense", "slim"}
    assert max(errors.values()) < 1e-5
    (there / "README.md").write_text("changed")
    done = board(program, "verify", tmp_path=tmp_path)
    assert done.returncode == 2
    assert "README.md has SHA-256" in done.stderr
