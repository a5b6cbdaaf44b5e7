"""The two modes that watch a network run: Python-level calls above, ATen operators below."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from mint_deploy.tracing.literals import AFTER, counted_result
from mint_deploy.tracing.rules import BEFORE
from mint_deploy.tracing.sizes import note_late

if TYPE_CHECKING:
    from mint_deploy.tracing.tracer import Tracer

__all__ = ["Calls", "Operators", "written"]


def written(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Return the tensors that an operator writes into: in place, or by ``out=``."""
    found = []
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found.append(args[i] if i < len(args) else kwargs.get(argument.name))
    return [x for x in tree_flatten(found)[0] if isinstance(x, Tensor)]


class Calls(TorchFunctionMode):
    """Sees Python-level calls with their own arguments; gives sizes their origin."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self.t = tracer

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        outer = self.t.call
        self.t.call = (name, args, kwargs)
        try:
            before = BEFORE.get(name)
            if before is not None:
                with self.t.unwatched():
                    before(self.t, args, kwargs)
            result = func(*args, **kwargs)
            if name in ("__get__", "size", "numel"):
                return counted_result(name, result) if self.t.marked else result
            note_late(self.t, name, args, kwargs, result)
            check = AFTER.get(name)
            if check is not None and args and isinstance(args[0], Tensor) and args[0] in self.t:
                with self.t.unwatched():
                    labels = self.t.labels(args[0])
                    if labels is not None:
                        check(self.t, args[0], labels, args, kwargs, result)
            return result
        finally:
            self.t.call = outer


class Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it bare
    """Sees every ATen operator and applies its rule to the labels."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it bare
        self.t = tracer

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if self.t.watching:
            self.t.operator(func, args, kwargs, out)
        return out
