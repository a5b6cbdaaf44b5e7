"""A network as its exported program: the operators that ran, their numbers where they can be rewritten.

Where a width is baked into Python code (``view(b, 512)``, ``split(64)``, ``C // heads``), no module attribute
holds it, so no cut can change it. ``torch.export`` writes such a network down as a list of operators.
:class:`Program` runs that list. It has the parameters and buffers of the model under the model's own names, and
every whole number that may count channels is an attribute of its child ``code``: ``code.view_3_size[1]``. So
whatever works on modules (the tracer, plans, cuts, repair, training, export) works on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from mint_deploy.errors import ModelError
from mint_deploy.tracing.numbers import Whole
from mint_deploy.tracing.place import Place

__all__ = [
    "Affine", "Attribute", "Graph", "Number", "Program", "Put", "Register", "Step", "Submodule",
    "Training", "named", "norm", "slicing", "with_deaths",
]  # fmt: skip

# ---------------------------------------------------------------- what stands in the place of an argument


@dataclass(frozen=True, slots=True)
class Register:
    """The result of an earlier step, or an input."""

    at: int


@dataclass(frozen=True, slots=True)
class Attribute:
    """A parameter or buffer: the path of its module and its name there."""

    module: str
    name: str


@dataclass(frozen=True, slots=True)
class Number:
    """A whole number of ``code``; ``batched``: times the number of samples."""

    name: str
    item: int | None = None
    batched: bool = False


@dataclass(frozen=True, slots=True)
class Affine:
    """``slope * samples + offset``, where the code computes with the batch size."""

    slope: int
    offset: int


@dataclass(frozen=True, slots=True)
class Training:
    """Whether a module trains; what ``dropout`` and ``batch_norm`` ask."""

    module: str


@dataclass(frozen=True, slots=True)
class Submodule:
    """A module that is called as such: BatchNorm, whose statistics are measured anew after a cut."""

    path: str


@dataclass(frozen=True, slots=True)
class Put:
    """The device that the inputs are on; the exported one was the CPU."""


@dataclass(frozen=True, slots=True)
class Step:
    """One call: its result goes to register ``out``, the registers ``dead`` are not read again."""

    call: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: int
    dead: tuple[int, ...]
    place: Place
    gradients: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """Everything that a cut does not change; shared by all copies of a program.

    ``batch`` is the number of samples that was exported, ``open_batch`` whether others will do;
    ``batched``: which of the flattened inputs have the samples in front, ``shapes`` theirs without the samples.
    ``form`` describes the inputs, so that the model can be exported again (``program_form.example_of``).
    """

    steps: tuple[Step, ...]
    registers: int
    outputs: tuple[Any, ...]
    inputs: tuple[int | None, ...]
    constants: tuple[Any, ...]
    batched: tuple[bool, ...]
    shapes: tuple[tuple[int, ...], ...]
    batch: int
    open_batch: bool
    why_closed: str
    in_spec: TreeSpec
    out_spec: TreeSpec
    keywords: tuple[str, ...]
    argument_names: tuple[str, ...]
    form: str = ""

    def __deepcopy__(self, memo: dict[int, Any]) -> Graph:
        return self


def with_deaths(steps: Sequence[Step], outputs: Any) -> tuple[Step, ...]:
    """Note for each step which registers are read for the last time."""
    needed = {x.at for x in tree_flatten(outputs)[0] if isinstance(x, Register)}
    out = []
    for step in reversed(steps):
        read = {x.at for x in tree_flatten((step.args, step.kwargs))[0] if isinstance(x, Register)}
        dead = tuple(sorted((read | {step.out}) - needed))
        needed |= read
        out.append(replace(step, dead=dead))
    return tuple(reversed(out))


# ---------------------------------------------------------------- calls that others can see


def named(name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``operation`` as a function that ``TorchFunctionMode`` sees under the Python-level name."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if has_torch_function(args[:1]):
            return handle_torch_function(call, args[:1], *args, **kwargs)
        return operation(*args, **kwargs)

    call.__name__ = call.__qualname__ = name
    return call


def slicing(x: Tensor, dim: int = 0, start: Any = None, end: Any = None, step: Any = 1) -> Tensor:
    """``aten.slice`` as the indexing that it was written as, whose bounds are seen."""
    before = (slice(None),) * (int(dim) % x.dim())
    return x[(*before, slice(start, end, None if step == 1 else step))]


def norm(module: nn.Module, x: Tensor) -> Any:
    """Run a BatchNorm module."""
    return module(x)


class Program(nn.Module):
    """An exported network that runs, trains and is cut like any module; see ``export_program``.

    It is fixed to the shapes of its example inputs, but for the number of samples (``graph.open_batch``).
    In training mode BatchNorm and dropout train, everything else is as in evaluation mode; stochastic depth
    and dropout inside of attention are not in it.
    """

    code: nn.Module

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph

    @property
    def argument_names(self) -> tuple[str, ...]:
        """Names of the positional arguments of the user's ``forward``."""
        return self.graph.argument_names

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program on arguments of the form of the example's.

        Raises:
            ModelError: arguments of another form, or another number of samples than it is fixed to.
        """
        graph = self.graph
        leaves = self._leaves(args, kwargs)
        values: list[Any] = [None] * graph.registers
        batch: Any = graph.batch
        for leaf, at, batched in zip(leaves, graph.inputs, graph.batched, strict=True):
            if at is not None:
                values[at] = leaf
            if batched:
                batch = leaf.shape[0]
        if not graph.open_batch and batch != graph.batch:
            raise ModelError(
                f"this program was exported for {graph.batch} samples and got {int(batch)}: "
                f"{graph.why_closed}; run it on {graph.batch}, or leave --export-level out"
            )
        device = next(leaf.device for leaf in leaves if isinstance(leaf, Tensor))
        fill = _Filler(self, values, batch, device)
        for step in graph.steps:
            place = step.place  # read from here by the tracer, to say where it is
            with nullcontext() if step.gradients else torch.no_grad():
                values[step.out] = step.call(
                    *[fill(a) for a in step.args], **{k: fill(v) for k, v in step.kwargs.items()}
                )
            for register in step.dead:
                values[register] = None
            del place
        return tree_unflatten([fill(x) for x in graph.outputs], graph.out_spec)

    def _leaves(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        graph = self.graph
        if set(kwargs) == set(graph.keywords):
            kwargs = {name: kwargs[name] for name in graph.keywords}
        leaves, spec = tree_flatten((args, kwargs))
        if spec != graph.in_spec:
            raise ModelError(
                f"this program was exported with arguments of the form {graph.in_spec}, and got {spec}; call "
                "it as the example inputs did"
            )
        sized = zip(leaves, graph.constants, graph.batched, graph.shapes, strict=True)
        for leaf, known, batched, shape in sized:
            if isinstance(leaf, Tensor):
                if tuple(leaf.shape[1:] if batched else leaf.shape) != shape:
                    raise ModelError(
                        f"this program was exported for inputs of {list(shape)}"
                        f"{' a sample' if batched else ''}, and got {list(leaf.shape)}; its code may hold numbers "
                        "that follow from that: export it again for other sizes"
                    )
            elif leaf != known:
                raise ModelError(
                    f"this program was exported with the argument {known!r}, and got {leaf!r}; export it again"
                )
        return leaves

    def extra_repr(self) -> str:
        """Name how long it is and what it takes."""
        samples = "any number of" if self.graph.open_batch else str(self.graph.batch)
        return f"{len(self.graph.steps)} steps, {samples} samples"


class _Filler:
    """Puts values in the places of :class:`Register` and its like, in one forward pass."""

    def __init__(
        self, program: Program, values: list[Any], batch: Any, device: torch.device
    ) -> None:
        self.values, self.batch, self.device = values, batch, device
        self.code = vars(program.code)
        self.modules: dict[str, nn.Module] = {"": program}
        self.module = program.get_submodule

    def __call__(self, what: Any) -> Any:
        kind = type(what)
        if kind is Register:
            return self.values[what.at]
        if kind is list:
            return [self(x) for x in what]
        if kind is Number:
            return self._number(what)
        if kind is Attribute:
            return getattr(self._module(what.module), what.name)
        if kind is tuple:
            return tuple(self(x) for x in what)
        if kind is Affine:
            scaled = self.batch if what.slope == 1 else self.batch * what.slope
            return scaled + what.offset if what.offset else scaled
        if kind is Training:
            return self._module(what.module).training
        if kind is Submodule:
            return self._module(what.path)
        return self.device if kind is Put else what

    def _module(self, path: str) -> nn.Module:
        found = self.modules.get(path)
        if found is None:
            found = self.modules[path] = self.module(path)
        return found

    def _number(self, what: Number) -> Any:
        held = self.code[what.name]
        value = held if what.item is None else held[what.item]
        if what.batched:
            return value.times(self.batch) if isinstance(value, Whole) else value * self.batch
        return int(value) if value < 0 else value  # -1 follows from the other sizes
