"""``.pt2``: a network as one file that needs no class of its own, without pickles.

``save_pt2`` writes what ``torch.export`` makes of a network, less the pickled example inputs, the source
lines and the paths that PyTorch puts beside it; ``torch.export.load`` reads it, too. ``load_pt2`` checks
a file member by member (:mod:`mint_deploy.pt2_check`), writes it anew in memory from what passed, and only
that is given to PyTorch.
"""

from __future__ import annotations

import inspect
import io
import json
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils._pytree import tree_map

from mint_deploy._version import __version__
from mint_deploy.errors import DataError, ModelError
from mint_deploy.files import atomic
from mint_deploy.inputs import Call, as_call, call, outputs_of
from mint_deploy.pt2_check import ABOUT, CONSTANTS, MODEL, SAMPLES, WEIGHTS, Archive, check_pt2
from mint_deploy.silence import silent
from mint_deploy.user_model import copied, unwrapped

__all__ = ["load_pt2", "read_pt2", "save_pt2"]

#: operators of ATen that return nothing and are needed: they check
_CHECKS = (
    "_assert_scalar",
    "_assert_async",
    "_assert_tensor_metadata",
    "sym_constrain_range",
    "sym_constrain_range_for_size",
)
#: ... and those that touch files, or read memory that is not the tensor's
_REFUSED = ("from_file", "save", "set_", "set", "set_data")
_VALUES = ("Tensor", "List[Tensor]", "int", "bool", "float", "number", "List[int]", "Device")


def save_pt2(
    model: nn.Module,
    path: str | os.PathLike[str],
    example_inputs: Any,
    *,
    dynamic_batch: bool = False,
    about: Mapping[str, str] | None = None,
) -> None:
    """Write ``model`` as a ``.pt2`` file, and read it back: its outputs must be the model's, bit for bit.

    Args:
        model: left as it is; a copy on the CPU in eval mode is exported.
        path: the file; it appears only after the outputs were compared.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments.
        dynamic_batch: leave the first dimension of every input open, from 1 up.
        about: texts that travel in the file and that ``mint-deploy inspect`` shows.

    Raises:
        ModelError: PyTorch cannot export the model, it needs something that only a pickle could hold,
            or what was read back computes something else.
        TraceError: the example inputs hold no tensor, or the model is of a kind that cannot be copied.
    """
    inputs: Call = tree_map(
        lambda x: x.cpu() if isinstance(x, Tensor) else x, as_call(example_inputs)
    )
    made = copied(unwrapped(model)).cpu().eval()
    buffer = io.BytesIO()
    try:
        with silent():
            program = _exported(made, inputs, dynamic_batch)
            torch.export.save(program, buffer)
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), "")
        hint = "export it with a fixed batch, or " if dynamic_batch else ""
        raise ModelError(
            f"PyTorch cannot export this model as .pt2: {type(error).__name__}: {reason}; {hint}rewrite "
            "the layer that it names"
        ) from error
    name = "what PyTorch exported"
    try:
        archive = check_pt2(buffer, name=name, drop_samples=True)
        content = _written(archive, {"mint_deploy.version": __version__, **(about or {})})
        loaded = _module(_opened(archive, content, name), name)
    except DataError as error:
        raise ModelError(f"this model cannot be kept without pickles: {error}") from error
    _compare(loaded, made, inputs)
    with atomic(path) as part:
        part.write_bytes(content)


def load_pt2(path: str | os.PathLike[str]) -> nn.Module:
    """Open a ``.pt2`` file as a module, after its inspection. It is for inference, on the CPU.

    Raises:
        DataError: missing, damaged, or refused because something in it could run code; what, is said.
    """
    return _module(read_pt2(path), os.fspath(path))


def read_pt2(path: str | os.PathLike[str]) -> ExportedProgram:
    """Open a ``.pt2`` file as an exported program, after its inspection.

    Raises:
        DataError: as :func:`load_pt2`.
    """
    archive = check_pt2(path)
    return _opened(archive, _written(archive, archive.about), os.fspath(path))


# ---------------------------------------------------------------- writing


