"""The conformance suite: what every runtime must do, run for every file in the folder."""

from __future__ import annotations

import ast
import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_models import save_conv

from mint_deploy import files, plugins, runtimes
from mint_deploy.artifacts import Engine
from mint_deploy.errors import (
    ConfigError,
    DataError,
    EngineMismatch,
    ModelError,
    RuntimeMissing,
    UnknownName,
)
from mint_deploy.runtimes import DYNAMIC


@dataclass(frozen=True)
class Case:
    """How the suite gets an engine and a runner of one runtime."""

    build: Callable[[Path, Path | None], Engine]
    runner: Callable[..., Any]


def _onnxruntime(folder: Path) -> Case:
    plugin = plugins.load("runtime", "onnxruntime")
    model = save_conv(folder / "model.onnx")
    return Case(
        build=lambda _, out: plugin.build(model, None, out),
        runner=lambda **settings: plugin.runner(plugin.build(model), **settings),
    )


def _pytorch(folder: Path) -> Case:
    import torch

    plugin = plugins.load("runtime", "pytorch")
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Dropout(0.5), torch.nn.Flatten()
    )
    example = (torch.zeros(1, 3, 8, 8),)
    return Case(
        build=lambda _, out: plugin.build(module, None, out),
        runner=lambda **settings: plugin.runner(module, example_inputs=example, **settings),
    )


def _null(folder: Path) -> Case:
    plugin = plugins.load("runtime", "null")
    return Case(
        build=lambda model, out: plugin.build(model, None, out),
        runner=lambda **settings: plugin.runner(**settings),
    )


#: dropping a file into runtimes/ without a line here fails the first test below
CASES = {"null": _null, "onnxruntime": _onnxruntime, "pytorch": _pytorch}
#: the null runtime takes anything and computes nothing, so this much cannot be asked of it
COMPUTING = sorted(set(CASES) - {"null"})


def test_every_runtime_of_the_folder_is_in_the_suite():
    assert plugins.known("runtime") == sorted(CASES)


def _available(name):
    reason = plugins.load("runtime", name).missing()
    if reason is not None:
        pytest.skip(reason)
    return name


@pytest.fixture(params=sorted(CASES))
def name(request):
    return _available(request.param)


@pytest.fixture
def case(name, tmp_path):
    return CASES[name](tmp_path)


@pytest.fixture(params=COMPUTING)
def computing(request, tmp_path):
    return CASES[_available(request.param)](tmp_path)


def _inputs(batch=1):
    return {"input": np.random.default_rng(batch).standard_normal((batch, 3, 8, 8), np.float32)}


class TestConformance:
    def test_build_describes_the_engine_and_writes_it_where_asked(self, name, case, tmp_path):
        engine = case.build(tmp_path / "model.onnx", tmp_path / "out")
        assert isinstance(engine, Engine)
        assert engine.runtime == name
        assert files.read_value(tmp_path / "out" / "engine.json", Engine) == engine
        case.build(tmp_path / "model.onnx", None)

    def test_the_runner_says_what_it_is(self, name, case):
        with case.runner(threads=1) as live:
            assert live.engine.runtime == name
            assert live.threads == 1
            assert [spec.name for spec in live.inputs] == ["input"]
            assert live.inputs[0].shape[0] == DYNAMIC
            assert live.outputs
            assert all(isinstance(d, int) for s in (*live.inputs, *live.outputs) for d in s.shape)

    def test_infer_maps_names_to_arrays(self, case):
        with case.runner() as live:
            found = live.infer(_inputs())
            assert list(found) == [spec.name for spec in live.outputs]
            for spec in live.outputs:
                assert isinstance(found[spec.name], np.ndarray)
                assert found[spec.name].dtype == spec.dtype
                assert found[spec.name].shape[1:] == spec.shape[1:]

    def test_equal_inputs_equal_outputs_and_the_inputs_stay(self, case):
        inputs = _inputs(2)
        kept = inputs["input"].copy()
        with case.runner() as live:
            first = {n: v.copy() for n, v in live.infer(inputs).items()}
            second = live.infer(inputs)
        for n, value in first.items():
            np.testing.assert_array_equal(value, second[n])
        np.testing.assert_array_equal(inputs["input"], kept)

    def test_an_input_that_may_not_be_written_is_taken_without_a_warning(self, case):
        inputs = _inputs()
        inputs["input"].flags.writeable = False
        with case.runner() as live:
            live.infer(inputs)

    def test_it_works_only_inside_the_with_block_and_again_in_a_new_one(self, case):
        runner = case.runner()
        with pytest.raises(ConfigError, match="not open"):
            runner.infer(_inputs())
        with runner as live:
            live.infer(_inputs())
        with pytest.raises(ConfigError, match="not open"):
            runner.infer(_inputs())
        with runner as live:
            live.infer(_inputs())

    def test_the_flags_say_how_many_threads_compute(self, computing):
        with computing.runner(threads=2) as live:
            assert live.threads == 2
            assert live.engine.flags["intra_op_threads"] == "2"
        with pytest.raises(ConfigError, match="threads is 0"):
            computing.runner(threads=0)

    def test_the_batch_that_is_open_is_open(self, computing):
        with computing.runner() as live:
            one, three = live.infer(_inputs(1)), live.infer(_inputs(3))
        for n in one:
            assert (len(one[n]), len(three[n])) == (1, 3)

    @pytest.mark.parametrize(
        "wrong",
        [
            {},
            {"other": np.zeros((1, 3, 8, 8), np.float32)},
            {"input": np.zeros((1, 4, 8, 8), np.float32)},
            {"input": np.zeros((1, 3, 8, 8), np.float64)},
        ],
        ids=["nothing", "name", "shape", "type"],
    )
    def test_wrong_inputs_are_refused_with_both_sides_named(self, computing, wrong):
        with computing.runner() as live:
            with pytest.raises(DataError, match="input"):
                live.infer(wrong)
            live.infer(_inputs())  # and it still works


