"""What an ONNX file says of its layers and what they cost: against PyTorch, by hand, and by brute force."""

from __future__ import annotations

import math
from pathlib import Path

import nets
import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper, parser
from onnx_models import save_conv
from torch import nn

from mint_deploy.errors import ModelError
from mint_deploy.export import export
from mint_deploy.onnx_cost import layer_costs
from mint_deploy.onnx_figures import FIGURES, figures
from mint_deploy.onnx_layers import read_graph
from mint_deploy.target import load_target

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'


def text(tmp_path: Path, graph: str, **weights: np.ndarray) -> Path:
    """Write a graph in ONNX's own text form, with ``weights`` as initializers."""
    model = parser.parse_model(f"{HEAD} {graph}")
    model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in weights.items())
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    return path


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, dtype=np.float32)


def whole(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


# ---------------------------------------------------------------- multiply-adds, by hand


RECURRENT = (
    "g (float[2,6,3] x) => ({out} y) {{ t = Transpose<perm=[1,0,2]>(x)  y = {op}(t, w, r) }}"
)
#: graph, weights, multiply-adds of a sample, output channels
LAYERS = {
    # 6 x 6 places, 8 outputs, 2 of 4 inputs each
    "conv": (
        "g (float[2,4,6,6] x) => (float[2,8,6,6] y) { y = Conv<group=2, pads=[1,1,1,1]>(x, w) }",
        {"w": ones(8, 2, 3, 3)}, 36 * 8 * 2 * 9, 8,
    ),
    # every input place is spread over the kernel
    "transposed": (
        "g (float[1,4,5,5] x) => (float[1,6,10,10] y) { y = ConvTranspose<group=2, strides=[2,2]>(x, w) }",
        {"w": ones(4, 3, 2, 2)}, 25 * 4 * 3 * 4, 6,
    ),
    "gemm": (
        "g (float[3,7] x) => (float[3,5] y) { y = Gemm<transB=1>(x, w) }", {"w": ones(5, 7)}, 35, 5,
    ),
    "gemm as it is": (
        "g (float[3,7] x) => (float[3,5] y) { y = Gemm(x, w) }", {"w": ones(7, 5)}, 35, 5,
    ),
    "gemm of the transposed": (
        "g (float[1,7] x) => (float[7,5] y) { y = Gemm<transA=1>(x, w) }", {"w": ones(1, 5)}, 35, 5,
    ),
    "matmul": (
        "g (float[1,9,7] x) => (float[1,9,5] y) { y = MatMul(x, w) }", {"w": ones(7, 5)}, 315, 5,
    ),
    "matmul from the left": (
        "g (float[1,7,9] x) => (float[1,5,9] y) { y = MatMul(w, x) }", {"w": ones(5, 7)}, 315, 5,
    ),
    # four gates, both directions: (3 + 5) * 5 * 4 * 2 numbers, 6 steps
    "lstm": (
        RECURRENT.format(out="float[6,2,2,5]", op='LSTM<hidden_size=5, direction="bidirectional">'),
        {"w": ones(2, 20, 3), "r": ones(2, 20, 5)}, 6 * 2 * 20 * 8, 5,
    ),
    "gru": (
        RECURRENT.format(out="float[6,1,2,5]", op="GRU<hidden_size=5>"),
        {"w": ones(1, 15, 3), "r": ones(1, 15, 5)}, 6 * 15 * 8, 5,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LAYERS)
def test_the_macs_of_one_layer(tmp_path, case):
    graph, weights, macs, width = LAYERS[case]
    path = text(tmp_path, graph, **weights)
    (cost,) = layer_costs(path)
    assert cost["macs"] == macs
    assert cost["weight_elements"] == sum(v.size for v in weights.values())
    found = read_graph(path)
    assert found.width_of(found.nodes[-1]) == width
    assert figures(path)[0]["macs"] == macs


def test_a_product_of_activations_counts_and_is_no_layer(tmp_path):
    path = text(
        tmp_path,
        "g (float[1,4,3] a, float[1,3,6] b) => (float[1,4,6] y) { y = MatMul(a, b) }",
    )
    (cost,) = layer_costs(path)
    assert (cost["macs"], cost["weight_elements"]) == (72, 0)
    assert cost["activation_elements"] == 12 + 18 + 24
    found = read_graph(path)
    assert found.layer_of(found.nodes[0]) is None
    assert found.width_of(found.nodes[0]) is None


def test_quantised_weights_belong_to_their_layer(tmp_path):
    graph = (
        "g (float[1,4,5,5] x) => (float[1,6,3,3] y) {"
        " f = DequantizeLinear(q, s, z)  y = Conv(x, f) }"
    )
    path = text(
        tmp_path,
        graph,
        q=np.ones((6, 4, 3, 3), np.int8),
        s=np.float32(0.1) * ones(),
        z=np.zeros((), np.int8),
    )
    found, nulls = figures(path)
    assert nulls == {}
    assert found["macs"] == 9 * 6 * 4 * 9
    assert (
        found["params"] == found["weight_bytes"] == 6 * 4 * 9
    )  # a byte each; no scale, no zero point
    graph = read_graph(path)
    assert graph.width_of(graph.nodes[1]) == 6


# ---------------------------------------------------------------- against PyTorch


class Plain(nn.Module):
    """Without BatchNorm nothing is folded, so the file holds exactly the module's parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.norm = nn.LayerNorm(16)
        self.fc = nn.Linear(16, 5)

    def forward(self, x):
        x = torch.relu(self.up(torch.relu(self.conv(x))))
        return self.fc(self.norm(torch.nn.functional.gelu(x).mean((2,))))


@pytest.mark.parametrize("batch", [None, 3])
def test_the_figures_of_a_file_whatever_its_batch(tmp_path, batch):
    import dataclasses

    torch.manual_seed(0)
    model, path = Plain().eval(), tmp_path / "m.onnx"
    target = dataclasses.replace(load_target("cpu"), batch=batch or 1)
    export(model, path, torch.randn(2, 3, 8, 8), target, dynamic_batch=batch is None)
    found, nulls = figures(path)
    assert nulls == {}
    assert set(found) == set(FIGURES)
    assert found["params"] == sum(p.numel() for p in model.parameters())
    assert found["weight_bytes"] == 4 * found["params"]
    assert found["file_bytes"] == path.stat().st_size
    assert found["macs"] == 64 * 3 * 6 * 9 + 64 * 6 * 4 * 4 + 16 * 4 * 5
    # the largest moment is a ReLU or a GELU of the upsampled map, read and written
    assert found["peak_activation_bytes"] >= (batch or 1) * 2 * 4 * 256 * 4
    assert read_graph(path).open_batch is (batch is None)
    assert [c["name"] for c in layer_costs(path)] == ["conv", "up", "fc"]


def test_the_parameters_of_a_batchnorm_are_those_it_is_folded_into(tmp_path):
    model, inputs = nets.build("resnet8")
    export(model, tmp_path / "m.onnx", inputs, load_target("jetson"))
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    expected = sum(m.weight.numel() + m.weight.shape[0] for m in layers)  # each has a bias now
    assert figures(tmp_path / "m.onnx")[0]["params"] == expected


def test_statistics_scales_sizes_and_single_numbers_are_no_parameters(tmp_path):
    path = text(
        tmp_path,
        "g (float[1,4,5,5] x) => (float[1,4,10,10] y) {"
        " a = BatchNormalization(x, scale, bias, mean, var)"
        " b = Mul(a, half)  y = Resize(b, none, sizes) }",
        scale=ones(4), bias=ones(4), mean=ones(4), var=ones(4), half=ones(),
        none=ones(0), sizes=ones(4),
    )  # fmt: skip
    found, _ = figures(path)
    assert found["params"] == 8
    assert found["macs"] == 0


def test_a_shared_weight_counts_once_and_its_layer_twice(tmp_path):
    path = text(
        tmp_path,
        "g (float[1,4,6,6] x) => (float[1,4,6,6] y) {"
        " a = Conv<pads=[1,1,1,1]>(x, w)  y = Conv<pads=[1,1,1,1]>(a, w) }",
        w=ones(4, 4, 3, 3),
    )
    assert figures(path)[0]["params"] == 144
    assert figures(path)[0]["macs"] == 2 * 36 * 144


# ---------------------------------------------------------------- peak activations


def test_the_peak_by_hand(tmp_path):
    """x 4 floats; a 4; b 8 (a dies); y 4."""
    path = text(
        tmp_path,
        "g (float[1,4] x) => (float[1,4] y) { a = Relu(x)  b = Concat<axis=1>(a, a)  y = Gemm(b, w) }",
        w=ones(8, 4),
    )
    assert figures(path)[0]["peak_activation_bytes"] == 4 * max(4 + 4, 4 + 8, 8 + 4)


def test_a_view_takes_no_bytes_and_keeps_what_it_looks_at(tmp_path):
    path = text(
        tmp_path,
        "g (float[1,8] x) => (float[1,1] y) {"
        " a = Concat<axis=1>(x, x)  v = Reshape(a, to)  y = ReduceMax<axes=[1]>(v) }",
        to=whole(1, 16),
    )
    assert figures(path)[0]["peak_activation_bytes"] == 4 * (8 + 16)  # a copy in v would make 32
    path = text(
        tmp_path,
        "g (float[1,4,2] x) => (float[1,8] y) {"
        " a = Relu(x)  v = Reshape(a, to)  b = Relu(v)  y = Add(b, v) }",
        to=whole(1, 8),
    )
    assert figures(path)[0]["peak_activation_bytes"] == 4 * 24  # a (through v), b and y


def test_bytes_are_those_of_the_type(tmp_path):
    path = text(tmp_path, "g (float16[1,100] x) => (float16[1,100] y) { a = Relu(x)  y = Relu(a) }")
    assert figures(path)[0]["peak_activation_bytes"] == 400


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_the_peak_is_that_of_a_replay_with_every_tensor_looked_at(tmp_path_factory, data):
    """An oracle that asks at every node, for every tensor, whether it is already and still needed."""
    count = data.draw(st.integers(1, 9))
    sizes = {"x": data.draw(st.integers(1, 5))}
    nodes, reads = [], []
    for i in range(count):
        sources = data.draw(st.lists(st.sampled_from(sorted(sizes)), min_size=1, max_size=3))
        name = f"t{i}"
        sizes[name] = sum(sizes[s] for s in sources)
        nodes.append(helper.make_node("Concat", sources, [name], axis=1))
        reads.append(set(sources))
    outputs = data.draw(st.sets(st.sampled_from([f"t{i}" for i in range(count)]), min_size=1))

    def info(name: str):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, sizes[name]])

    graph = helper.make_graph(nodes, "g", [info("x")], [info(n) for n in sorted(outputs)])
    path = tmp_path_factory.mktemp("peak") / "m.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path
    )

    def alive(name: str, at: int) -> bool:
        born = -1 if name == "x" else int(name[1:])
        needed = name in outputs or any(name in reads[i] for i in range(at, count)) or born == at
        return born <= at and needed

    moments = [sum(s for n, s in sizes.items() if alive(n, at)) for at in range(count)]
    expected = 4 * max([*moments, sizes["x"]])
    assert figures(path)[0]["peak_activation_bytes"] == expected


# ---------------------------------------------------------------- what is missing, and why


def test_what_multiplies_and_is_not_counted_is_named(tmp_path):
    path = text(tmp_path, 'g (float[1,4] x) => (float[1] y) { y = Einsum<equation="ij->i">(x) }')
    found, nulls = figures(path)
    assert "macs" not in found
    assert "Einsum" in nulls["macs"]
    assert found["peak_activation_bytes"] == 20


def test_an_operator_of_somebody_elses_leaves_its_figures_open(tmp_path):
    node = helper.make_node("Magic", ["x"], ["y"], name="m", domain="com.example")
    graph = helper.make_graph(
        [node, helper.make_node("Relu", ["y"], ["z"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
    )
    path = tmp_path / "m.onnx"
    sets = [helper.make_opsetid("", 17), helper.make_opsetid("com.example", 1)]
    onnx.save(helper.make_model(graph, opset_imports=sets, ir_version=8), path)
    found, nulls = figures(path)
    assert set(found) == {"file_bytes", "params", "weight_bytes"}
    assert "com.example.Magic" in nulls["macs"]
    assert "'y'" in nulls["peak_activation_bytes"]


def test_branches_leave_all_but_the_bytes_open(tmp_path):
    def branch(name: str):
        out = helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4])
        return helper.make_graph([helper.make_node("Relu", ["x"], [name])], name, [], [out])

    node = helper.make_node("If", ["c"], ["y"], then_branch=branch("a"), else_branch=branch("b"))
    graph = helper.make_graph(
        [node],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4]),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
        tmp_path / "m.onnx",
    )
    found, nulls = figures(tmp_path / "m.onnx")
    assert set(found) == {"file_bytes"}
    assert all("If" in nulls[name] for name in FIGURES[1:])


def test_a_size_that_is_open_besides_the_batch_is_a_reason(tmp_path):
    path = text(
        tmp_path,
        "g (float[N,4,H,6] x) => (float[N,8,H,6] y) { y = Conv<pads=[1,1,1,1]>(x, w) }",
        w=ones(8, 4, 3, 3),
    )
    found, nulls = figures(path)
    assert "more than the batch open" in nulls["macs"]
    assert "peak_activation_bytes" in nulls
    assert found["params"] == 8 * 4 * 9
    with pytest.raises(ModelError, match="more than the batch open"):
        layer_costs(path)


def test_an_engine_has_its_bytes_alone(tmp_path):
    (tmp_path / "engine.plan").write_bytes(b"\xff" * 100)
    found, nulls = figures(tmp_path / "engine.plan")
    assert found == {"file_bytes": 100}
    assert set(nulls) == set(FIGURES[1:])
    assert all("not an ONNX file" in why for why in nulls.values())


def test_no_file_and_no_nodes(tmp_path):
    with pytest.raises(ModelError, match="no such file"):
        figures(tmp_path / "none.onnx")
    (tmp_path / "empty.onnx").write_bytes(b"")
    with pytest.raises(ModelError, match="graph"):
        read_graph(tmp_path / "empty.onnx")


def test_weights_in_a_file_beside_it_count(tmp_path):
    model = onnx.load(save_conv(tmp_path / "one.onnx", channels=16, batch=1))
    onnx.save(
        model, tmp_path / "two.onnx", save_as_external_data=True, location="w.bin", size_threshold=0
    )
    one, two = figures(tmp_path / "one.onnx")[0], figures(tmp_path / "two.onnx")[0]
    beside = (tmp_path / "w.bin").stat().st_size
    assert beside >= one["weight_bytes"]
    assert two["file_bytes"] == (tmp_path / "two.onnx").stat().st_size + beside
    assert {k: v for k, v in two.items() if k != "file_bytes"} == {
        k: v for k, v in one.items() if k != "file_bytes"
    }


def test_names_of_files_that_are_not_ours(tmp_path):
    graph = read_graph(save_conv(tmp_path / "m.onnx", depth=2))  # its nodes have no names
    assert [graph.layer_of(n) for n in graph.nodes if n.op_type == "Conv"] == ["w0", "w1"]
    assert math.prod(graph.shapes["r1"][1:]) == 8 * 64
    named = {
        "/stem/conv/Conv": ("stem.conv.weight", "stem.conv"),
        "/stem/conv/Conv_1": ("onnx::Conv_193", "stem.conv"),
        "Conv_7": ("head.weight", "head"),
        "block/conv/Conv2D": ("block/conv/kernel", "block/conv"),
    }
    for name, (weight, layer) in named.items():
        node = helper.make_node("Conv", ["x", weight], ["y"], name=name)
        info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 1, 4, 4]) for n in "xy"]
        made = helper.make_graph(
            [node], "g", info[:1], info[1:], [numpy_helper.from_array(ones(1, 1, 1, 1), weight)]
        )
        onnx.save(
            helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
            tmp_path / "n.onnx",
        )
        found = read_graph(tmp_path / "n.onnx")
        assert found.layer_of(found.nodes[0]) == layer
