"""The conformance suite: what every runtime must do, run for every file in the folder."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator
from onnx_models import save_conv

from mint_deploy import files, plugins, runtimes
from mint_deploy.artifacts import Engine, TensorSpec
from mint_deploy.errors import ConfigError, DataError, EngineMismatch, ModelError, UnknownName
from mint_deploy.runtimes import DYNAMIC


@dataclass(frozen=True)
class Case:
    """How the suite gets an engine, a runner and the right answer of one runtime."""

    build: Callable[[Path, Path | None], Engine]
    runner: Callable[..., Any]
    #: inputs -> what should come out, in the order of the outputs
    reference: Callable[[Any], list[Any]] = lambda _: []


def _of_files(name: str) -> Callable[[Path], Case]:
    """The case of a runtime that runs ONNX files; the right answer is that of ONNX's reference."""

    def case(folder: Path) -> Case:
        plugin = plugins.load("runtime", name)
        model = save_conv(folder / "model.onnx")
        return Case(
            build=lambda _, out: plugin.build(model, None, out),
            runner=lambda **settings: plugin.runner(plugin.build(model), **settings),
            reference=lambda inputs: ReferenceEvaluator(str(model)).run(None, inputs),
        )

    return case


def _pytorch(folder: Path) -> Case:
    import torch

    plugin = plugins.load("runtime", "pytorch")
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Dropout(0.5), torch.nn.Flatten()
    )
    example = (torch.zeros(1, 3, 8, 8),)

    def reference(inputs):
        conv, x = module[0], torch.from_numpy(inputs["input"])
        with torch.no_grad():
            return [torch.nn.functional.conv2d(x, conv.weight, conv.bias, padding=1).flatten(1)]

    return Case(
        build=lambda _, out: plugin.build(module, None, out),
        runner=lambda **settings: plugin.runner(module, example_inputs=example, **settings),
        reference=reference,
    )


def _null(folder: Path) -> Case:
    plugin = plugins.load("runtime", "null")
    return Case(
        build=lambda model, out: plugin.build(model, None, out),
        runner=lambda **settings: plugin.runner(**settings),
    )


#: those that run ONNX files
ON_FILES = ["onnxruntime", "onnxruntime_cuda", "onnxruntime_tensorrt", "openvino", "tensorrt"]
#: dropping a file into runtimes/ without a line here fails the first test below
CASES = {"null": _null, "pytorch": _pytorch, **{name: _of_files(name) for name in ON_FILES}}


def test_every_runtime_of_the_folder_is_in_the_suite():
    assert plugins.known("runtime") == sorted(CASES)


#: why those that are not here are not
MISSING = {n: why for n in CASES if (why := plugins.load("runtime", n).missing()) is not None}
#: the null runtime takes anything and computes nothing, so this much cannot be asked of it
COMPUTING = sorted(set(CASES) - {"null", *MISSING})


@pytest.mark.parametrize("name", sorted(CASES))
def test_the_suite_is_run_for_it_here(name):
    if name in MISSING:
        pytest.skip(f"the conformance suite leaves {name} out: {MISSING[name]}")
    assert name in (*COMPUTING, "null")


def _marked(names):
    """Those that need hardware run where it is asked for."""
    marks = {"onnxruntime_cuda": "gpu", "onnxruntime_tensorrt": "gpu", "tensorrt": "tensorrt"}
    return [
        pytest.param(n, marks=getattr(pytest.mark, marks[n]) if n in marks else ()) for n in names
    ]


@pytest.fixture(params=_marked(sorted(set(CASES) - set(MISSING))))
def name(request):
    return request.param


@pytest.fixture
def case(name, tmp_path):
    return CASES[name](tmp_path)


@pytest.fixture(params=_marked(COMPUTING))
def computing(request, tmp_path):
    return CASES[request.param](tmp_path)


@pytest.fixture(params=_marked(n for n in ON_FILES if n not in MISSING))
def on_files(request, tmp_path):
    return plugins.load("runtime", request.param), tmp_path


def _inputs(batch=1, seed=None):
    rng = np.random.default_rng(batch if seed is None else seed)
    return {"input": rng.standard_normal((batch, 3, 8, 8), np.float32)}


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

    def test_leaving_by_an_error_closes_it_too(self, case):
        runner = case.runner()
        with pytest.raises(KeyboardInterrupt), runner:
            raise KeyboardInterrupt
        with pytest.raises(ConfigError, match="not open"):
            runner.infer(_inputs())


