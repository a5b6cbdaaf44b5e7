"""Times of nodes as times of our layers: the join by hand, and the real profiler on real files."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from onnx_models import save_conv
from report_runs import timed
from strange_runtime import RUNTIME, STRANGE
from torch import nn

from mint_deploy.artifacts import LayerTime
from mint_deploy.errors import ConfigError, MintDeployError, ModelError
from mint_deploy.export import export
from mint_deploy.layer_times import LayerRow, joined, layer_times
from mint_deploy.module_times import module_times
from mint_deploy.onnx_layers import read_graph
from mint_deploy.profile_layers import layer_of_node, named, with_figures, with_layers
from mint_deploy.target import load_target


class Net(nn.Module):
    """What a runtime fuses: activations, an addition, BatchNorm; and widths that are no round numbers."""

    def __init__(self, a: int = 8, b: int = 7) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, a, 3, padding=1)
        self.norm = nn.BatchNorm2d(a)
        self.block = nn.Sequential(nn.Conv2d(a, a, 3, padding=1), nn.ReLU(), nn.Conv2d(a, b, 1))
        self.relu = nn.ReLU()
        self.fc = nn.Linear(b, 12)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = self.relu(self.norm(self.stem(x)))
        x = self.relu(self.block(x + self.block[0](x)))
        return self.head(self.relu(self.fc(x.mean((2, 3)))))


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> dict[str, Path]:
    """The network wide and narrow, by the exporter that traces (the quicker one)."""
    folder = tmp_path_factory.mktemp("nets")
    torch.manual_seed(0)
    target = dataclasses.replace(load_target("jetson"), opset=17)
    for label, widths in {"dense": (8, 7), "slim": (6, 3)}.items():
        export(Net(*widths).eval(), folder / f"{label}.onnx", torch.randn(2, 3, 16, 16), target)
    return {label: folder / f"{label}.onnx" for label in ("dense", "slim")}


def row(name: str, op: str = "Conv", ns: float = 1.0, **more) -> LayerTime:
    return LayerTime(name=name, op=op, ns=ns, calls=3, **more)


# ---------------------------------------------------------------- before beside after

times = st.lists(
    st.builds(
        row,
        st.text(max_size=3),
        ns=st.floats(0, 1e9),
        layer=st.sampled_from(["a", "b", "c", None]),
        width=st.integers(1, 64),
    ),
    max_size=12,
)


@given(times, times)
def test_no_time_is_lost_and_each_layer_has_one_row(dense, slim):
    rows = joined(dense, slim)
    names = [r.layer for r in rows]
    assert len(set(names)) == len(names)
    assert set(names) == {t.layer for t in (*dense, *slim)}
    assert None not in names[:-1]
    for side, given_rows in (("ns_before", dense), ("ns_after", slim)):
        total = sum(ns for r in rows if (ns := getattr(r, side)) is not None)
        assert total == pytest.approx(sum(t.ns for t in given_rows))
    mine = [t.layer for t in dense if t.layer]
    assert [n for n in names if n in mine] == list(dict.fromkeys(mine))


def test_nodes_of_a_layer_are_added_up_and_what_one_side_lacks_is_none():
    dense = [
        row("conv/Conv", ns=5, layer="conv", width=8),
        row("add", "Add", ns=1),
        row("gone/Conv", ns=2, layer="gone", width=4),
        row("conv/Conv_2", ns=7, layer="conv", width=8),
    ]
    slim = [row("conv/Conv", ns=6, layer="conv", width=6)]
    assert joined(dense, slim) == (
        LayerRow(layer="conv", width_before=8, width_after=6, ns_before=12, ns_after=6),
        LayerRow(layer="gone", width_before=4, width_after=None, ns_before=2, ns_after=None),
        LayerRow(layer=None, width_before=None, width_after=None, ns_before=1, ns_after=None),
    )
    assert joined([], []) == ()


# ---------------------------------------------------------------- names of runtimes


def test_every_way_that_a_runtime_names_a_node(exported):
    graph = read_graph(exported["dense"])
    out = {n.name: n.output[0] for n in graph.nodes}
    first = next(n for n in graph.nodes if n.op_type == "Conv")
    relu = next(
        n for n in graph.nodes if n.op_type == "Relu"
    )  # behind the stem, its BatchNorm folded
    ways = {
        first.name: "stem",  # as it was
        f"{out[first.name]}_nchwc": "stem",  # the tensor that it writes
        f"{out[relu.name]}_nchwc": "stem",  # with the ReLU behind it
        f"{out[relu.name]}_nchwc_token_12": "stem",
        "fused head/Gemm": "head",
        "head/Gemm/MatMulAddFusion": "head",
        "head/Gemm/WithoutBiases": "head",
        "stem/Conv + relu/Relu": "stem",
        "Reformat 3 + stem/Conv": "stem",
    }
    found = named([row(name) for name in ways], exported["dense"])
    assert {t.name: t.layer for t in found} == ways
    assert {t.layer: t.width for t in found} == {"stem": 8, "head": 5}


@pytest.mark.parametrize(
    ("name", "op"),
    [
        ("ReorderOutput_token_8", "ReorderOutput"),
        ("input_abcd_acdb_stem/Conv", "Reorder"),
        ("nothing/of/ours", "Conv"),
        ("", "Conv"),
    ],
)
def test_what_belongs_to_no_layer_stays_as_it_is(exported, name, op):
    given = row(name, op, ns=4.0)
    assert named([given], exported["dense"]) == (given,)
    kept = dataclasses.replace(given, layer="known", width=3)  # what a parser knew already
    assert named([kept], exported["dense"]) == (kept,)


def test_an_activation_by_itself_is_not_its_convolution(exported):
    """The tensor of a ReLU names the fused convolution only where the kernel is a convolution."""
    graph = read_graph(exported["dense"])
    relu = next(n for n in graph.nodes if n.op_type == "Relu")
    assert named([row(relu.name, "Relu")], exported["dense"])[0].layer is None
    assert named([row(relu.output[0], "Relu")], exported["dense"])[0].layer is None
    assert named([row(relu.output[0], "Conv")], exported["dense"])[0].layer == "stem"


def test_a_sum_of_two_layers_belongs_to_neither(tmp_path):
    """A kernel that is named after the sum of two convolutions may be either."""
    weights = [numpy_helper.from_array(np.ones((2, 2, 1, 1), np.float32), n) for n in ("v", "w")]
    info = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, 2, 4, 4]) for n in "xy"]
    nodes = [
        helper.make_node("Conv", ["x", "v"], ["a"], name="one/Conv"),
        helper.make_node("Conv", ["x", "w"], ["b"], name="two/Conv"),
        helper.make_node("Add", ["a", "b"], ["s"], name="sum"),
        helper.make_node("Relu", ["s"], ["y"], name="relu"),
    ]
    made = helper.make_graph(nodes, "g", info[:1], info[1:], weights)
    sets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(made, opset_imports=sets, ir_version=8), tmp_path / "m.onnx")
    found = named([row("y_nchwc"), row("a_nchwc"), row("one/Conv")], tmp_path / "m.onnx")
    assert [t.layer for t in found] == [None, "one", "one"]


def test_nodes_without_a_name_are_found_by_their_place(tmp_path):
    path = save_conv(tmp_path / "m.onnx", depth=2)
    found = named([row("Conv_0"), row("Conv_2"), row("Relu_1", "Relu"), row("Conv_1")], path)
    assert [t.layer for t in found] == ["w0", "w1", None, None]


def test_the_layers_of_the_nodes_for_other_parsers(exported):
    known = layer_of_node(exported["dense"])
    assert set(known.values()) == {"stem", "block.0", "block.2", "fc", "head"}
    assert known["head/Gemm"] == "head"
    with pytest.raises(ModelError):
        layer_of_node(exported["dense"].with_name("none.onnx"))


# ---------------------------------------------------------------- the real profiler


def test_onnx_runtime_times_every_layer_of_both_networks(exported, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sides = {}
    for label, path in exported.items():
        found = named(layer_times(path, calls=5), path)
        assert all(t.ns >= 0 and 1 <= t.calls <= 5 for t in found)
        layers = {t.layer for t in found} - {None}
        assert layers == set(layer_of_node(path).values())
        sides[label] = found
    assert list(tmp_path.iterdir()) == []  # the trace is gone
    rows = {r.layer: r for r in joined(sides["dense"], sides["slim"])}
    widths = {n: (r.width_before, r.width_after) for n, r in rows.items() if n}
    assert widths == {
        "stem": (8, 6),
        "block.0": (8, 6),
        "block.2": (7, 3),
        "fc": (12, 12),
        "head": (5, 5),
    }
    assert sum(r.ns_before or 0 for r in rows.values()) > 0


def test_the_inputs_may_be_given(exported):
    x = {"input": np.zeros((1, 3, 16, 16), np.float32)}
    assert layer_times(exported["slim"], inputs=x, calls=1)
    with pytest.raises(MintDeployError, match="input"):
        layer_times(exported["slim"], inputs={"other": x["input"]}, calls=1)


def test_the_process_says_why_it_cannot(exported, tmp_path):
    with pytest.raises(MintDeployError, match="no profiler"):
        layer_times(exported["dense"], runtime="null")
    with pytest.raises(MintDeployError, match="batch 4 was asked for"):
        layer_times(exported["dense"], batch=4)
    with pytest.raises(ModelError, match="no such file"):
        layer_times(tmp_path / "none.onnx")
    for wrong in ({"calls": 0}, {"limit_s": 0.0}):
        with pytest.raises(ConfigError, match="above 0"):
            layer_times(exported["dense"], **wrong)


PROFILER = """
    def profile(self, inputs, calls):
        return [(f"call {i}", "Op", 1e3 * i) for i in range(calls)]
