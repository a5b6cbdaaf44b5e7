"""``export_program``: from a model to its :class:`~mint_deploy.program.Program`.

The model is exported twice, with two and with three samples. What differs between both must follow from the
number of samples, so a program runs with any; where the code does not allow that, it is fixed to one.
"""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_flatten, tree_map_only

from mint_deploy.errors import ModelError
from mint_deploy.gate import relative_error
from mint_deploy.inputs import Call, as_call, call, outputs_of
from mint_deploy.program import Program
from mint_deploy.program_graph import ADVICE, Builder, ClosedError
from mint_deploy.silence import silent
from mint_deploy.user_model import copied, unwrapped

__all__ = ["export_program"]

TOLERANCE = 1e-4
_NOT_THE_USERS = (str(Path(torch.__file__).parent), str(Path(__file__).parent))


def export_program(model: nn.Module, example_inputs: Any) -> Program:
    """Return ``model`` as an exported program, in evaluation mode, with the names of its tensors.

    Args:
        model: any module that ``torch.export`` takes; it is not altered.
        example_inputs: a tensor, a tuple of arguments, or a dict of keyword arguments. All shapes but the
            number of samples are fixed to theirs.

    Raises:
        ModelError: torch.export refuses the model (its reason in one line), it calls what has no place in a
            program, or the program does not compute what the model does.
        TraceError: no tensor among the inputs; a model that cannot be copied or cut at all.
    """
    inputs: Call = tree_map_only(Tensor, lambda x: x.detach().cpu(), as_call(example_inputs))
    inner = unwrapped(model)
    made = copied(inner).to("cpu").eval()
    size = next((len(x) for x in tree_flatten(inputs)[0] if isinstance(x, Tensor) and x.dim()), 1)
    program, why = None, "its inputs have no samples in front"
    for sizes in ((2, 3), (size,)):
        try:
            exported = [_exported(made, _sized(inputs, size, n)) for n in sizes]
            found = Builder(made, inputs, size, sizes, exported, why).build()
            _compare(found, made, inputs, size)
            program = found
            break
        except ClosedError as problem:
            why = str(problem)
        except ModelError as problem:
            if len(sizes) == 1:
                raise
            why = str(problem)
    if program is None:
        raise ModelError(
            f"the exported program does not compute what the model does: {why}; {ADVICE}"
        )
    homes = {t.device for t in (*inner.parameters(), *inner.buffers())}
    return program.to(next(iter(homes), torch.device("cpu")))


def _sized(inputs: Call, size: int, samples: int) -> Call:
    """Return the inputs with another number of samples, the given ones repeated."""

    def repeated(x: Tensor) -> Tensor:
        return x[torch.arange(samples) % size] if x.dim() and len(x) == size else x

    made: Call = tree_map_only(Tensor, repeated, inputs)
    return made


def _exported(model: nn.Module, inputs: Call) -> ExportedProgram:
    # strides of a dimension of size 1 can say "channels last", which fake tensors take seriously
    args, kwargs = tree_map_only(
        Tensor, lambda x: x.clone(memory_format=torch.contiguous_format), inputs
    )
    try:
        with silent(), torch.random.fork_rng(devices=[]):
            return torch.export.export(model, args, kwargs, strict=False)
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = next((line.strip() for line in str(cause).splitlines() if line.strip()), "")
        raise ModelError(
            f"torch.export refuses this model: {type(cause).__name__}: {reason}{_line_of(error)}; {ADVICE}"
        ) from error


def _line_of(error: Exception) -> str:
    """Return the last line of the user's code that was running, as `` (file.py:12)``."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith(_NOT_THE_USERS)]
    return f" ({Path(own[-1].filename).name}:{own[-1].lineno})" if own else ""


def _compare(program: Program, model: nn.Module, inputs: Call, size: int) -> None:
    """Compare with the model on the given inputs, and on one and five samples where both are open."""
    sizes = dict.fromkeys((size, 1, 5) if program.graph.open_batch else (size,))
    for samples in sizes:
        given = _sized(inputs, size, samples)
        expected = _expected(model, given)
        if expected is None:
            continue
        try:
            found = _run(program, given)
        except Exception as problem:
            raise ClosedError(f"with {samples} samples it raises {problem}") from problem
        same = len(found) == len(expected)
        error = relative_error(found, expected) if same else float("inf")
        if not error <= TOLERANCE:
            raise ClosedError(f"with {samples} samples its outputs are off by {error:.2g}")


def _expected(model: nn.Module, inputs: Call) -> list[Tensor] | None:
    """Return the model's own outputs; ``None`` where it does not take these inputs, or computes NaN."""
    try:
        found = _run(model, inputs)
    except Exception:  # noqa: BLE001  # whatever the user's code raises
        return None
    return None if any(bool(x.isnan().any()) for x in found) else found


def _run(model: nn.Module, inputs: Call) -> list[Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return outputs_of(call(model, inputs))
