"""Look into a ``.pt2`` file before PyTorch does, and refuse what could run code.

``torch.export.load`` trusts its file. Code of the file's author runs if it holds a pickle (example
inputs, weights of odd types, constants), a script object, an operator that is any function below
``torch`` (``torch.os.system`` is one), a size written as a formula (evaluated), a guard (executed), a
name (it becomes source code), or a tree of a type that is imported. So nothing is believed here: every
member, string and number that passes is of a kind that exported networks need, the rest is
refused by its name, and what PyTorch gets to read is written anew from what was checked.

Standard library only; nothing of the file is executed, imported or unpickled.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import IO, Any, NoReturn

from mint_deploy.errors import DataError
from mint_deploy.pt2_formula import is_arithmetic

__all__ = ["ABOUT", "MODEL", "SAMPLES", "Archive", "check_pt2"]

MODEL = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"
SAMPLES = "data/sample_inputs/model.pt"
ABOUT = "extra/mint_deploy.json"
#: members with fixed contents, or of which nothing is read
_FIXED = {"archive_format": b"pt2", "archive_version": b"0", "byteorder": b"little"}
_UNREAD = (".data/version", ".data/serialization_id", "version", ".format_version")
_PAYLOAD = re.compile(r"data/(?:weights/weight|constants/tensor)_\d{1,9}")
_LARGEST_JSON = 256 << 20
_MOST_MEMBERS = 200_000

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,300}")
#: tensor names: keys of a ModuleDict may hold more than an identifier, and are written in quotes
_DOTTED = re.compile(r"[\w\-:/+@# ]+(?:\.[\w\-:/+@# ]+){0,50}", re.ASCII)
_PLAIN = re.compile(r"[A-Za-z0-9_.+\- ]{0,300}")
_OUTPUT_KEY = re.compile(r"[\w .:/\-]{0,200}")
#: keys whose strings name a tensor of the state dict; all other names become Python source
_TENSOR_NAMES = ("parameter_name", "buffer_name", "tensor_constant_name")

#: operators beside those of ATen; which of ATen's is checked where PyTorch is at hand
_FUNCTIONS = {
    "_operator": "getitem add sub mul truediv floordiv mod pow neg pos abs eq ne lt le gt ge and_ or_ not_ "
    "lshift rshift",
    "math": "trunc floor ceil sqrt",
    "torch": "sym_int sym_float sym_max sym_min sym_not sym_ite sym_sum",
    "torch.ops.higher_order": "wrap_with_set_grad_enabled wrap_with_autocast cond",
}
_TARGETS = frozenset(f"{place}.{n}" for place, names in _FUNCTIONS.items() for n in names.split())
_ATEN = re.compile(r"torch\.ops\.aten\.[A-Za-z_]\w{0,100}\.\w{1,100}")

_TREES = ("builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict")


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """What a file holds, checked. ``payloads`` are raw tensors by member name."""

    model: Mapping[str, Any]
    weights: Mapping[str, Any]
    constants: Mapping[str, Any]
    payloads: Mapping[str, bytes]
    operators: tuple[str, ...]
    about: Mapping[str, str] = field(default_factory=dict)


def check_pt2(
    path: str | os.PathLike[str] | IO[bytes], *, name: str = "", drop_samples: bool = False
) -> Archive:
    """Read and check a ``.pt2`` file.

    Args:
        path: the file, or one that is open for reading.
        name: what to call it in messages; its path by default.
        drop_samples: pass over pickled example inputs, unread, instead of refusing them; for a file that
            was written a moment ago.

    Raises:
        DataError: no such file, damaged, or something in it is refused; what, and why, is said.
    """
    told = name or path
    try:
        with zipfile.ZipFile(path) as archive:
            members = _members(archive)
            if drop_samples:
                members.pop(SAMPLES, None)
            _check_names(members)
            read = {member: archive.read(info) for member, info in members.items()}
        return _checked(read)
    except FileNotFoundError as error:
        raise DataError(f"cannot read {told}: no such file") from error
    except _Refused as refused:
        raise DataError(
            f"{told} is refused: {refused}; nothing in it was run. Expected what "
            "mint_deploy.save_pt2 writes: raw tensors and a graph of ATen operators"
        ) from None
    except DataError:
        raise
    except Exception as error:  # whatever a damaged file makes zipfile and json raise
        raise DataError(f"{told} is damaged or not a .pt2 file ({error})") from error


class _Refused(Exception):
    """Why a file is not opened."""


def _refuse(why: str) -> NoReturn:
    raise _Refused(why)


# ---------------------------------------------------------------- members


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Return the members by their name below the archive's one root folder."""
    found: dict[str, zipfile.ZipInfo] = {}
    infos = archive.infolist()
    if not infos or len(infos) > _MOST_MEMBERS:
        _refuse(f"it has {len(infos)} members")
    root = infos[0].filename.split("/")[0]
    for info in infos:
        place, _, name = info.filename.partition("/")
        parts = PurePosixPath(info.filename).parts
        told = _told(info.filename)
        if (
            place != root
            or not name
            or name.endswith("/")
            or ".." in parts
            or info.filename.startswith("/")
            or re.search(r"[\\:\x00-\x1f]", info.orig_filename)
        ):
            _refuse(f"its member {told} lies outside its folder")
        if stat.S_ISLNK(info.external_attr >> 16):
            _refuse(f"its member {told} is a link")
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            _refuse(f"its member {told} is compressed, so its size is not what it says")
        if info.flag_bits & 1:
            _refuse(f"its member {told} is encrypted")
        if name in found:
            _refuse(f"its member {told} is there twice")
        found[name] = info
    return found