"""


def strange(tmp_path, monkeypatch, does: str, *, profiler: bool = True) -> Path:
    """A runtime of somebody else's in a package of its own, and a model that says what it does."""
    package = tmp_path / "strange_pkg"
    package.mkdir()
    (package / "__init__.py").write_text("")
    head, tail = STRANGE.split("class Runner:")
    body = f"{head}class Runner:{PROFILER if profiler else ''}{tail}"
    (package / "strange.py").write_text(body)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    model = tmp_path / "model"
    model.write_text(does)
    return model


def test_somebody_elses_runtime_may_have_a_profiler(tmp_path, monkeypatch):
    model = strange(tmp_path, monkeypatch, "sleep 0")
    found = layer_times(model, runtime=RUNTIME, calls=4)
    assert [(t.name, t.ns) for t in found] == [(f"call {i}", 1e3 * i) for i in range(4)]
    assert {t.calls for t in found} == {4}


def test_a_slow_model_is_watched_for_as_many_calls_as_there_is_time(tmp_path, monkeypatch):
    model = strange(tmp_path, monkeypatch, "sleep 0.2")
    found = layer_times(model, runtime=RUNTIME, calls=50, limit_s=0.9)
    assert 1 <= len(found) <= 3


@pytest.mark.parametrize(
    ("does", "says"), [("exit 0", "exit code 3.*about to leave"), ("kill 0", "exit code -9")]
)
def test_a_process_that_dies_leaves_its_last_words(tmp_path, monkeypatch, does, says):
    with pytest.raises(MintDeployError, match=says):
        layer_times(strange(tmp_path, monkeypatch, does), runtime=RUNTIME)


