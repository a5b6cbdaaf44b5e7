"""``.pt2`` without pickles: the same outputs, bit for bit, and no file runs code when it is opened."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import build
from snapshots import assert_untouched, snapshot
from torch import Tensor, nn

from mint_deploy.errors import DataError, ModelError, TraceError
from mint_deploy.plan import make_plan
from mint_deploy.pt2 import load_pt2, read_pt2, save_pt2
from mint_deploy.pt2_check import check_pt2
from mint_deploy.surgery import cut
from mint_deploy.trace import trace

Members = dict[str, bytes]


def slim_net(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Every second unit of every group of a net of the tests."""
    model, inputs = build(name)
    graph = trace(model, inputs)
    return cut(
        model, make_plan(graph, {n: range(0, g.size, 2) for n, g in graph.groups.items()})
    ), inputs


class Everything(nn.Module):
    """Tied weights, a buffer out of the state, no gradients inside, a dict and a list that come back."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.first, self.again = nn.Linear(8, 8), nn.Linear(8, 8)
        self.again.weight = self.first.weight
        self.register_buffer("offset", torch.randn(8), persistent=False)

    def forward(self, x: Tensor, *, scale: Tensor) -> dict[str, Any]:
        with torch.no_grad():
            y = self.norm(self.conv(x)).relu()
        y = y.view(x.shape[0], 2, 4, -1).transpose(1, 2).reshape(x.shape[0], 8, -1).mean(-1)
        return {"out": self.again(self.first(y)) * scale + self.offset, "parts": [y, y.amax(1)]}


# ---------------------------------------------------------------- round trips


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", ["resnet8", "grouped", "shuffle_v2", "unet", "siamese", "lstm"])
def test_a_slim_net_comes_back_bit_for_bit(name: str, dynamic: bool, tmp_path: Path) -> None:
    model, inputs = slim_net(name)
    before = snapshot(model)
    save_pt2(model, tmp_path / "slim.pt2", inputs, dynamic_batch=dynamic)
    assert_untouched(model, before)
    loaded = load_pt2(tmp_path / "slim.pt2")
    with torch.no_grad():
        assert torch.equal(loaded(*inputs), model(*inputs))
        sizes = (1, 5) if dynamic else ()
        for size in sizes:
            other = tuple(torch.randn(size, *x.shape[1:]) for x in inputs)
            assert torch.equal(loaded(*other), model(*other))


def test_a_fixed_batch_is_kept(tmp_path: Path) -> None:
    model, inputs = slim_net("resnet8")
    save_pt2(model, tmp_path / "slim.pt2", inputs)
    with pytest.raises(RuntimeError, match="to be equal to 2, but got 3"):
        load_pt2(tmp_path / "slim.pt2")(torch.randn(3, 1, 8, 8))


@pytest.mark.parametrize("dynamic", [False, True])
def test_keyword_inputs_nested_outputs_tied_weights_and_buffers(
    dynamic: bool, tmp_path: Path
) -> None:
    model = Everything().eval()
    inputs = {"x": torch.randn(2, 3, 9, 9), "scale": torch.randn(2, 8)}
    save_pt2(model, tmp_path / "net.pt2", inputs, dynamic_batch=dynamic)
    program = read_pt2(tmp_path / "net.pt2")
    assert (
        program.state_dict["again.weight"].data_ptr()
        == program.state_dict["first.weight"].data_ptr()
    )
    loaded = program.module()
    with torch.no_grad():
        a, b = loaded(**inputs), model(**inputs)
    assert torch.equal(a["out"], b["out"])
    assert [torch.equal(x, y) for x, y in zip(a["parts"], b["parts"], strict=True)] == [True, True]


def test_names_that_are_no_identifiers(tmp_path: Path) -> None:
    model = nn.Sequential()
    model.add_module("block1-0", nn.Linear(3, 4))
    model.add_module("0/up: a@b #1", nn.Linear(4, 5))
    x = torch.randn(2, 3)
    save_pt2(model.eval(), tmp_path / "net.pt2", x)
    with torch.no_grad():
        assert torch.equal(load_pt2(tmp_path / "net.pt2")(x), model(x))
    model.add_module('quote"', nn.Linear(5, 5))
    with pytest.raises(ModelError, match="which is no name"):
        save_pt2(model, tmp_path / "net.pt2", x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_and_memory_formats(dtype: torch.dtype, tmp_path: Path) -> None:
    model, inputs = slim_net("option_b")
    model.to(dtype).to(memory_format=torch.channels_last)
    x = inputs[0].to(dtype)
    save_pt2(model, tmp_path / "net.pt2", x)
    with torch.no_grad():
        assert torch.equal(load_pt2(tmp_path / "net.pt2")(x), model(x))


def test_a_transformer_with_its_fused_paths_off(tmp_path: Path) -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    model, x = nn.TransformerEncoder(layer, 2).eval(), torch.randn(2, 5, 16)
    save_pt2(model, tmp_path / "net.pt2", x, dynamic_batch=True)
    assert torch.backends.mha.get_fastpath_enabled()
    with torch.no_grad():
        assert torch.allclose(load_pt2(tmp_path / "net.pt2")(x), model(x), atol=1e-5)


def test_the_file_is_plain_for_pytorch_and_holds_no_pickle_path_or_source_line(
    tmp_path: Path,
) -> None:
    model, inputs = slim_net("resnet8")
    save_pt2(model, tmp_path / "slim.pt2", inputs, about={"plan": "abc"})
    with torch.no_grad():
        plain = torch.export.load(tmp_path / "slim.pt2").module()
        assert torch.equal(plain(*inputs), model(*inputs))
    members = read(tmp_path / "slim.pt2")
    assert members["data/sample_inputs/model.pt"] == b""
    text = members["models/model.json"].decode()
    assert str(Path(__file__).parent) not in text
    assert "stack_trace" not in text
    for name, data in members.items():
        assert not data.startswith((b"PK", b"\x80")), name
    archive = check_pt2(tmp_path / "slim.pt2")
    assert archive.about["plan"] == "abc"
    assert "torch.ops.aten.conv2d.default" in archive.operators


def test_a_file_that_is_not_kept_leaves_nothing(tmp_path: Path) -> None:
    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(ModelError, match=r"cannot export this model as \.pt2"):
        save_pt2(Branch(), tmp_path / "net.pt2", torch.ones(2, 3))
    with pytest.raises(TraceError, match="hold no tensor"):
        save_pt2(Branch(), tmp_path / "net.pt2", "x")
    assert not list(tmp_path.iterdir())


class TwoFaced(nn.Module):
    """Another network while it is exported."""

    def forward(self, x: Tensor) -> Tensor:
        return -x if torch.compiler.is_exporting() else x


def test_an_exported_network_that_computes_something_else_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="bit for bit"):
        save_pt2(TwoFaced(), tmp_path / "net.pt2", torch.ones(2, 3))
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- hostile files


def read(path: Path) -> Members:
    with zipfile.ZipFile(path) as archive:
        return {i.filename.partition("/")[2]: archive.read(i) for i in archive.infolist()}


def write(path: Path, members: Members) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"net/{name}", data)
    return path


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return exec, (f"open({self.marker!r}, 'w').close()",)


def code(marker: Path) -> str:
    return f"open({str(marker)!r}, 'w').close()"


def pickled(marker: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save(((Bomb(str(marker)),), {}), buffer)
    return buffer.getvalue()


def edit(members: Members, name: str, change: Callable[[Any], Any]) -> Members:
    body = json.loads(members[name])
    changed = change(body)
    body = body if changed is None else changed
    return {**members, name: json.dumps(body).encode()}


def model_edit(members: Members, change: Callable[[Any], Any]) -> Members:
    return edit(members, "models/model.json", change)


def rename(members: Members, old: str, new: str) -> Members:
    """Rename a node of the graph, wherever it is named."""
    text = members["models/model.json"].decode()
    return {**members, "models/model.json": text.replace(json.dumps(old), json.dumps(new)).encode()}


def samples(members: Members, marker: Path) -> Members:
    return {**members, "data/sample_inputs/model.pt": pickled(marker)}


def weight(members: Members, marker: Path) -> Members:
    def change(body: Any) -> None:
        entry = next(iter(body["config"].values()))
        entry["use_pickle"], entry["path_name"] = True, "weight_999"

    members = edit(members, "data/weights/model_weights_config.json", change)
    return {**members, "data/weights/weight_999": pickled(marker)}


def constant(members: Members, marker: Path) -> Members:
    def change(body: Any) -> None:
        body["config"]["bomb"] = {
            "path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None,
        }  # fmt: skip

    members = edit(members, "data/constants/model_constants_config.json", change)
    return {**members, "data/constants/opaque_obj_0": pickle.dumps(Bomb(str(marker)))}


def legacy_weights(members: Members, marker: Path) -> Members:
    return {**members, "data/weights/model.pt": pickled(marker)}


def formula(members: Members, marker: Path) -> Members:
    def change(body: Any) -> None:
        values = body["graph_module"]["graph"]["tensor_values"]
        size = {"expr_str": f"({code(marker)}, 2)[1]", "hint": {"as_int": 2}}
        next(iter(values.values()))["sizes"][0] = {"as_expr": size}

    return model_edit(members, change)


def guard(members: Members, marker: Path) -> Members:
    return model_edit(members, lambda b: b.update(guards_code=[f"{code(marker)} is None"]))


def name(members: Members, marker: Path) -> Members:
    """The name of an input: it becomes the default value of an argument."""
    return rename(members, "x", f"x=({code(marker)})")


def tree(members: Members, marker: Path) -> Members:
    """The type of a tree is imported: a module beside the reader, here."""
    (marker.parent / "evil_module.py").write_text(code(marker) + "\nfactory = dict\n")
    context = {
        "default_factory_module": "evil_module", "default_factory_name": "factory", "dict_context": [],
    }  # fmt: skip
    inner = {"type": "builtins.dict", "context": "[]", "children_spec": []}
    spec = {"type": "collections.defaultdict", "context": context, "children_spec": []}
    out = [1, {"type": "builtins.tuple", "context": "null", "children_spec": [spec, inner]}]

    def change(body: Any) -> None:
        body["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = json.dumps(out)

    return model_edit(members, change)


HOSTILE: dict[str, tuple[Callable[[Members, Path], Members], str]] = {
    "pickled example inputs": (samples, "data/sample_inputs/model.pt' is a pickle"),
    "a pickled weight": (weight, "an archive inside the archive, which would be unpickled"),
    "a pickled constant": (constant, "is a pickle or an object"),
    "weights of the older format": (legacy_weights, "data/weights/model.pt' is a pickle"),
    "a size that is a formula": (formula, "which is more than arithmetic"),
    "a name that is source code": (name, "which would become source code"),
    "a tree whose type is imported": (tree, "'collections.defaultdict', which is imported"),
}

PLAIN = """
    import sys, warnings, logging
    warnings.simplefilter("ignore"); logging.disable()
    import torch
    for path in sys.argv[1:]:
        try:
            torch.export.load(path).module()(torch.zeros(2, 1, 8, 8))
        except Exception:  # it may fail: what counts is what its code did by then
            pass
