"""From the graphs of ``torch.export`` to the steps of a :class:`~mint_deploy.program.Program`."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind
from torch.fx import GraphModule, Node
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_flatten

from mint_deploy.errors import ModelError
from mint_deploy.inputs import Call
from mint_deploy.program import (
    Affine,
    Attribute,
    Graph,
    Number,
    Program,
    Put,
    Register,
    Step,
    Submodule,
    Training,
    named,
    norm,
    slicing,
    with_deaths,
)
from mint_deploy.program_axes import from_front, taken_apart
from mint_deploy.program_form import form_of
from mint_deploy.tracing.place import place_of

__all__ = ["ADVICE", "Builder", "ClosedError"]

ADVICE = "leave out --export-level to cut the modules themselves"
#: where the numbers are: a child of the program that no model may have itself
CODE = "code"
_TRAINS = {"training", "train"}
#: names of the arguments whose whole numbers may count channels
_COUNTS = {
    "size", "sizes", "shape", "normalized_shape", "pad", "groups", "num_groups", "split_size",
    "split_sizes", "split_size_or_sections", "start", "end", "length",
}  # fmt: skip
_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
_OTHER_WAY = "its code takes another way with another number of samples"


class ClosedError(Exception):
    """The program cannot be one for any number of samples."""


# ---------------------------------------------------------------- modules that hold the tensors


def _tree(model: nn.Module) -> nn.Module:
    """Return a bare tree of modules with the model's own tensors; what is shared stays shared."""
    known: dict[int, nn.Module] = {}

    def bare(module: nn.Module) -> nn.Module:
        if id(module) in known:
            return known[id(module)]
        made = known[id(module)] = nn.Module()
        made._parameters.update(module._parameters)
        made._buffers.update(module._buffers)
        made._non_persistent_buffers_set.update(module._non_persistent_buffers_set)
        for name, child in module._modules.items():
            if child is not None:
                made._modules[name] = bare(child)
        return made

    return bare(model)


def _owner(tree: nn.Module, path: str) -> nn.Module:
    """Return the module at ``path``, made where it is missing."""
    for name in path.split(".") if path else ():
        if name not in tree._modules:
            tree._modules[name] = nn.Module()
        child = tree._modules[name]
        assert child is not None  # noqa: S101  # the tree holds modules alone
        tree = child
    return tree


# ---------------------------------------------------------------- reading the graph