def test_a_process_that_hangs_is_stopped(tmp_path, monkeypatch):
    model = strange(tmp_path, monkeypatch, "hang 0")
    begin = time.monotonic()
    with pytest.raises(MintDeployError, match="did not answer within 2 s"):
        layer_times(model, runtime=RUNTIME, limit_s=0.5, patience_s=1.5)
    assert time.monotonic() - begin < 30


def test_openvino_times_the_same_layers(exported):
    pytest.importorskip("openvino")
    from mint_deploy import plugins

    if plugins.load("runtime", "openvino").missing():
        pytest.skip("openvino cannot be used here")
    found = named(layer_times(exported["dense"], runtime="openvino", calls=3), exported["dense"])
    # it puts both small matrix products into one kernel, which is named after the last
    assert {"stem", "block.0", "block.2", "head"} <= {t.layer for t in found}


# ---------------------------------------------------------------- into a measurement


def test_a_measurement_takes_the_times_or_the_reason(exported):
    blank = timed("dense", 1.0)
    full = with_layers(blank, exported["dense"], [row("stem/Conv", ns=7.0)])
    assert [(t.layer, t.width, t.ns) for t in full.layers] == [("stem", 8, 7.0)]
    assert "layers" not in full.nulls
    empty = with_layers(full, exported["dense"], reason="no profiler here")
    assert empty.layers == ()
    assert empty.nulls == {**blank.nulls, "layers": "no profiler here"}
    assert with_layers(empty, exported["dense"], full.layers) == full
    assert "layers" in with_layers(blank, exported["dense"], []).nulls