class TestComputing:
    @pytest.mark.parametrize("batch", [1, 2, 5])
    def test_it_computes_what_the_reference_computes(self, computing, batch):
        inputs = _inputs(batch)
        with computing.runner() as live:
            found = list(live.infer(inputs).values())
        expected = [np.asarray(value) for value in computing.reference(inputs)]
        assert len(found) == len(expected) > 0
        for a, b in zip(found, expected, strict=True):
            assert a.shape == b.shape
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)

    def test_the_flags_say_how_many_threads_compute(self, computing):
        with computing.runner(threads=2) as live:
            assert live.threads == 2
            assert live.engine.flags["intra_op_threads"] == "2"
        with pytest.raises(ConfigError, match="threads is 0"):
            computing.runner(threads=0)

    def test_every_flag_is_a_text_that_travels_as_json(self, computing):
        with computing.runner() as live:
            flags = live.engine.flags
            assert all(isinstance(k, str) and isinstance(v, str) for k, v in flags.items())
            assert files.decode(Engine, files.encode(live.engine)) == live.engine

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
            {"input": np.zeros((1, 3, 8, 8), np.float32), "more": np.zeros(1, np.float32)},
            {"input": np.zeros((1, 4, 8, 8), np.float32)},
            {"input": np.zeros((1, 3, 8), np.float32)},
            {"input": np.zeros((1, 3, 8, 8), np.float64)},
            {"input": np.zeros((1, 3, 8, 8), np.int32)},
            {"input": np.zeros((0, 3, 8, 8), np.float32)},
        ],
        ids=[
            "nothing",
            "name",
            "one too many",
            "channels",
            "rank",
            "float64",
            "int32",
            "no sample",
        ],
    )
    def test_wrong_inputs_are_refused_and_it_works_on(self, computing, wrong):
        with computing.runner() as live:
            before = live.infer(_inputs())
            with pytest.raises(DataError, match="input"):
                live.infer(wrong)
            after = live.infer(_inputs())
        for n, value in before.items():
            np.testing.assert_array_equal(after[n], value)

    @pytest.mark.parametrize(
        "strange",
        [
            lambda x: np.asfortranarray(x),
            lambda x: np.ascontiguousarray(x[:, :, ::-1, ::-1])[:, :, ::-1, ::-1],
            lambda x: np.repeat(x, 2, axis=3)[..., ::2],
            lambda x: np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2),
        ],
        ids=["columns first", "backwards", "every other", "channels last"],
    )
    def test_the_layout_of_an_array_in_memory_does_not_matter(self, computing, strange):
        plain = _inputs(2)["input"]
        odd = strange(plain)
        np.testing.assert_array_equal(odd, plain)
        assert not odd.flags.c_contiguous
        with computing.runner() as live:
            expected, found = live.infer({"input": plain}), live.infer({"input": odd})
        for n, value in expected.items():
            np.testing.assert_array_equal(found[n], value)

    def test_what_it_returned_stays_as_it_was(self, computing):
        with computing.runner() as live:
            first = live.infer(_inputs(2, seed=1))
            kept = {n: v.copy() for n, v in first.items()}
            live.infer(_inputs(2, seed=2))
        for n, value in kept.items():
            np.testing.assert_array_equal(first[n], value)

    def test_two_sessions_at_once_do_not_disturb_each_other(self, computing):
        one, two = computing.runner(), computing.runner()
        with one:
            alone = one.infer(_inputs(3))
            with two:
                np.testing.assert_array_equal(*_first(two.infer(_inputs(3)), alone))
                one.infer(_inputs(1))
            np.testing.assert_array_equal(*_first(one.infer(_inputs(3)), alone))

    def test_sessions_may_be_left_in_the_order_in_which_they_were_entered(self, computing):
        one, two = computing.runner(), computing.runner()
        one.__enter__()
        alone = one.infer(_inputs(3))
        two.__enter__()
        one.__exit__(None, None, None)
        try:
            np.testing.assert_array_equal(*_first(two.infer(_inputs(3)), alone))
        finally:
            two.__exit__(None, None, None)

    def test_several_threads_may_call_one_session(self, computing):
        with computing.runner() as live:
            alone = [live.infer(_inputs(2, seed=i)) for i in range(8)]
            with ThreadPoolExecutor(4) as pool:
                found = list(pool.map(lambda i: live.infer(_inputs(2, seed=i % 8)), range(48)))
        for i, outputs in enumerate(found):
            for n, value in outputs.items():
                np.testing.assert_array_equal(value, alone[i % 8][n])


def _first(*outputs):
    return [next(iter(each.values())) for each in outputs]


