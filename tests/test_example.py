"""The generated example is run as a user would run it, and must say what the network says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx_models import save_conv
from PIL import Image

from mint_deploy import plugins
from mint_deploy.artifacts import ExportedModel, TensorSpec
from mint_deploy.example import example
from mint_deploy.parity import Parity, write_parity

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.1]


def exported(
    *, name: str = "input", inputs: int = 1, shape: tuple[int, ...] = (-1, 3, 8, 8)
) -> ExportedModel:
    return ExportedModel(
        path="model.onnx", opset=17, ir_version=8, sha256="", bytes=1, max_error=0.0, parity_batches=(1,),
        inputs=tuple(TensorSpec(name=f"{name}{i or ''}", shape=shape) for i in range(inputs)),
        outputs=(TensorSpec(name="output", shape=(-1, 8)),),
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network, one sample of it, and the program beside them."""
    made = tmp_path_factory.mktemp("example")
    save_conv(made / "model.onnx", channels=4)
    x = np.random.default_rng(0).standard_normal((3, 3, 8, 8)).astype(np.float32)
    write_parity(made / "parity.npz", Parity(inputs={"input": x}, outputs={}))
    names = ["cat", 'it\'s "one"', "x\ny", "naïve 🙂", "\\"]
    text = example(exported(), "model.onnx", mean=MEAN, std=STD, class_names=names)
    assert text is not None
    (made / "example.py").write_text(text, encoding="utf-8")
    return made


def scores(folder: Path, x: np.ndarray) -> np.ndarray:
    plugin = plugins.load("runtime", "onnxruntime")
    with plugin.runner(plugin.build(folder / "model.onnx")) as live:
        return live.infer({"input": x.astype(np.float32)})["output"][0].ravel()


def shown(folder: Path, *arguments: str) -> list[float]:
    command = [sys.executable, "-I", str(folder / "example.py"), *arguments]
    done = subprocess.run(command, capture_output=True, check=False, cwd=folder.parent)
    assert done.returncode == 0, done.stderr.decode()
    return [
        float(line.split()[0])
        for line in done.stdout.decode().splitlines()
        if line.strip()[:1] in "-0123456789"
    ]


def test_without_an_argument_it_runs_the_sample(folder: Path) -> None:
    with np.load(folder / "parity.npz") as stored:
        expected = np.sort(scores(folder, stored["inputs.input"][:1]))[::-1][:5]
    assert shown(folder)[:5] == pytest.approx(expected, abs=1e-3)


def test_a_picture_is_normalised_as_in_training(folder: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "p.png")
    np.save(tmp_path / "p.npy", pixels)
    x = (pixels.transpose(2, 0, 1)[None] / 255 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(
        STD, (3, 1, 1)
    )
    np.save(tmp_path / "x.npy", x.astype(np.float32))
    expected = np.sort(scores(folder, x))[::-1][:5]
    for name in ("p.png", "p.npy", "x.npy"):
        assert shown(folder, str(tmp_path / name))[:5] == pytest.approx(expected, abs=1e-3), name


def test_a_picture_of_another_size_is_resized(folder: Path, tmp_path: Path) -> None:
    Image.fromarray(np.full((31, 17), 128, np.uint8)).save(tmp_path / "grey.png")
    x = (np.full((1, 3, 8, 8), 128 / 255) - np.reshape(MEAN, (3, 1, 1))) / np.reshape(
        STD, (3, 1, 1)
    )
    expected = np.sort(scores(folder, x))[::-1][:5]
    assert shown(folder, str(tmp_path / "grey.png"))[:5] == pytest.approx(expected, abs=1e-3)


def test_an_input_that_does_not_fit_is_refused(folder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "wide.npy", np.zeros((1, 3, 8, 9), np.float32))
    command = [sys.executable, "-I", str(folder / "example.py"), str(tmp_path / "wide.npy")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "the network takes input [-1, 3, 8, 8] (-1: any), not [1, 3, 8, 9]" in done.stderr


@pytest.mark.parametrize(
    "runtime", ["onnxruntime", "openvino", "tensorrt", "one that is not known"]
)
def test_it_is_python_whatever_the_names_hold(runtime: str) -> None:
    hostile = 'x\')\nimport os; os.abort()  # """ ${FILE} \\'
    text = example(
        exported(name=hostile), "model.onnx", runtime=runtime, class_names=[hostile, hostile * 9]
    )
    assert text is not None
    space: dict[str, object] = {}
    head = text[text.index("FILE = ") : text.index("def picture")].split("\n\n")[0]
    exec(compile(head, "head", "exec"), space)  # noqa: S102  # the constants alone
    assert space["INPUT"] == hostile
    assert space["CLASSES"] == [hostile, hostile * 9]
    compile(text, "example.py", "exec")


def test_an_engine_that_is_not_built_is_said(tmp_path: Path) -> None:
    from mint_deploy.bundle import write_device_zip

    text = example(exported(), "model.onnx", runtime="tensorrt")
    assert text is not None
    (tmp_path / "example.py").write_text(text)
    write_device_zip(tmp_path / "mint_deploy_device.pyz")
    done = subprocess.run(
        [sys.executable, "-I", str(tmp_path / "example.py")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "first build the engine here: python3 mint_deploy_device.pyz build" in done.stderr


def test_there_is_none_where_it_would_not_be_small() -> None:
    assert example(exported(inputs=2), "model.onnx") is None
    assert example(exported(shape=(-1, 8)), "model.onnx") is None