# ---------------------------------------------------------------- ONNX Runtime alone


ort = plugins.load("runtime", "onnxruntime")


def test_onnxruntime_sets_every_flag_that_it_records(tmp_path):
    engine = ort.build(save_conv(tmp_path / "m.onnx"))
    with ort.runner(engine, threads=2, graph="basic", spin=True) as live:
        options = live._session.get_session_options()
        assert options.intra_op_num_threads == 2
        assert options.inter_op_num_threads == 1
        assert options.graph_optimization_level.name == "ORT_ENABLE_BASIC"
        assert options.execution_mode.name == "ORT_SEQUENTIAL"
        assert options.get_session_config_entry("session.intra_op.allow_spinning") == "1"
        assert live.engine.flags["spinning"] == "on"
    with ort.runner(engine) as live:
        options = live._session.get_session_options()
        assert options.intra_op_num_threads == 1
        assert options.graph_optimization_level.name == "ORT_ENABLE_ALL"
        assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
        assert live._session.get_providers() == ["CPUExecutionProvider"]
        assert live.engine.flags == {
            "provider": "CPUExecutionProvider",
            "graph_optimization": "all",
            "execution_mode": "sequential",
            "intra_op_threads": "1",
            "inter_op_threads": "1",
            "spinning": "off",
            "memory_arena": "on",
            "memory_pattern": "on",
        }


def test_onnxruntime_engine_is_the_file_with_its_hash_and_version(tmp_path):
    import onnxruntime

    path = save_conv(tmp_path / "m.onnx")
    engine = ort.build(path, {"precision": "fp16"})
    assert engine.path == str(path)
    assert engine.sha256 == files.sha256(path)
    assert engine.precision == "fp16"
    assert engine.builder == {"onnxruntime": onnxruntime.__version__}


def test_onnxruntime_outputs_are_those_of_a_plain_session(tmp_path):
    import onnxruntime

    path = save_conv(tmp_path / "m.onnx")
    plain = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    with ort.runner(ort.build(path)) as live:
        np.testing.assert_array_equal(
            live.infer(_inputs(4))["output"], plain.run(None, _inputs(4))[0]
        )


def test_onnxruntime_reads_fixed_and_open_dimensions(tmp_path):
    with ort.runner(ort.build(save_conv(tmp_path / "m.onnx", batch=4))) as live:
        assert live.inputs[0].shape == (4, 3, 8, 8)
        assert live.inputs[0].dtype == "float32"
    with ort.runner(ort.build(save_conv(tmp_path / "n.onnx"))) as live:
        assert live.inputs[0].shape == (DYNAMIC, 3, 8, 8)
        assert live.outputs[0].shape == (DYNAMIC, 8)


def test_onnxruntime_refuses_what_is_no_model(tmp_path):
    with pytest.raises(ModelError, match="no such file"):
        ort.build(tmp_path / "absent.onnx")
    (tmp_path / "text.onnx").write_text("this is no model")
    with pytest.raises(ModelError, match=r"cannot load .*text\.onnx"):
        ort.build(tmp_path / "text.onnx")
    half = save_conv(tmp_path / "half.onnx").read_bytes()[:-200]
    (tmp_path / "half.onnx").write_bytes(half)
    with pytest.raises(ModelError, match="cannot load"):
        ort.build(tmp_path / "half.onnx")