def _exported(model: nn.Module, inputs: Call, dynamic_batch: bool) -> ExportedProgram:
    args, kwargs = inputs
    shapes = None
    if dynamic_batch:
        batch = Dim("batch", min=1)

        def open_first(x: Any) -> Any:
            return {0: batch} if isinstance(x, Tensor) and x.dim() else None

        def doubled(x: Any) -> Any:  # a batch of 1 would be taken for a constant
            return torch.cat([x, x]) if isinstance(x, Tensor) and x.dim() and len(x) == 1 else x

        args, kwargs = tree_map(doubled, (args, kwargs))
        # by name, as forward takes them: one with *args has all of them under one name
        named = inspect.signature(model.forward).bind(*args, **kwargs).arguments
        shapes = tree_map(open_first, dict(named))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        return torch.export.export(model, args, kwargs, dynamic_shapes=shapes)


def _compare(loaded: nn.Module, model: nn.Module, inputs: Call) -> None:
    """Refuse a file whose network is not the model.

    Raises:
        ModelError: an output differs by a bit.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # fused kernels round otherwise
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            expected = outputs_of(call(model, inputs))
            torch.default_generator.manual_seed(0)
            found = outputs_of(call(loaded, inputs))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        if (
            a.shape != b.shape
            or a.dtype != b.dtype
            or not torch.equal(a.nan_to_num(), b.nan_to_num())
        ):
            raise ModelError(
                f"output {i} of the exported network is not the model's, bit for bit; the file was not "
                "kept. Branches that depend on values become those of the example inputs"
            )


def _written(archive: Archive, about: Mapping[str, str]) -> bytes:
    """Write an archive of what was checked, and nothing else."""
    # brings torch's compiler along: more than a second, which most commands need not wait for
    from torch.export.pt2_archive import PT2ArchiveWriter

    buffer = io.BytesIO()
    with PT2ArchiveWriter(buffer) as writer:
        for name, payload in archive.payloads.items():
            writer.write_bytes(name, payload)
        for name, body in (
            (WEIGHTS, archive.weights),
            (CONSTANTS, archive.constants),
            (MODEL, archive.model),
            (ABOUT, about),
        ):
            writer.write_string(name, json.dumps(body))
        writer.write_bytes(SAMPLES, b"")
    return buffer.getvalue()


# ---------------------------------------------------------------- opening


def _opened(archive: Archive, content: bytes, path: str) -> ExportedProgram:
    """Give PyTorch ``content``, which was written from the archive that was checked.

    Raises:
        DataError: an operator that does more than compute, or PyTorch cannot read it.
    """
    for name in archive.operators:
        _check_operator(name, path)
    try:
        with silent():
            return torch.export.load(io.BytesIO(content))
    except Exception as error:  # whatever the reader makes of a graph that does not hold together
        raise DataError(
            f"{path} is damaged, or of another version of PyTorch (here: {torch.__version__}): {error}"
        ) from error


def _module(program: ExportedProgram, path: str) -> nn.Module:
    try:
        with silent():
            return program.module()
    except Exception as error:  # a graph that does not hold together, too
        raise DataError(f"{path} is damaged: PyTorch cannot run its graph ({error})") from error


def _check_operator(name: str, path: str) -> None:
    """Refuse operators of ATen that are unknown here, or that do more than compute on tensors."""
    if not name.startswith("torch.ops.aten."):
        return
    packet, _, overload = name.removeprefix("torch.ops.aten.").partition(".")
    known = getattr(torch.ops.aten, packet, None)
    if known is None or overload not in known.overloads():
        raise DataError(
            f"{path} calls the operator aten.{packet}.{overload}, which PyTorch {torch.__version__} does "
            "not have; open it with the version that wrote it"
        )
    returns = [str(r.type) for r in getattr(known, overload)._schema.returns]  # noqa: SLF001  # no public name
    pure = returns and all(r in _VALUES for r in returns)
    if packet in _REFUSED or not (pure or packet in _CHECKS):
        raise DataError(
            f"{path} is refused: its graph calls aten.{packet}.{overload}, which does more than compute on "
            "tensors; nothing in it was run"
        )
