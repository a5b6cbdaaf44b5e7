"""The JSON that trtexec exports, from files of the documented form."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trtexec_double import _times, transcript

from mint_deploy._trt_exports import (
    Layer,
    layer_times,
    layers,
    read_layers,
    read_profile,
    read_times,
)
from mint_deploy.artifacts import LayerTime
from mint_deploy.errors import DataError


def saved(tmp_path, text):
    path = tmp_path / "export.json"
    path.write_text(text, encoding="utf-8")
    return path


def test_times_of_the_documented_form(tmp_path):
    found = read_times(saved(tmp_path, transcript("times.txt")))
    assert found.compute_ns == (3_140_000, 3_150_000)
    assert found.latency_ns == found.compute_ns, "without transfers"
    assert found.enqueue_ns == (10_000, 12_500)


@given(ms=st.floats(0.01, 50), count=st.integers(1, 40), copies=st.booleans())
def test_every_query_is_read(tmp_path_factory, ms, count, copies):
    path = tmp_path_factory.mktemp("times") / "t.json"
    path.write_text(_times(count, ms, copies, random.Random(0)))
    found = read_times(path)
    assert len(found.compute_ns) == len(found.latency_ns) == len(found.enqueue_ns) == count
    assert all(0.98 * ms * 1e6 <= ns <= 1.02 * ms * 1e6 for ns in found.compute_ns)
    extra = [b - a for a, b in zip(found.compute_ns, found.latency_ns, strict=True)]
    assert all(abs(e - (400_000 if copies else 0)) <= 1_000 for e in extra)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "damaged or not JSON"),
        (transcript("times.txt")[:200], "damaged or not JSON"),
        ("[]", "holds no query"),
        ('{"a": 1}', "expected a list of queries"),
        ('[{"startEnqMs": 1, "endEnqMs": 1, "latencyMs": 1}]', "'computeMs', found None"),
        ('[{"startEnqMs": 1, "endEnqMs": 1, "computeMs": NaN, "latencyMs": 1}]', "found nan"),
        ('[{"startEnqMs": 1, "endEnqMs": 1, "computeMs": -2, "latencyMs": 1}]', "-2.0 ms"),
        ('[{"startEnqMs": 1, "endEnqMs": 1, "computeMs": true, "latencyMs": 1}]', "found True"),
    ],
)
def test_times_that_are_none(tmp_path, text, said):
    with pytest.raises(DataError, match=said):
        read_times(saved(tmp_path, text))


def test_a_profile_of_the_documented_form(tmp_path):
    copy, conv = read_profile(saved(tmp_path, transcript("profile.txt")))
    assert conv == LayerTime(name="/conv1/Conv + /relu/Relu", op="", ns=19_800.0, calls=662)
    assert copy.ns == 4_900.0


def test_a_profile_without_medians_uses_the_average(tmp_path):
    """8.2 and older had none; nothing else of the form changed."""
    rows = json.loads(transcript("profile.txt"))
    for row in rows[1:]:
        del row["medianMs"]
    found = read_profile(saved(tmp_path, json.dumps(rows)))
    assert [r.ns for r in found] == [5_000.0, 20_000.0]


def test_the_name_of_a_layer_is_not_escaped_by_trtexec(tmp_path):
    text = transcript("profile.txt").replace("/conv1/Conv", "/conv1/\tConv")
    assert read_profile(saved(tmp_path, text))[1].name == "/conv1/\tConv + /relu/Relu"


@pytest.mark.parametrize("text", ["[]", '[{"name": "x"}]', "{}", "[1]"])
def test_a_profile_that_is_none(tmp_path, text):
    with pytest.raises(DataError):
        read_profile(saved(tmp_path, text))


def test_layers_by_their_names_alone(tmp_path):
    found = read_layers(saved(tmp_path, transcript("layers-names-8.4.txt")))
    assert [layer.name for layer in found][:2] == ["Conv__25 + Relu", "MaxPool2d"]
    assert found[0].origins == ("Conv__25", "Relu")
    assert (found[2].kind, found[2].origins) == ("Reformat", ())
    assert found[4].origins == ("MaxPool2d_1__22", "Reshape")


def test_layers_in_detail(tmp_path):
    guide, conv, copy = read_layers(saved(tmp_path, transcript("layers-detailed.txt")))
    assert (guide.kind, guide.width) == ("Convolution", 256)
    assert guide.form == "Thirty-two wide channel vectorized row major Int8 format."
    assert guide.tactic.startswith("sm80_xmma_fprop")
    assert guide.origins == tuple(
        f"node_of_gpu_0/res4_0_branch2a_{k}" for k in ("1", "bn_1", "bn_2")
    )
    assert conv.origins == ("conv1/Conv", "relu/Relu"), "the metadata, not the fused name"
    assert (copy.kind, copy.width, copy.origins) == ("Reformat", None, ())


def test_times_and_layers_meet_by_name(tmp_path):
    profile = read_profile(saved(tmp_path, transcript("profile.txt")))
    known = layers(transcript("layers-detailed.txt"))
    copy, conv = layer_times(profile, known)
    assert (conv.op, conv.layer, conv.width, conv.ns) == ("Convolution", "conv1/Conv", 16, 19_800.0)
    assert (copy.op, copy.layer, copy.width) == ("Reformat", None, None)
    assert layer_times(profile, known, {"conv1/Conv": "conv1"})[1].layer == "conv1"
    assert layer_times(profile, known, {"other": "x"})[1].layer is None
    assert layer_times(profile, ())[1].op == ""


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"Layers": [{}]}', '{"Layers": [1]}', '{"Layers": {}}']
)
def test_layers_that_are_none(text):
    with pytest.raises(DataError):
        layers(text)


KEYS = st.sampled_from(["Name", "LayerType", "Outputs", "OutMaps", "Metadata"])
PLAIN = st.none() | st.booleans() | st.integers() | st.text()


@given(st.recursive(PLAIN, lambda x: st.lists(x) | st.dictionaries(KEYS, x)))
def test_no_json_breaks_the_reader(body):
    try:
        found = layers(json.dumps({"Layers": [body]}))
    except DataError:
        return
    assert all(isinstance(layer, Layer) for layer in found)
