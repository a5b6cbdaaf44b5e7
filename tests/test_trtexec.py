"""TensorRT's program: its dialects, driven through a stand-in that keeps its arguments."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest
from bundles import here, make_bundle

from mint_deploy import files, trtexec
from mint_deploy.artifacts import Engine
from mint_deploy.errors import ConfigError, MintDeployError, ModelError, RuntimeMissing


@pytest.fixture
def bundle(tmp_path):
    return make_bundle(tmp_path / "bundle")


BANNERS = {
    "8.5.2": "&&&& RUNNING TensorRT.trtexec [TensorRT v8502] # trtexec --help",
    "8.6.2": "&&&& RUNNING TensorRT.trtexec [TensorRT v8602] # trtexec --help",
    "10.3.0": "&&&& RUNNING TensorRT.trtexec [TensorRT v100300] [b1] # trtexec --help",
    "10.13.3": "&&&& RUNNING TensorRT.trtexec [TensorRT v101303] [b9] # trtexec --help",
    "11.1.0": "&&&& RUNNING TensorRT.trtexec [TensorRT v110100] # trtexec --help",
}

FAKE = """#!{python}
import sys
print({banner!r})
if "--help" in sys.argv:
    sys.exit(0)
given = dict(a.partition("=")[::2] for a in sys.argv[1:])
open({log!r}, "w").write("\\n".join(sys.argv[1:]))
if {fails!r}:
    open(given["--saveEngine"], "w").write("half")
    print("[I] parsing")
    print("[E] Error[4]: [graphShapeAnalyzer.cpp] IShuffleLayer: reshape")
    print("[E] Engine could not be created from network")
    sys.exit(1)
open(given["--saveEngine"], "wb").write(b"a plan")
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Returns a function that puts a trtexec of some version on PATH; arguments land in a file."""

    def make(version, fails=False):
        folder = tmp_path / "trt"
        folder.mkdir(exist_ok=True)
        log = folder / "log"
        program = folder / "trtexec"
        program.write_text(
            FAKE.format(
                python=sys.executable, banner=BANNERS.get(version, version), log=str(log),
                fails=fails,
            )
        )  # fmt: skip
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        return log

    return make


@pytest.mark.parametrize("version", BANNERS)
def test_the_version_is_read_from_the_banner(version):
    assert trtexec.parse_version(BANNERS[version]) == {"version": version}
    assert trtexec.parse_version("trtexec: command not found") == {}


@pytest.mark.parametrize(
    ("version", "precision", "skip", "fp16"),
    [
        ("8.5.2", "fp16", "--buildOnly", True),
        ("8.6.2", "fp32", "--skipInference", False),
        ("10.3.0", "fp16", "--skipInference", True),
        ("11.1.0", "fp32", "--skipInference", False),
    ],
)
def test_each_dialect_has_its_arguments(tmp_path, fake, version, precision, skip, fp16):
    log = fake(version)
    bundle = make_bundle(tmp_path / "b c")  # a blank in the path: no shell is in between
    engine = trtexec.build(bundle / "model.onnx", bundle, precision)
    given = log.read_text().splitlines()
    assert f"--onnx={bundle / 'model.onnx'}" in given
    assert f"--timingCacheFile={bundle / 'timing.cache'}" in given
    assert skip in given
    assert ("--fp16" in given) == fp16
    assert (bundle / "engine.plan").read_bytes() == b"a plan"
    assert engine.builder == {"tensorrt": version}
    assert engine.flags["onnx_sha256"] == files.sha256(bundle / "model.onnx")
    assert files.read_value(bundle / "engine.json", Engine) == engine


def test_precisions_that_a_dialect_does_not_take():
    paths = [Path("a"), Path("b"), Path("c")]
    with pytest.raises(ConfigError, match="takes the precision from the ONNX file"):
        trtexec.arguments("11.1.0", "fp16", *paths)
    with pytest.raises(ConfigError, match="quantisation nodes"):
        trtexec.arguments("10.3.0", "int8", *paths)


def test_a_build_that_fails_leaves_nothing_and_quotes_its_errors(bundle, fake):
    fake("10.3.0", fails=True)
    with pytest.raises(
        MintDeployError, match=r"could not build model\.onnx .exit code 1."
    ) as caught:
        trtexec.build(bundle / "model.onnx", bundle)
    assert "IShuffleLayer: reshape | [E] Engine could not be created" in str(caught.value)
    assert not (bundle / "engine.plan").exists()
    assert not (bundle / "engine.json").exists()
    assert not list(bundle.glob(".*part"))


def test_without_trtexec_the_build_is_refused_with_the_command_that_mends_it(
    tmp_path, capsys, monkeypatch
):
    bundle = make_bundle(tmp_path / "b", runtime="tensorrt")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(trtexec, "_JETPACK", tmp_path / "absent")
    code, _, err = here(capsys, "build", bundle)
    assert code == 2
    assert "apt-get install libnvinfer-bin" in err
    with pytest.raises(RuntimeMissing):
        trtexec.build(bundle / "model.onnx", bundle)


def test_trtexec_off_path_is_found_where_jetpack_puts_it(tmp_path, monkeypatch):
    program = tmp_path / "bin" / "trtexec"
    program.parent.mkdir()
    program.write_text("")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(trtexec, "_JETPACK", program)
    assert trtexec.find() == str(program)


def test_build_drives_trtexec_for_a_tensorrt_target(tmp_path, capsys, fake):
    log = fake("10.3.0")
    bundle = make_bundle(tmp_path / "b", runtime="tensorrt", precision="fp16")
    code, out, err = here(capsys, "build", bundle)
    assert code == 0, err
    assert "slim: engine.plan for tensorrt, fp16, by tensorrt 10.3.0" in out
    assert "--fp16" in log.read_text()
    code, _, err = here(capsys, "build", bundle, "--precision", "fp32")
    assert code == 0, err
    assert "--fp16" not in log.read_text()


def test_a_trtexec_without_a_version_and_a_missing_model(bundle, fake):
    fake("something else")
    with pytest.raises(MintDeployError, match="does not say which TensorRT"):
        trtexec.build(bundle / "model.onnx", bundle)
    with pytest.raises(ModelError, match="no such file"):
        trtexec.build(bundle / "absent.onnx", bundle)
