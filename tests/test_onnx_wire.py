"""An ONNX file read by hand: the same as onnx reads, and what a hostile one asks for is refused."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
import pytest
from hostile_onnx import PLACES, evil, field, hidden, nested, save_external
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx_models import save_conv

from mint_deploy import files, onnx_wire
from mint_deploy.errors import ModelError
from mint_deploy.onnx_wire import data_files, digest, read_wire

MESSAGES = {
    "Model": onnx.ModelProto, "OperatorSetId": onnx.OperatorSetIdProto, "Graph": onnx.GraphProto,
    "TrainingInfo": onnx.TrainingInfoProto, "Function": onnx.FunctionProto, "Node": onnx.NodeProto,
    "ValueInfo": onnx.ValueInfoProto, "Attribute": onnx.AttributeProto, "Tensor": onnx.TensorProto,
    "Type": onnx.TypeProto, "Type.Tensor": onnx.TypeProto.Tensor, "TensorShape": onnx.TensorShapeProto,
    "TensorShape.Dimension": onnx.TensorShapeProto.Dimension,
    "SparseTensor": onnx.SparseTensorProto, "StringStringEntry": onnx.StringStringEntryProto,
}  # fmt: skip


# ---------------------------------------------------------------- the same as onnx reads


@pytest.mark.parametrize("kind", sorted(onnx_wire._FIELDS))
def test_the_numbers_are_those_of_onnx(kind):
    fields = MESSAGES[kind].DESCRIPTOR.fields_by_number
    for number, (key, what) in onnx_wire._FIELDS[kind].items():
        assert fields[number].name == key
        inner = fields[number].message_type
        name = inner.full_name.removeprefix("onnx.").replace("Proto", "") if inner else what
        assert name == what
        if what == "int":
            assert fields[number].type in (fields[number].TYPE_INT64, fields[number].TYPE_INT32,
                                           fields[number].TYPE_ENUM)  # fmt: skip
        elif what == "text":
            assert fields[number].type == fields[number].TYPE_STRING


def test_every_field_that_can_lead_to_a_tensor_is_walked():
    """A new release of ONNX may add one, and through it a path that nobody looks at."""
    leads = {"TensorProto", "SparseTensorProto", "GraphProto", "NodeProto", "AttributeProto",
             "FunctionProto", "TrainingInfoProto"}  # fmt: skip
    for kind, message in MESSAGES.items():
        for part in message.DESCRIPTOR.fields:
            if part.message_type is not None and part.message_type.name in leads:
                assert onnx_wire._FIELDS[kind].get(part.number, ("",))[0] == part.name


def test_a_plain_model(tmp_path):
    path = save_conv(tmp_path / "m.onnx", depth=3)
    facts, model = read_wire(path), onnx.load(path)
    assert [n.name for n in facts.nodes] == [n.name for n in model.graph.node]
    assert [n.op_type for n in facts.nodes] == [n.op_type for n in model.graph.node]
    assert [n.outputs for n in facts.nodes] == [tuple(n.output) for n in model.graph.node]
    assert (facts.inputs, facts.outputs) == (("input",), ("output",))
    assert (facts.ir_version, facts.opsets) == (8, (("", 17),))
    assert facts.external == ()
    assert str(facts.nodes[0]) == "Conv (the one that makes c0)"


def test_sub_graphs_functions_and_domains(tmp_path):
    facts = read_wire(nested(tmp_path / "n.onnx"))
    names = [n.name for n in facts.nodes]
    assert names[0] == "branch/If"
    assert sorted(names) == ["", "branch/Abs", "branch/If", "branch/Neg", "twice/Add"]
    assert str(facts.nodes[names.index("")]) == "my.own.Twice (the one that makes z)"
    assert facts.inputs == ("x", "c"), "an initializer among the inputs is none"
    assert facts.opsets == (("", 17), ("my.own", 1))


def test_the_long_name_of_the_standard_domain_is_the_short_one(tmp_path):
    model = onnx.load(save_conv(tmp_path / "m.onnx"))
    for node in model.graph.node:
        node.domain = "ai.onnx"
    onnx.save(model, tmp_path / "m.onnx")
    assert {n.domain for n in read_wire(tmp_path / "m.onnx").nodes} == {""}


def test_the_weights_are_not_read(tmp_path, monkeypatch):
    path = save_conv(tmp_path / "m.onnx", channels=256)
    read = []
    opened = Path.open

    class Counting:
        def __init__(self, stream):
            self.stream = stream

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.stream.close()

        def seek(self, at):
            return self.stream.seek(at)

        def read(self, size):
            data = self.stream.read(size)
            read.append(len(data))
            return data

    monkeypatch.setattr(Path, "open", lambda self, mode: Counting(opened(self, mode)))
    assert len(read_wire(path).nodes) == 6
    assert path.stat().st_size > 2_000_000
    assert sum(read) < 300_000


# ---------------------------------------------------------------- broken files


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    folder = tmp_path_factory.mktemp("content")
    return nested(folder / "n.onnx").read_bytes()


def outcome(path):
    """What reading gives: facts, or the message; anything but a ModelError is a bug."""
    try:
        return read_wire(path)
    except ModelError as error:
        assert str(path) in str(error)  # noqa: PT017  a refusal is one of two good outcomes
        return str(error)


def test_a_file_cut_at_any_byte(tmp_path, content):
    path = tmp_path / "cut.onnx"
    whole = 0
    for length in range(len(content)):
        path.write_bytes(content[:length])
        whole += not isinstance(outcome(path), str)
    assert whole <= 4, "between two fields of the outermost message it is shorter, and still whole"
    path.write_bytes(content[: len(content) // 2])
    assert "cut short" in outcome(path)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_changed_bytes_never_do_more_than_be_refused(content, tmp_path_factory, data):
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("changed") / "m.onnx"
    path.write_bytes(bytes(changed))
    outcome(path)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
@example(b"")
@example(b"\xff" * 40)
@example(b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")
def test_any_bytes_at_all(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("any") / "m.onnx"
    path.write_bytes(data)
    assert isinstance(outcome(path), str)


def test_messages_deeper_than_any_model(tmp_path):
    """An attribute with a graph with a node with an attribute ..."""
    deep = field(3, b"bottom")
    for _ in range(60):
        deep = field(5, field(6, field(1, deep)))
    (tmp_path / "deep.onnx").write_bytes(field(7, field(1, deep)))
    with pytest.raises(ModelError, match="messages inside of more than 100 others"):
        read_wire(tmp_path / "deep.onnx")


def test_more_fields_than_any_model(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_wire, "_MOST_FIELDS", 20)
    with pytest.raises(ModelError, match="more than 20 fields"):
        read_wire(save_conv(tmp_path / "m.onnx"))


def test_a_name_longer_than_any_model_has(tmp_path):
    name = b"x" * ((1 << 20) + 1)
    (tmp_path / "m.onnx").write_bytes(field(7, field(1, field(3, name))))
    with pytest.raises(ModelError, match="a name of 1,048,577 bytes"):
        read_wire(tmp_path / "m.onnx")


def test_a_file_larger_than_a_message_can_be(tmp_path):
    path = tmp_path / "sparse.onnx"
    with path.open("wb") as stream:
        stream.truncate(1 << 31)
    with pytest.raises(ModelError, match="save its weights as external data"):
        read_wire(path)


def test_what_is_no_file(tmp_path):
    with pytest.raises(ModelError, match="cannot read"):
        read_wire(tmp_path / "none.onnx")
    with pytest.raises(ModelError, match="is no file"):
        read_wire(tmp_path)


# ---------------------------------------------------------------- external data


@pytest.mark.parametrize(
    "location", ["weights.bin", "sub/dir/weights.bin", "./weights.bin", "a b.bin"]
)
def test_data_in_the_own_folder_is_taken(tmp_path, location):
    path = save_external(tmp_path, location)
    assert data_files(path) == {location: (tmp_path / location).resolve()}
    assert read_wire(path).external == (("w0", (("location", location),)),)


@pytest.mark.parametrize(
    ("location", "match"),
    [
        ("/etc/passwd", "absolute path '/etc/passwd'"),
        ("//server/share", "absolute path"),
        ("C:\\secret.bin", "absolute path"),
        ("\\\\server\\share\\x", "absolute path"),
        ("\\secret.bin", "absolute path"),
        ("c:secret.bin", "absolute path"),
        ("../secret.bin", "outside of its folder"),
        ("sub/../../secret.bin", "outside of its folder"),
        ("sub/..", "outside of its folder"),
        ("..\\secret.bin", "outside of its folder"),
        ("sub\\..\\..\\secret.bin", "outside of its folder"),
        ("", "which is no name"),
        (" ", "which is no name"),
        ("a\0b", "which is no name"),
        ("missing.bin", "not beside it; copy that file too"),
        ("*/_ORT_MEM_ADDR_/*", "not beside it"),
        ("m.onnx/x", "not beside it"),
        (".", "no plain file"),
        ("x" * 5000, "not beside it"),
    ],
)
def test_data_anywhere_else_is_refused_with_the_tensors_name(tmp_path, location, match):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(b"secret" * 1000)
    (folder / "sub").mkdir()
    path = save_external(folder, location, data=False)
    with pytest.raises(ModelError, match=match) as caught:
        data_files(path)
    assert f"tensor 'w0' of {path}" in str(caught.value)
    with pytest.raises(ModelError, match=match):
        digest(path)


@pytest.mark.parametrize("kind", ["file", "folder", "chain"])
def test_a_link_that_leaves_the_folder_is_refused(tmp_path, kind):
    folder, outside = tmp_path / "model", tmp_path / "outside"
    for each in (folder, outside):
        each.mkdir()
    (outside / "w.bin").write_bytes(b"\0" * 4096)
    location = "w.bin"
    if kind == "file":
        (folder / "w.bin").symlink_to(outside / "w.bin")
    elif kind == "folder":
        (folder / "sub").symlink_to(outside)
        location = "sub/w.bin"
    else:
        (folder / "middle").symlink_to(Path("..") / "outside" / "w.bin")
        (folder / "w.bin").symlink_to("middle")
    path = save_external(folder, location, data=False)
    with pytest.raises(ModelError, match=r"a link to .*outside of its folder"):
        data_files(path)


def test_a_link_that_stays_inside_is_taken_and_a_circle_is_not(tmp_path):
    (tmp_path / "real.bin").write_bytes(b"\0" * 4096)
    (tmp_path / "w.bin").symlink_to("real.bin")
    assert data_files(save_external(tmp_path, "w.bin", data=False))["w.bin"].name == "real.bin"
    (tmp_path / "round").symlink_to("round")
    with pytest.raises(ModelError, match="not beside it"):
        data_files(save_external(tmp_path, "round", data=False))


def test_a_folder_that_is_itself_a_link_is_no_escape(tmp_path):
    real = tmp_path / "real"
    real.mkdir()
    save_external(real)
    (tmp_path / "link").symlink_to(real)
    assert data_files(tmp_path / "link" / "m.onnx") == {
        "weights.bin": (real / "weights.bin").resolve()
    }


def test_a_pipe_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelError, match="no plain file"):
        data_files(save_external(tmp_path, "pipe", data=False))


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"offset": "-1"}, "offset '-1', expected a whole number"),
        ({"length": "1e9"}, "length '1e9'"),
        ({"offset": "٣"}, "expected a whole number"),
        ({"length": "9" * 30}, "expected a whole number"),
        ({"length": "9000000"}, "asks for the bytes up to 9,000,000 of weights.bin, which has 864"),
        ({"offset": "800", "length": "65"}, "bytes up to 865"),
    ],
)
def test_a_piece_that_is_not_there(tmp_path, more, match):
    with pytest.raises(ModelError, match=match):
        data_files(save_external(tmp_path, **more))


def test_a_tensor_that_names_no_file(tmp_path):
    model = onnx.load(save_conv(tmp_path / "m.onnx"))
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="lie in another file, and none is named"):
        data_files(tmp_path / "m.onnx")


def test_every_location_counts_where_several_are_named(tmp_path):
    """Which of two a parser takes is its own business."""
    path = save_external(tmp_path)
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].external_data.add(key="location", value="../secret.bin")
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="outside of its folder"):
        data_files(path)


@pytest.mark.parametrize("where", PLACES)
def test_a_tensor_is_found_wherever_it_hides(tmp_path, where):
    (tmp_path / "m.onnx").write_bytes(hidden(where))
    with pytest.raises(ModelError, match=r"tensor 'evil' of .* outside of its folder"):
        data_files(tmp_path / "m.onnx")


def test_a_second_graph_in_the_file_is_looked_at_too(tmp_path):
    """Protobuf merges what comes twice; whichever a parser takes has been seen."""
    path = save_conv(tmp_path / "m.onnx")
    other = helper.make_graph([], "more", [], [], [evil()])
    path.write_bytes(path.read_bytes() + field(7, other.SerializeToString()))
    with pytest.raises(ModelError, match="tensor 'evil'"):
        data_files(path)


def test_more_data_than_is_taken(tmp_path, monkeypatch):
    path = save_external(tmp_path)
    monkeypatch.setattr(onnx_wire, "LARGEST_BYTES", 500)
    with pytest.raises(ModelError, match="at most 500 are taken"):
        data_files(path)


# ---------------------------------------------------------------- the hash


def test_the_hash_is_that_of_the_file_where_there_is_no_other(tmp_path):
    path = save_conv(tmp_path / "m.onnx")
    assert digest(path) == files.sha256(path)


def test_external_data_is_part_of_the_hash(tmp_path):
    path = save_external(tmp_path)
    first = digest(path)
    assert first != files.sha256(path)
    assert digest(path) == first
    data = bytearray((tmp_path / "weights.bin").read_bytes())
    data[5] ^= 1
    (tmp_path / "weights.bin").write_bytes(bytes(data))
    assert digest(path) != first