def _check_names(members: Mapping[str, zipfile.ZipInfo]) -> None:
    json_files = (MODEL, WEIGHTS, CONSTANTS, ABOUT)
    for name, info in members.items():
        if name == SAMPLES and info.file_size == 0:
            continue
        if name.endswith((".pt", ".pkl", ".pickle")) or "_obj_" in name:
            _refuse(f"its member '{_told(name)}' is a pickle or an object, which can run code")
        if name.startswith(("data/aotinductor/", "executorch")):
            _refuse(f"its member '{_told(name)}' is compiled code")
        known = name in json_files or name in _FIXED or name in _UNREAD or _PAYLOAD.fullmatch(name)
        if not known:
            _refuse(f"its member '{_told(name)}' is of no known kind")
        if name in json_files and info.file_size > _LARGEST_JSON:
            _refuse(f"its member '{_told(name)}' has {info.file_size} bytes")
    for name in (MODEL, WEIGHTS, CONSTANTS, "archive_format", "archive_version"):
        if name not in members:
            _refuse(f"it has no '{name}'")


def _checked(read: Mapping[str, bytes]) -> Archive:
    for name, expected in _FIXED.items():
        if name in read and read[name] != expected:
            _refuse(f"its '{name}' is {_told(repr(read[name][:20]))}, expected {expected!r}")
    payloads = {name: data for name, data in read.items() if _PAYLOAD.fullmatch(name)}
    for name, data in payloads.items():
        if data.startswith(b"PK\x03\x04"):
            _refuse(
                f"its member '{name}' is an archive inside the archive, which would be unpickled"
            )
    model = _Model(_json(read, MODEL))
    return Archive(
        model=model.clean,
        weights=_config(_json(read, WEIGHTS), payloads, "data/weights/"),
        constants=_config(_json(read, CONSTANTS), payloads, "data/constants/"),
        payloads=payloads,
        operators=tuple(sorted(model.operators)),
        about=_about(read),
    )


def _about(read: Mapping[str, bytes]) -> dict[str, str]:
    body = json.loads(read.get(ABOUT, b"{}"))
    if not isinstance(body, dict) or not all(isinstance(v, str) for v in body.values()):
        _refuse(f"its '{ABOUT}' is not an object of texts")
    return body


