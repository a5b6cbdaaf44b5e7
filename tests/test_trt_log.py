"""What TensorRT says, read from recorded logs: operators, memory, engines, the accelerator."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trtexec_double import transcript

from mint_deploy._trt_log import Circumstances, explain, fell_back, refused_nodes, wrong_engine
from mint_deploy.errors import EngineMismatch, MintDeployError, ModelError
from mint_deploy.onnx_wire import WireNode

ABOUT = Circumstances(
    version="10.3.0",
    model="model.onnx",
    memory_bytes=8 << 30,
    swap_bytes=1 << 30,
    workspace_mib=2048,
)


def node(name, operator):
    return WireNode(name=name, op_type=operator, domain="", outputs=())


# ---------------------------------------------------------------- what the parser refused


@pytest.mark.parametrize(
    ("log", "number", "operator", "name"),
    [
        ("log-8.6-unknown-operator.txt", 7, "LayerNormalization",
         "/text_model/encoder/layers.0/layer_norm1/LayerNormalization"),
        ("log-10-unknown-operator.txt", 4448, "TRTBatchedNMS", "/TRTBatchedNMS"),
        ("log-10-python-unknown-operator.txt", 11, "GridSample3D", "/dense_motion_network/GridSample"),
    ],
)  # fmt: skip
def test_an_operator_that_the_parser_lacks_is_named_with_its_layer(log, number, operator, name):
    refused = refused_nodes(transcript(log))[0]
    assert (refused.number, refused.operator, refused.name) == (number, operator, name)
    assert refused.unknown
    error = explain(transcript(log), 1, ABOUT)
    assert isinstance(error, ModelError)
    assert f"its ONNX parser has no {operator} (node {number}, '{name}')" in str(error)
    assert "another opset" in str(error)


def test_the_python_api_of_eight_gives_a_number_and_the_file_the_rest():
    log = transcript("log-8-python-unknown-operator.txt")
    nodes = [node("", "Relu")] * 2193 + [node("NonZero_2193", "NonZero")]
    (refused,) = refused_nodes(log, nodes)
    assert (refused.operator, refused.name, refused.unknown) == ("NonZero", "NonZero_2193", True)
    (bare,) = refused_nodes(log)
    assert (bare.number, bare.operator) == (2193, "")
    assert "an operator (node 2193)" in str(explain(log, None, ABOUT))


def test_every_refused_node_is_listed_once():
    log = transcript("log-10-python-unknown-operator.txt")
    assert [r.number for r in refused_nodes(log + "\n" + log)] == [11, 77]
    text = str(explain(log, None, ABOUT))
    assert (
        "GridSample3D (node 11, '/dense_motion_network/GridSample'); GridSample3D (node 77" in text
    )


def test_a_known_operator_that_is_used_otherwise_is_told_with_the_parsers_reason():
    error = explain(transcript("log-10.3-refused-node.txt"), 1, ABOUT)
    assert isinstance(error, ModelError)
    assert "refused Tile (node 146, '/Tile'): [6] Invalid Node - /Tile" in str(error)


def test_the_name_of_an_attribute_is_not_the_name_of_the_node():
    log = transcript("log-8.6-unknown-operator.txt").replace(
        'name: "/text_model/encoder/layers.0/layer_norm1/LayerNormalization"\n', ""
    )
    (refused,) = refused_nodes(log)
    assert refused.name == ""


# ---------------------------------------------------------------- memory


def test_memory_that_ran_out_is_explained_with_numbers():
    smaller = dataclasses.replace(ABOUT, memory_bytes=32 << 30)
    text = str(explain(transcript("log-10.3-out-of-memory.txt"), 1, smaller))
    assert "14.4 GiB were asked for at once" in text
    assert "this machine has 32.0 GiB and 1.0 GiB of swap" in text
    assert "2048 MiB of scratch memory" in text
    assert "add 15 GiB of swap (sudo fallocate -l 15G /swapfile && " in text
    assert "workspace_mib = 1024" in text


def test_more_than_the_memory_is_not_mended_by_swap():
    text = str(explain(transcript("log-10.3-out-of-memory.txt"), 1, ABOUT))
    assert "one tensor alone is larger than the memory" in text
    assert "fallocate" not in text


@pytest.mark.parametrize("code", [-9, 137])
def test_a_build_that_the_system_ended(code):
    text = str(explain("[I] Start parsing network model.", code, ABOUT))
    assert "ended the builder for want of memory (signal 9)" in text
    assert "add 7 GiB of swap" in text


@given(st.integers(1 << 29, 1 << 37), st.integers(0, 1 << 36), st.integers(1, 8192) | st.none())
def test_the_advice_always_has_a_size(memory, swap, scratch):
    about = dataclasses.replace(ABOUT, memory_bytes=memory, swap_bytes=swap, workspace_mib=scratch)
    text = str(explain("", -9, about))
    added = int(text.split("add ")[1].split(" GiB")[0])
    assert 2 <= added <= 16
    smaller = int(text.split("workspace_mib = ")[1].split(")")[0])
    assert smaller >= 64


# ---------------------------------------------------------------- everything else


def test_shapes_that_do_not_fit():
    log = "[E] Static model does not take explicit shapes since the shape of inference tensors will be"
    error = explain(log, 1, ABOUT)
    assert isinstance(error, ModelError)
    assert "do not fit its inputs" in str(error)


def test_an_unknown_failure_quotes_its_last_errors():
    log = "\n".join(
        ["&&&& RUNNING TensorRT.trtexec", "[05/13/2025-10:36:46] [I] fine", "[05/13/2025-10:36:46] [E] one",
         "[E] two", "[E] three", "[E] four", "&&&& FAILED TensorRT.trtexec"]
    )  # fmt: skip
    error = explain(log, 1, ABOUT)
    assert str(error) == (
        "TensorRT 10.3.0 could not build model.onnx (exit code 1): [E] two | [E] three | [E] four"
    )
    assert "it said nothing" in str(explain("", 3, ABOUT))


@given(st.text(max_size=200), st.sampled_from([None, 0, 1, -11]))
def test_no_log_breaks_the_explanation(log, code):
    assert isinstance(explain(log, code, ABOUT), MintDeployError)
    assert isinstance(wrong_engine(log, advice="build it anew"), MintDeployError)
    fell_back(log)


def test_an_engine_of_another_version():
    version, serialisation, older, tag = transcript("log-other-engines.txt").splitlines()
    found = wrong_engine(version, advice="build it anew: X")
    assert isinstance(found, EngineMismatch)
    assert (found.built_for, found.found) == ("8.5.3.1", "8.5.1.7")
    assert str(found).endswith("; build it anew: X")
    assert str(wrong_engine(older, advice="-")).startswith(
        "engine built for TensorRT '8.2.1', found '8.2.3'"
    )
    found = wrong_engine(serialisation, advice="-")
    assert isinstance(found, EngineMismatch)
    assert (found.field, found.built_for, found.found) == ("serialisation version", "205", "213")
    assert isinstance(wrong_engine(tag, advice="-"), EngineMismatch)
    assert not isinstance(wrong_engine("[E] no idea", advice="-"), EngineMismatch)


def test_the_layers_that_fell_back_are_listed():
    assert fell_back(transcript("log-8.5-dla.txt")) == [
        "Gather in embedding", "LSTM encoder", "/pool/GlobalAveragePool", "reshape_after_/linear/Gemm",
    ]  # fmt: skip
    assert fell_back(transcript("log-8.6-dla.txt")) == [
        "/model.22/Gather_output_0", "/model.22/Div", "/model.22/Slice_1", "(Unnamed Layer* 334) [Constant]",
    ]  # fmt: skip