def test_onnxruntime_refuses_a_file_that_changed_since_it_was_built(tmp_path):
    engine = ort.build(save_conv(tmp_path / "m.onnx"))
    save_conv(tmp_path / "m.onnx", channels=4)
    with pytest.raises(EngineMismatch, match="build it anew"):
        ort.runner(engine)
    (tmp_path / "m.onnx").unlink()
    with pytest.raises(ModelError, match="no such file"):
        ort.runner(engine)


def test_onnxruntime_names_providers_and_levels_that_are_not_there(tmp_path):
    engine = ort.build(save_conv(tmp_path / "m.onnx"))
    with pytest.raises(RuntimeMissing, match="no provider 'NoSuchProvider'"):
        ort.runner(engine, provider="NoSuchProvider")
    with pytest.raises(UnknownName, match="did you mean 'extended'"):
        ort.runner(engine, graph="extented")


def test_a_runtime_that_is_not_installed_says_so_and_how_to_mend_it(tmp_path, monkeypatch):
    path = save_conv(tmp_path / "m.onnx")
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(RuntimeMissing, match="pip install onnxruntime"):
        ort.build(path)


@pytest.mark.parametrize("library", ["onnxruntime", "torch"])
def test_missing_tells_an_absent_library(library, monkeypatch):
    plugin = plugins.load("runtime", {"torch": "pytorch"}.get(library, library))
    assert plugin.missing() is None
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert library in plugin.missing()


# ---------------------------------------------------------------- PyTorch alone


pt = plugins.load("runtime", "pytorch")


def test_pytorch_puts_mode_and_threads_back():
    import torch

    module = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.Dropout(0.5)).train()
    module[1].eval()
    before = torch.get_num_threads()
    with pt.runner(module, threads=2, example_inputs=(torch.zeros(1, 4),)):
        assert not module.training
        assert torch.get_num_threads() == 2
    assert module.training
    assert not module[1].training
    assert torch.get_num_threads() == before


def test_pytorch_that_fails_on_its_example_leaves_nothing_changed():
    import torch

    module = torch.nn.Linear(4, 2).train()
    before = torch.get_num_threads()
    runner = pt.runner(module, threads=before + 1, example_inputs=(torch.zeros(1, 5),))
    with pytest.raises(DataError):
        runner.__enter__()
    assert module.training
    assert torch.get_num_threads() == before


def test_pytorch_takes_several_inputs_and_names_several_outputs():
    import torch

    class Two(torch.nn.Module):
        def forward(self, a, b):
            return {"sum": a + b, "product": a * b}

    examples = (torch.ones(1, 2), torch.ones(1, 2))
    with pt.runner(Two(), example_inputs=examples, names=("a", "b")) as live:
        found = live.infer({"b": np.full((1, 2), 3, np.float32), "a": np.ones((1, 2), np.float32)})
        assert found["sum"].tolist() == [[4, 4]]
        assert found["product"].tolist() == [[3, 3]]
    with pytest.raises(ConfigError, match="1 names for 2 inputs"):
        pt.runner(Two(), example_inputs=examples)


def test_pytorch_engine_hash_follows_the_weights(tmp_path):
    import torch

    module = torch.nn.Linear(3, 2)
    first = pt.build(module).sha256
    assert pt.build(module).sha256 == first
    with torch.no_grad():
        module.bias[0] += 1
    assert pt.build(module).sha256 != first


def test_pytorch_refuses_a_file():
    with pytest.raises(ModelError, match="for an ONNX file use the runtime onnxruntime"):
        pt.build("model.onnx")


# ---------------------------------------------------------------- the folder


def test_option_reads_a_target_its_json_and_none():
    class Target:
        precision = "fp16"
        batch = None

    assert runtimes.option(Target(), "precision", "fp32") == "fp16"
    assert runtimes.option({"precision": "int8"}, "precision", "fp32") == "int8"
    assert runtimes.option(Target(), "batch", 1) == 1
    assert runtimes.option(None, "precision", "fp32") == "fp32"


def test_no_runtime_imports_its_library_when_it_is_imported():
    for path in Path(runtimes.__file__).parent.glob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            roots = {str(n).partition(".")[0] for n in names}
            assert not roots & {"torch", "onnxruntime", "tensorrt", "psutil"}, path.name


def test_a_misspelt_runtime_is_answered_with_the_nearest():
    with pytest.raises(UnknownName, match="did you mean 'onnxruntime'"):
        plugins.load("runtime", "onnxrutime")