@dataclass
class Builder:
    """Turns one exported program, or a pair of them, into a :class:`Program`."""

    model: nn.Module
    inputs: Call
    size: int
    sizes: tuple[int, ...]
    exported: list[ExportedProgram]
    why_closed: str
    registers: int = 0
    steps: list[Step] = field(default_factory=list)
    where: dict[Node, Any] = field(default_factory=dict)
    prefix: str = ""
    gradients: bool = True

    def build(self) -> Program:
        """Return the program, in evaluation mode.

        Raises:
            ClosedError: the pair differs in more than numbers that follow from the number of samples.
            ModelError: the graph holds what has no place in a program.
        """
        first = self.exported[0]
        self.tree = _tree(self.model)
        self.code = nn.Module()
        self.users: list[int | None] = []
        leaves = tree_flatten(self.inputs)[0]
        inputs = [self._input(spec) for spec in first.graph_signature.input_specs]
        outputs = self._walk([e.graph_module for e in self.exported], inputs)
        if any(s.kind != OutputKind.USER_OUTPUT for s in first.graph_signature.output_specs):
            raise ModelError(f"the exported program changes buffers as outputs; {ADVICE}")
        args, kwargs = self.inputs
        signature = inspect.signature(self.model.forward).parameters.values()
        is_open = len(self.sizes) > 1
        batched = tuple(
            isinstance(x, Tensor) and x.dim() > 0 and len(x) == self.size for x in leaves
        )
        graph = Graph(
            steps=with_deaths(self.steps, outputs),
            registers=self.registers,
            outputs=tuple(outputs),
            inputs=tuple(self.users),
            constants=tuple(None if isinstance(x, Tensor) else x for x in leaves),
            batched=batched,
            shapes=tuple(
                () if not isinstance(x, Tensor) else tuple(x.shape[1:] if has else x.shape)
                for x, has in zip(leaves, batched, strict=True)
            ),
            batch=self.sizes[0],
            open_batch=is_open,
            why_closed="" if is_open else self.why_closed,
            in_spec=tree_flatten((tuple(args), dict(kwargs)))[1],
            out_spec=first.call_spec.out_spec,
            keywords=tuple(kwargs),
            argument_names=tuple(
                p.name for p in signature if p.kind <= inspect.Parameter.POSITIONAL_OR_KEYWORD
            ),
            form=form_of(self.inputs),
        )
        program = Program(graph)
        program._parameters.update(self.tree._parameters)
        program._buffers.update(self.tree._buffers)
        program._non_persistent_buffers_set.update(self.tree._non_persistent_buffers_set)
        program._modules.update(self.tree._modules)
        if CODE in program._modules or CODE in vars(program):
            raise ModelError(
                f"the model has a child named '{CODE}', where a program keeps its numbers; rename it"
            )
        program.code = self.code
        return program.eval()

    def _new(self) -> int:
        self.registers += 1
        return self.registers - 1

    def _walk(self, modules: Sequence[GraphModule], inputs: Sequence[Any]) -> Any:
        """Read one graph, its twins beside it; return what stands for its outputs."""
        given = iter(inputs)
        outputs: Any = ()
        others = [iter(m.graph.nodes) for m in modules[1:]]
        for node in modules[0].graph.nodes:
            twins = [next(o, node) for o in others]
            if any(
                t.op != node.op or t.name != node.name or t.target != node.target for t in twins
            ):
                raise ClosedError(_OTHER_WAY)
            if node.op == "placeholder":
                self.where[node] = next(given)
            elif node.op == "call_function":
                self._call(node, twins, modules)
            elif node.op == "get_attr":
                found = operator.attrgetter(str(node.target))(modules[0])
                tensor = isinstance(found, Tensor)
                self.where[node] = self._constant(str(node.target), found) if tensor else found
            else:
                outputs = self._arguments(node.args, [t.args for t in twins])[0]
        if any(next(o, None) is not None for o in others):
            raise ClosedError(_OTHER_WAY)
        return outputs

    def _input(self, spec: Any) -> Any:
        """Return what stands for a placeholder: a parameter, a buffer, or a register."""
        if spec.kind == InputKind.USER_INPUT:
            constant = isinstance(spec.arg, ConstantArgument)
            self.users.append(None if constant else self._new())
            return spec.arg.value if constant else Register(self.registers - 1)
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            path, _, name = spec.target.rpartition(".")
            return Attribute(path, name)
        if spec.kind == InputKind.CONSTANT_TENSOR:
            return self._constant(spec.target, self.exported[0].constants[spec.target])
        raise ModelError(
            f"the exported program holds '{spec.target}', which is no tensor; {ADVICE}"
        )

    def _constant(self, target: str, value: Any) -> Attribute:
        """A tensor that the code made becomes a buffer."""
        path, _, name = target.rpartition(".")
        owner = _owner(self.tree, path)
        while hasattr(owner, name):
            name += "_"
        owner.register_buffer(name, value.detach().clone())
        return Attribute(path, name)

    # ------------------------------------------------------------ calls

    def _call(self, node: Node, twins: list[Node], modules: Sequence[GraphModule]) -> None:
        target: Any = node.target
        if isinstance(target, torch._ops.HigherOrderOperator):
            self._region(node, twins, modules)
            return
        if not isinstance(target, torch._ops.OpOverload):
            args = self._arguments(node.args, [t.args for t in twins])
            self._step(node, target, tuple(args), {})
            return
        name = target._schema.name.rpartition("::")[2]
        if name.startswith(("_assert", "sym_constrain")):
            return
        if name == "lift_fresh_copy":
            name, target = "clone", torch.ops.aten.clone.default
        schema = target._schema.arguments
        known = {a.name: a for a in schema}
        args = [
            self._argument(a, [t.args[i] for t in twins], node, schema[i])
            for i, a in enumerate(node.args)
        ]
        kwargs = {
            k: self._argument(a, [t.kwargs[k] for t in twins], node, known[k])
            for k, a in node.kwargs.items()
        }
        if name == "batch_norm":
            own = self._norm(node, args)
            if own is not None:
                self._step(node, norm, (own, args[0]), {})
                return
            args[8] = True  # cuDNN may be used; exported where there is none
        operation = slicing if name == "slice" else target
        made = operation if name == "slice" else named(name, operation)
        self._step(node, made, tuple(args), kwargs)

    def _region(self, node: Node, twins: list[Node], modules: Sequence[GraphModule]) -> None:
        """Read a part of the code under ``no_grad``, or with autocast off, in its place."""
        name = str(node.target)
        gradients = self.gradients
        if name == "wrap_with_set_grad_enabled":
            at, gradients = 1, bool(node.args[0])
        elif name == "wrap_with_autocast" and node.args[2] is False:
            at = 4
        else:
            line = place_of(node).line
            raise ModelError(
                f"the exported program holds '{name}'{f' ({line})' if line else ''}, a branch, loop or "
                f"autocast with rules of its own; {ADVICE}"
            )
        parts = [
            getattr(m, str(n.args[at].target))  # type: ignore[union-attr]  # a get_attr node
            for m, n in zip(modules, (node, *twins), strict=True)
        ]
        outer = self.prefix, self.gradients
        self.prefix, self.gradients = f"{self.prefix}{node.name}_", gradients
        try:
            self.where[node] = tuple(self._walk(parts, self._arguments(node.args[at + 1 :], [])))
        finally:
            self.prefix, self.gradients = outer

    def _step(self, node: Node, call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        out = self._new()
        self.where[node] = Register(out)
        self.steps.append(Step(call, args, kwargs, out, (), place_of(node), self.gradients))

    def _norm(self, node: Node, args: list[Any]) -> Submodule | None:
        """Return the BatchNorm module that this call is, put into the tree as one."""
        if not all(isinstance(a, Attribute) for a in args[1:5]):
            return None
        path = args[1].module
        names = ("weight", "bias", "running_mean", "running_var")
        own = dict(self.model.named_modules(remove_duplicate=False)).get(path)
        if args[1:5] != [Attribute(path, n) for n in names] or not isinstance(own, _BatchNorm):
            return None
        momentum = 0.0 if own.momentum is None else own.momentum
        if list(node.args[6:8]) != [momentum, own.eps] or not isinstance(args[5], Training):
            return None
        read: Any = node.args[0]
        kind = _NORMS.get(read.meta["val"].dim())
        holder = self.tree.get_submodule(path)
        if isinstance(holder, _BatchNorm):
            return Submodule(path) if isinstance(holder, kind or nn.Identity) else None
        if kind is None or holder._modules:
            return None
        # in place, so that a module under two names stays one
        made = kind(own.num_features, own.eps, own.momentum)
        made._parameters, made._buffers = holder._parameters, holder._buffers
        holder.__class__ = kind
        holder.__dict__.update(made.__dict__)
        return Submodule(path)

    # ------------------------------------------------------------ arguments

    def _argument(self, value: Any, twins: list[Any], node: Node, schema: Any) -> Any:
        if isinstance(value, torch.device):
            return Put()
        name = str(schema.name)
        if value is False and name in _TRAINS:
            place = place_of(node).module
            _owner(self.tree, place)
            return Training(place)
        counts = name in _COUNTS
        if counts and type(value) is int:
            value, twins = from_front(node, name, value, twins)
        if counts and (type(value) is int or _is_sizes(value)):
            return self._numbers(
                value, twins, f"{self.prefix}{node.name}_{name}", taken_apart(node, name)
            )
        return self._arguments(value, twins)

    def _numbers(self, value: Any, twins: list[Any], name: str, fixed: set[int]) -> Any:
        """Put whole numbers under ``code.<name>``; those at the places ``fixed`` are no candidates."""
        if type(value) is int:
            found = self._matched(value, twins)
            if isinstance(found, Affine) and found.offset:
                return found
            batched = isinstance(found, Affine)
            setattr(self.code, name, found.slope if isinstance(found, Affine) else value)
            return found if found == Affine(1, 0) else Number(name, None, batched)
        held, out = [], []
        for i, item in enumerate(value):
            if isinstance(item, Node):
                held.append(0)
                out.append(self.where[item])
                continue
            found = self._matched(item, [t[i] for t in twins])
            if isinstance(found, Affine):
                held.append(0 if found.offset else found.slope)
                plain = found.offset or found.slope == 1
                out.append(found if plain else Number(name, i, True))
            else:
                held.append(item)
                out.append(item if i in fixed else Number(name, i))
        setattr(self.code, name, held)
        return out

    def _matched(self, value: int, twins: list[Any]) -> int | Affine:
        """Compare a number with its twin, exported with another number of samples."""
        if not twins or twins[0] == value:
            return value
        if type(twins[0]) is not int:
            raise ClosedError(_OTHER_WAY)
        few, many = self.sizes
        slope, rest = divmod(twins[0] - value, many - few)
        if rest or type(value) is not int:
            raise ClosedError(
                f"a number in its code is {value} with {few} samples, {twins[0]} with {many}"
            )
        return Affine(slope, value - slope * few)

    def _arguments(self, value: Any, twins: list[Any]) -> Any:
        """Put registers, attributes and the batch size into an argument, whatever it holds."""
        if isinstance(value, Node):
            return self.where[value]
        if isinstance(value, (list, tuple)):
            made = [self._arguments(v, [t[i] for t in twins]) for i, v in enumerate(value)]
            return tuple(made) if isinstance(value, tuple) else made
        if isinstance(value, slice):
            return value
        if type(value) is int:
            return self._matched(value, twins)
        if any(t != value for t in twins):
            raise ClosedError(f"a value in its code is {value}, and {twins[0]} with more samples")
        return value


def _is_sizes(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(
        type(v) is int or isinstance(v, Node) for v in value
    )
