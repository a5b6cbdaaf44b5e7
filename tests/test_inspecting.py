"""What ``inspect`` says of engines, bundles and programs: also where they are not what they should be."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx_models import save_conv

from mint_deploy import engine_file, files
from mint_deploy.artifacts import Engine
from mint_deploy.bundle import write_device_zip
from mint_deploy.cli.inspecting import inspected
from mint_deploy.errors import DataError


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "engine.plan"
    path.write_bytes(b"ftrt" + bytes(40))
    engine = Engine(
        path="engine.plan", runtime="tensorrt", precision="fp16", sha256=files.sha256(path),
        flags={"onnx": "model.onnx"}, builder={"tensorrt": "10.3.0", "sm": "8.7"},
    )  # fmt: skip
    engine_file.write(engine, tmp_path)
    return path


def test_an_engine_by_its_plan_its_record_or_its_folder(plan: Path) -> None:
    found = [inspected(place) for place in (plan, plan.with_name("engine.json"), plan.parent)]
    assert found[0] == found[1] == found[2]
    assert found[0]["plan"] == "engine.plan, as it was built"
    assert found[0]["built for"] == {"tensorrt": "10.3.0", "sm": "8.7"}
    assert "build" in found[0]["built anew by"]


def test_an_altered_or_missing_plan_is_said(plan: Path) -> None:
    plan.write_bytes(b"ftrt" + bytes(41))
    assert inspected(plan)["plan"] == "engine.plan, altered since it was built"
    plan.unlink()
    assert inspected(plan.with_name("engine.json"))["plan"] == "engine.plan, missing"


def test_a_plan_alone_says_that_it_is_alone(plan: Path) -> None:
    plan.with_name("engine.json").unlink()
    with pytest.raises(DataError, match=r"no engine\.json beside it"):
        inspected(plan)


def test_the_device_program(tmp_path: Path) -> None:
    write_device_zip(tmp_path / "mint_deploy_device.pyz")
    found = inspected(tmp_path / "mint_deploy_device.pyz")
    assert found["what"] == "the device program"
    assert found["version"]
    (tmp_path / "other.pyz").write_bytes(b"PK")
    with pytest.raises(DataError, match="no device program"):
        inspected(tmp_path / "other.pyz")


def test_an_archive_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "bundle.tar.gz").write_bytes(b"\x1f\x8b\x08nothing")
    with pytest.raises(DataError, match="damaged or no"):
        inspected(tmp_path / "bundle.tar.gz")


def test_a_folder_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no run folder, bundle or engine"):
        inspected(tmp_path)


def test_the_precision_of_an_onnx_file_is_read_from_it(tmp_path: Path) -> None:
    path = save_conv(tmp_path / "m.onnx", channels=4)
    found = inspected(path)
    assert found["precision"] == "fp32"
    assert set(found["inputs"]) == {"input"}
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        half = onnx.numpy_helper.to_array(tensor).astype("float16")
        tensor.CopyFrom(onnx.numpy_helper.from_array(half, tensor.name))
    onnx.save(model, tmp_path / "half.onnx")
    assert inspected(tmp_path / "half.onnx")["precision"].startswith("fp16")