def test_a_measurement_takes_the_figures_or_the_reasons(exported, tmp_path):
    blank = dataclasses.replace(timed("dense", 1.0), figures={"kernels": 3.0})
    full = with_figures(blank, exported["dense"])
    assert full.figures["kernels"] == 3
    assert full.figures["file_bytes"] == exported["dense"].stat().st_size
    assert full.nulls == blank.nulls
    (tmp_path / "engine.plan").write_bytes(b"\xff\xff")
    engine = with_figures(blank, tmp_path / "engine.plan")
    assert engine.figures == {"kernels": 3.0, "file_bytes": 2.0}
    assert set(engine.nulls) - set(blank.nulls) == {
        "params", "macs", "weight_bytes", "peak_activation_bytes",
    }  # fmt: skip
    assert with_figures(engine, exported["dense"]).figures == full.figures
    assert with_figures(engine, exported["dense"]).nulls == blank.nulls


# ---------------------------------------------------------------- PyTorch


class Sleepy(nn.Module):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(self, x):
        time.sleep(self.seconds)
        return x


def test_each_module_has_its_own_time():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), Sleepy(0.02), nn.Flatten(), nn.Linear(4 * 16, 5))
    found = {t.name: t for t in module_times(model, (torch.zeros(1, 3, 4, 4),), calls=3)}
    assert list(found) == ["0", "1", "2", "3"]
    assert found["1"].ns >= 0.02e9 > found["2"].ns
    assert [(t.layer, t.width, t.op) for t in found.values()] == [
        ("0", 4, "Conv2d"), (None, None, "Sleepy"), (None, None, "Flatten"), ("3", 5, "Linear"),
    ]  # fmt: skip
    assert {t.calls for t in found.values()} == {3}


def test_a_module_that_is_called_twice_has_a_row_for_each_call():
    found = module_times(Net().eval(), (torch.zeros(1, 3, 8, 8),), calls=2)
    names = [t.name for t in found]
    assert {"relu", "relu (2)", "relu (3)", "block.0", "block.0 (2)"} <= set(names)
    assert len(names) == len(set(names))
    assert {t.layer for t in found} == {"stem", "norm", "block.0", "block.2", "fc", "head", None}
    assert {t.calls for t in found} == {2}
    assert all(t.width == 8 for t in found if t.layer in ("stem", "norm", "block.0"))


def test_the_model_is_left_as_it_was():
    model = Net().train()
    model.norm.eval()
    mean, threads = model.norm.running_mean.clone(), torch.get_num_threads()
    module_times(model, (torch.randn(2, 3, 8, 8),), calls=1)
    assert [m.training for m in model.modules()] == [m is not model.norm for m in model.modules()]
    assert torch.equal(model.norm.running_mean, mean)
    assert torch.get_num_threads() == threads
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_model_that_fails_is_left_as_it_was_too():
    model = Net().train()
    with pytest.raises(RuntimeError):
        module_times(model, (torch.zeros(1, 4, 8, 8),))
    assert model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.gpu
def test_on_a_gpu_each_module_is_waited_for():
    """A large product takes its time in its own row, not in that of the module behind it."""
    model = nn.Sequential(nn.Linear(8192, 8192), nn.ReLU(), nn.Linear(8192, 8)).cuda()
    found = {t.name: t.ns for t in module_times(model, (torch.zeros(4096, 8192).cuda(),), calls=5)}
    assert found["0"] > 3 * found["1"]
    assert found["0"] > 3 * found["2"]


def test_what_cannot_be_timed():
    with pytest.raises(ModelError, match="no modules inside"):
        module_times(nn.ReLU(), (torch.zeros(1),))
    with pytest.raises(ConfigError, match="calls is 0"):
        module_times(Net(), (torch.zeros(1, 3, 8, 8),), calls=0)


def test_the_time_limit_ends_the_passes():
    model = nn.Sequential(Sleepy(0.05), nn.Identity())
    found = module_times(model, (torch.zeros(1),), calls=1000, limit_s=0.2)
    assert 1 <= found[0].calls <= 5