class TestOnFiles:
    def test_a_file_that_changed_since_it_was_built_is_refused(self, on_files):
        plugin, folder = on_files
        engine = plugin.build(save_conv(folder / "m.onnx"))
        data = Path(engine.path).read_bytes()
        Path(engine.path).write_bytes(data + b"\x92\x01\x00")  # an unknown field: still ONNX
        with pytest.raises(EngineMismatch):
            plugin.runner(engine).__enter__()
        Path(engine.path).write_bytes(data)
        with plugin.runner(engine) as live:
            live.infer(_inputs())

    def test_what_is_no_model_is_refused(self, on_files):
        plugin, folder = on_files
        with pytest.raises(ModelError, match="no such file"):
            plugin.build(folder / "absent.onnx")
        (folder / "text.onnx").write_text("this is no model")
        with pytest.raises(ModelError, match=r"text\.onnx"):
            plugin.build(folder / "text.onnx")
        half = save_conv(folder / "half.onnx").read_bytes()[:-200]
        (folder / "half.onnx").write_bytes(half)
        with pytest.raises(ModelError, match=r"half\.onnx"):
            plugin.build(folder / "half.onnx")

    def test_the_engine_of_another_process_runs(self, on_files):
        """What the bench sends to the processes that it starts: the engine as JSON, nothing else."""
        plugin, folder = on_files
        model = save_conv(folder / "m.onnx")
        engine = files.decode(Engine, files.encode(plugin.build(model, {"precision": "fp32"})))
        with plugin.runner(engine, threads=1) as live:
            found = live.infer(_inputs(2))["output"]
        expected = ReferenceEvaluator(str(model)).run(None, _inputs(2))[0]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)

    def test_a_fixed_batch_is_said_and_kept(self, on_files):
        plugin, folder = on_files
        engine = plugin.build(save_conv(folder / "m.onnx", batch=4))
        with plugin.runner(engine) as live:
            assert live.inputs == (TensorSpec(name="input", shape=(4, 3, 8, 8)),)
            assert live.outputs == (TensorSpec(name="output", shape=(4, 8)),)
            live.infer(_inputs(4))
            with pytest.raises(DataError, match="input"):
                live.infer(_inputs(2))


# ---------------------------------------------------------------- the folder


def test_option_reads_a_target_its_json_and_none():
    class Target:
        precision = "fp16"
        batch = None

    assert runtimes.option(Target(), "precision", "fp32") == "fp16"
    assert runtimes.option({"precision": "int8"}, "precision", "fp32") == "int8"
    assert runtimes.option(Target(), "batch", 1) == 1
    assert runtimes.option(None, "precision", "fp32") == "fp32"


def test_check_inputs_knows_open_dimensions_and_scalars():
    specs = (
        TensorSpec(name="x", shape=(DYNAMIC, 3)),
        TensorSpec(name="s", shape=(), dtype="int64"),
    )
    fine = {"x": np.zeros((7, 3), np.float32), "s": np.array(1)}
    runtimes.check_inputs(specs, fine, "m.onnx")
    with pytest.raises(DataError, match=r"m\.onnx takes x float32 \[-1, 3\], s int64 \[\]"):
        runtimes.check_inputs(specs, {**fine, "s": np.array([1])}, "m.onnx")
    with pytest.raises(DataError, match=r"'x' \[0, 3\] holds no sample"):
        runtimes.check_inputs(specs, {**fine, "x": np.zeros((0, 3), np.float32)}, "m.onnx")


def test_same_file_is_the_hash_of_the_file(tmp_path):
    path = save_conv(tmp_path / "m.onnx")
    engine = Engine(path=str(path), runtime="any", precision="fp32", sha256="")
    assert runtimes.same_file(engine) == files.sha256(path)
    other = dataclasses.replace(engine, sha256="0" * 64)
    with pytest.raises(EngineMismatch, match="build it anew"):
        runtimes.same_file(other)


def test_no_runtime_imports_its_library_when_it_is_imported():
    for path in Path(runtimes.__file__).parent.glob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            roots = {str(n).partition(".")[0] for n in names}
            assert not roots & {"torch", "onnxruntime", "openvino", "tensorrt", "psutil"}, path.name


def test_no_runtime_pickles():
    for path in Path(runtimes.__file__).parent.glob("*.py"):
        assert "pickle" not in path.read_text(encoding="utf-8"), path.name


@pytest.mark.parametrize("name", sorted(set(CASES) - {"null"}))
def test_missing_tells_an_absent_library_and_mend_how_to_get_it(name, monkeypatch):
    plugin = plugins.load("runtime", name)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    library = {"pytorch": "torch"}.get(name, name.partition("_")[0])
    assert library in plugin.missing()
    assert library in plugin.MEND


def test_a_misspelt_runtime_is_answered_with_the_nearest():
    with pytest.raises(UnknownName, match="did you mean 'onnxruntime'"):
        plugins.load("runtime", "onnxrutime")