def _json(read: Mapping[str, bytes], name: str) -> dict[str, Any]:
    try:
        body = json.loads(read[name].decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise _Refused(f"its '{name}' is not sane JSON ({error})") from None
    if not isinstance(body, dict):
        _refuse(f"its '{name}' holds a {type(body).__name__}")
    return body


def _config(body: Mapping[str, Any], payloads: Mapping[str, bytes], folder: str) -> dict[str, Any]:
    """Check which tensor lies where: raw, and no larger than what is there."""
    config = body.get("config")
    if not isinstance(config, dict):
        _refuse(f"the list of tensors in '{folder}' is missing")
    for name, entry in config.items():
        told = _told(name)
        if not _DOTTED.fullmatch(name):
            _refuse(f"the name of its tensor '{told}' is no name")
        if not isinstance(entry, dict) or entry.get("use_pickle") is not False:
            _refuse(f"its tensor '{told}' is to be unpickled, which can run code")
        data = payloads.get(folder + str(entry.get("path_name")))
        meta = entry.get("tensor_meta")
        if data is None or not isinstance(meta, dict):
            _refuse(f"its tensor '{told}' is not in the file")
        _strings(meta, f"tensor '{told}'")
        sizes = [_whole(n, told) for n in meta.get("sizes", [])]
        strides = [_whole(n, told) for n in meta.get("strides", [])]
        _whole(meta.get("storage_offset"), told)
        if len(strides) != len(sizes):
            _refuse(f"its tensor '{told}' has {len(sizes)} sizes and {len(strides)} strides")
        # along a stride of 0 one value stands for all
        distinct = [n for n, step in zip(sizes, strides, strict=True) if step or n == 0]
        if math.prod(distinct) > len(data):
            _refuse(f"its tensor '{told}' of shape {sizes} is larger than its {len(data)} bytes")
    return {
        "config": {
            n: {k: e[k] for k in ("path_name", "is_param", "use_pickle", "tensor_meta")}
            for n, e in config.items()
        }
    }


def _whole(size: Any, name: str) -> int:
    value = size.get("as_int") if isinstance(size, dict) else None
    if type(value) is not int or not 0 <= value < 2**48:
        _refuse(f"its tensor '{name}' has a size or stride that is no plain number")
    return value


# ---------------------------------------------------------------- the graph


class _Model:
    """The exported program as JSON; ``clean`` is what passed, without notes, guards and sub-modules."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        self.operators: set[str] = set()
        module = body.get("graph_module")
        if not isinstance(module, dict):
            _refuse("its graph is missing")
        calls = [c for c in module.get("module_call_graph", []) if c.get("fqn") == ""]
        if len(calls) != 1 or not isinstance(calls[0].get("signature"), dict):
            _refuse("how its network is called is missing")
        if module.get("treespec_namedtuple_fields"):
            _refuse("its network takes or returns a named tuple, whose type would be imported")
        self.clean = self._pass(
            {
                **{k: v for k, v in body.items() if k != "graph_module"},
                "guards_code": [],
                "graph_module": {
                    **module,
                    "metadata": {},
                    "module_call_graph": calls,
                    "treespec_namedtuple_fields": {},
                },
            },
            "model",
        )

    def _pass(self, value: Any, key: str) -> Any:
        if isinstance(value, dict):
            return {
                self._key(k): self._pass(self._without_notes(k, v), k) for k, v in value.items()
            }
        if isinstance(value, list):
            return [self._pass(v, key) for v in value]
        if isinstance(value, str):
            self._string(key, value)
        return value

    @staticmethod
    def _without_notes(key: str, value: Any) -> Any:
        return {} if key == "metadata" else value

    @staticmethod
    def _key(key: str) -> str:
        if key in ("as_custom_obj", "custom_obj") or (key and not _IDENTIFIER.fullmatch(key)):
            _refuse(f"its graph holds '{_told(key)}', an object that would be made by unpickling")
        return key

    def _string(self, key: str, value: str) -> None:
        told = _told(value)
        if key in ("target", "as_operator"):
            if value not in _TARGETS and not _ATEN.fullmatch(value):
                _refuse(f"its graph calls '{told}', which is no operator on tensors")
            self.operators.add(value)
        elif key == "expr_str":
            if not is_arithmetic(value):
                _refuse(
                    f"a size in its graph is the formula '{told}', which is more than arithmetic"
                )
        elif key == "in_spec":
            _check_tree(value, _IDENTIFIER)
        elif key == "out_spec":
            _check_tree(value, _OUTPUT_KEY)
        elif key == "as_string":
            pass  # an argument of an operator; it is written as a literal
        elif key in _TENSOR_NAMES:
            if not _DOTTED.fullmatch(value):
                _refuse(f"its graph names a tensor '{told}', which is no name")
        elif key in ("name", "as_name", "forward_arg_names"):
            if value and not _IDENTIFIER.fullmatch(value):
                _refuse(f"its graph has the name '{told}', which would become source code")
        elif key == "type":
            if value not in ("cpu", "cuda"):
                _refuse(f"it is made for the device '{told}'; known: cpu, cuda")
        elif not _PLAIN.fullmatch(value):
            _refuse(f"its graph has the text '{told}' under '{key}'")


def _strings(value: Any, where: str) -> None:
    """Refuse any string that is not plain, and formulas, below a tensor's description."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "expr_str":
                _refuse(f"its {where} has a size that is a formula")
            _strings(inner, where)
    elif isinstance(value, list):
        for inner in value:
            _strings(inner, where)
    elif isinstance(value, str) and value not in ("cpu", "cuda"):
        _refuse(f"its {where} has the text '{_told(value)}'")


def _check_tree(text: str, key: re.Pattern[str]) -> None:
    """Refuse inputs and outputs in anything but tuples, lists and dicts."""
    body = json.loads(text)
    if not isinstance(body, list) or len(body) != 2 or body[0] != 1:
        _refuse("how its inputs and outputs are nested is written in an unknown way")
    left = [body[1]]
    while left:
        spec = left.pop()
        if not isinstance(spec, dict) or set(spec) != {"type", "context", "children_spec"}:
            _refuse("how its inputs and outputs are nested is written in an unknown way")
        if spec["type"] is None:
            continue
        if spec["type"] not in _TREES:
            _refuse(
                f"its inputs or outputs are in a '{_told(str(spec['type']))}', which is imported"
            )
        keys = json.loads(spec["context"] or "null")
        for name in keys if isinstance(keys, list) else ([] if keys is None else [None]):
            if not (type(name) is int or (isinstance(name, str) and key.fullmatch(name))):
                _refuse(f"an input or output of it is called '{_told(str(name))}'")
        left.extend(spec["children_spec"])


def _told(text: str) -> str:
    """Shorten a text of the file and make it printable."""
    safe = (
        text.encode("ascii", "backslashreplace").decode().replace("\n", "\\n").replace("\r", "\\r")
    )
    safe = "".join(c if c.isprintable() else "?" for c in safe)
    return safe if len(safe) <= 60 else safe[:57] + "..."