"""


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Members:
    model, inputs = slim_net("resnet8")
    path = tmp_path_factory.mktemp("pt2") / "good.pt2"
    save_pt2(model, path, inputs)
    return read(path)


@pytest.fixture(scope="module")
def hostile(
    good: Members, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, Path]]:
    """Every hostile file, and the marker that shows that its code ran."""
    found = {}
    for i, (name, (make, _)) in enumerate(HOSTILE.items()):
        folder = tmp_path_factory.mktemp(f"hostile{i}")
        marker = folder / "marker"
        found[name] = (write(folder / "net.pt2", make(dict(good), marker)), marker)
    return found


def test_the_hostile_files_do_run_their_code_when_pytorch_opens_them(
    hostile: dict[str, tuple[Path, Path]],
) -> None:
    paths = [str(path) for path, _ in hostile.values()]
    folders = os.pathsep.join(str(Path(p).parent) for p in paths)
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PLAIN), *paths],
        check=True,
        env={**os.environ, "PYTHONPATH": folders},
        capture_output=True,
    )
    ran = {name for name, (_, marker) in hostile.items() if marker.exists()}
    for _, marker in hostile.values():
        marker.unlink(missing_ok=True)
    assert ran == set(HOSTILE)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_and_nothing_in_it_runs(
    name: str, hostile: dict[str, tuple[Path, Path]]
) -> None:
    path, marker = hostile[name]
    with pytest.raises(DataError) as caught:
        load_pt2(path)
    assert "is refused" in str(caught.value)
    assert HOSTILE[name][1] in str(caught.value)
    assert "nothing in it was run" in str(caught.value)
    assert not marker.exists()
    assert "evil_module" not in sys.modules


def test_guards_of_the_file_are_not_executed(good: Members, tmp_path: Path) -> None:
    path = write(tmp_path / "net.pt2", guard(dict(good), tmp_path / "marker"))
    load_pt2(path)(torch.zeros(2, 1, 8, 8))
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os')",
        "Symbol('s0').__class__",
        "Symbol(\"s0'); print('\")",
        "[x for x in (1,)]",
        "(lambda: 1)()",
        "9**9**9",
        "Pow(Integer(9), Pow(Integer(9), Integer(9)))",
        "Pow(Integer(2), Integer(100000))",
        "s0[0]",
        "getattr(s0, 'x')",
        "'abc'",
        "Symbol('s0', positive=print('x'))",
        "Add(*s0)",
        "f'{s0}'",
        "s0 if s0 else s1",
        "(" * 3000,
    ],
)
def test_formulas_are_arithmetic_only(text: str, good: Members, tmp_path: Path) -> None:
    def change(body: Any) -> None:
        values = body["graph_module"]["graph"]["tensor_values"]
        next(iter(values.values()))["sizes"][0] = {
            "as_expr": {"expr_str": text, "hint": {"as_int": 2}}
        }

    with pytest.raises(DataError, match="more than arithmetic"):
        load_pt2(write(tmp_path / "net.pt2", model_edit(dict(good), change)))


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("torch.ops.aten.from_file.default", "more than compute"),
        ("torch.ops.aten.save.default", "does not have|more than compute"),
        ("torch.ops.aten.manual_seed.default", "more than compute"),
        ("torch.ops.aten.set_.source_Tensor_storage_offset", "more than compute"),
        ("torch.ops.aten.no_such_thing.default", "does not have"),
        ("torch.ops.aten.relu.no_such_overload", "does not have"),
        ("torch.ops.prim.Print.default", "no operator on tensors"),
        ("torch.hub.load", "no operator on tensors"),
        ("torch.os.system", "no operator on tensors"),
        ("_operator.attrgetter", "no operator on tensors"),
        ("_operator.call", "no operator on tensors"),
        ("math.__loader__", "no operator on tensors"),
        ("#triton:kernel", "no operator on tensors"),
        ("torch.ops.higher_order.triton_kernel_wrapper_functional", "no operator on tensors"),
        ("torch.ops.aten.relu.default\n", "no operator on tensors"),
    ],
)
def test_operators_compute_on_tensors_only(
    target: str, words: str, good: Members, tmp_path: Path
) -> None:
    def change(body: Any) -> None:
        body["graph_module"]["graph"]["nodes"][0]["target"] = target

    with pytest.raises(DataError, match=words):
        load_pt2(write(tmp_path / "net.pt2", model_edit(dict(good), change)))


def objects(body: Any) -> None:
    body["graph_module"]["graph"]["custom_obj_values"] = {"x": {"as_custom_obj": {"name": "x"}}}


def named_tuple(body: Any) -> None:
    body["graph_module"]["treespec_namedtuple_fields"] = {"os.stat_result": {"field_names": []}}


def tensor_name(body: Any) -> None:
    spec = body["graph_module"]["signature"]["input_specs"][0]
    spec["parameter"]["parameter_name"] = 'x"); print(1); ("'


def argument_name(body: Any) -> None:
    call = body["graph_module"]["module_call_graph"][0]["signature"]
    call["forward_arg_names"] = ["x=print('hello')"]


def device(body: Any) -> None:
    for meta in body["graph_module"]["graph"]["tensor_values"].values():
        meta["device"]["type"] = "privateuseone"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (objects, "an object that would be made by unpickling"),
        (named_tuple, "named tuple"),
        (tensor_name, "which is no name"),
        (argument_name, "would become source code"),
        (device, "for the device 'privateuseone'"),
        (lambda b: b["graph_module"].update(module_call_graph=[]), "how its network is called"),
        (lambda b: {"a": 1}, "graph is missing"),
        (lambda b: [1], "holds a list"),
    ],
)
def test_other_graphs_that_are_not_what_export_writes(
    change: Callable[[Any], Any], words: str, good: Members, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=words):
        load_pt2(write(tmp_path / "net.pt2", model_edit(dict(good), change)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda e: e.update(path_name="../../etc/passwd"), "not in the file"),
        (lambda e: e.update(path_name="weight_12345"), "not in the file"),
        (lambda e: e["tensor_meta"].update(sizes=[{"as_int": 3}]), "has 1 sizes and 4 strides"),
        (
            lambda e: e["tensor_meta"].update(sizes=[{"as_int": 10**12}], strides=[{"as_int": 1}]),
            "of shape [1000000000000] is larger than its",
        ),
        (lambda e: e["tensor_meta"].update(sizes=[{"as_int": -1}]), "no plain number"),
        (lambda e: e["tensor_meta"].update(storage_offset={"as_int": 10**9}), "damaged"),
        (
            lambda e: e["tensor_meta"].update(storage_offset={"as_expr": {"expr_str": "1"}}),
            "is a formula",
        ),
        (lambda e: e.pop("tensor_meta"), "not in the file"),
        (lambda e: e.pop("use_pickle"), "is to be unpickled"),
    ],
)
def test_tensors_that_are_not_where_they_say(
    change: Callable[[Any], Any], words: str, good: Members, tmp_path: Path
) -> None:
    def first(body: Any) -> None:
        change(next(iter(body["config"].values())))

    members = edit(dict(good), "data/weights/model_weights_config.json", first)
    with pytest.raises(DataError, match=re.escape(words)):
        load_pt2(write(tmp_path / "net.pt2", members))


def test_a_tensor_without_bytes_takes_no_memory(good: Members, tmp_path: Path) -> None:
    """PyTorch makes zeros of whatever shape is written beside an empty member."""
    entry: dict[str, Any] = {}

    def first(body: Any) -> None:
        entry.update(next(iter(body["config"].values())))
        meta = next(iter(body["config"].values()))["tensor_meta"]
        meta |= {"sizes": [{"as_int": 10**12}], "strides": [{"as_int": 1}]}

    members = edit(dict(good), "data/weights/model_weights_config.json", first)
    members[f"data/weights/{entry['path_name']}"] = b""
    with pytest.raises(DataError, match="is larger than its 0 bytes"):
        load_pt2(write(tmp_path / "net.pt2", members))


def test_members_that_do_not_belong_there(good: Members, tmp_path: Path) -> None:
    def refused(words: str, **extra: bytes) -> None:
        members = {**good, **{n.replace("|", "/"): d for n, d in extra.items()}}
        with pytest.raises(DataError, match=words):
            load_pt2(write(tmp_path / "net.pt2", members))

    refused("lies outside its folder", **{"..|..|evil": b""})
    refused("lies outside its folder", **{"data\\evil": b""})
    refused("is compiled code", **{"data|aotinductor|model|x.so": b"\x7fELF"})
    refused("is a pickle or an object", **{"data|constants|custom_obj_0": b""})
    refused("of no known kind", **{"data|weights|other": b""})
    refused("of no known kind", **{"models|second.json": b"{}"})
    refused("an archive inside the archive", **{"data|weights|weight_77": b"PK\x03\x04abc"})
    refused("is 'b\"0\"|its 'archive_version' is", archive_version=b"9")
    refused("byteorder", byteorder=b"big")
    refused("not sane JSON", **{"models|model.json": b"{"})
    refused("not sane JSON", **{"models|model.json": b'{"a":' * 100000})
    refused("not an object of texts", **{"extra|mint_deploy.json": b"[1]"})
    for name in ("models/model.json", "data/weights/model_weights_config.json", "archive_format"):
        with pytest.raises(DataError, match=f"has no '{name}'"):
            load_pt2(write(tmp_path / "net.pt2", {n: d for n, d in good.items() if n != name}))


def test_archives_that_are_not_plain(good: Members, tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in good.items():
            archive.writestr(f"net/{name}", data)
    with pytest.raises(DataError, match="is compressed"):
        load_pt2(path)
    with zipfile.ZipFile(path, "w") as archive:
        link = zipfile.ZipInfo("net/models/model.json")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(DataError, match="is a link"):
        load_pt2(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/models/model.json", "{}")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("net/models/model.json", "{}")
    with pytest.raises(DataError, match="is there twice"):
        load_pt2(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/archive_format", "pt2")
        archive.writestr("other/archive_version", "0")
    with pytest.raises(DataError, match="lies outside its folder"):
        load_pt2(path)
    with zipfile.ZipFile(path, "w"):
        pass
    with pytest.raises(DataError, match="has 0 members"):
        load_pt2(path)


def test_files_that_are_no_archives(good: Members, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        load_pt2(tmp_path / "nothing.pt2")
    path = tmp_path / "net.pt2"
    path.write_bytes(b"\x80\x02not a zip")
    with pytest.raises(DataError, match=r"damaged or not a \.pt2"):
        load_pt2(path)
    whole = write(path, good).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"damaged or not a \.pt2"):
        load_pt2(path)
    flipped = bytearray(whole)
    flipped[200] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(DataError, match="damaged"):
        load_pt2(path)


def test_messages_hold_no_control_characters_of_the_file(good: Members, tmp_path: Path) -> None:
    evil = rename(dict(good), "relu", "\x1b[31mrelu\n" + "x" * 500)
    with pytest.raises(DataError) as caught:
        load_pt2(write(tmp_path / "net.pt2", evil))
    assert "\x1b" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
