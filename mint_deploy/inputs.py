"""Example inputs in one shape: a tensor, a tuple of arguments, or a dict of keyword arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only

from mint_deploy.artifacts import TensorSpec
from mint_deploy.errors import TraceError

__all__ = [
    "as_call",
    "call",
    "cast",
    "in_dtype",
    "not_nan",
    "outputs_of",
    "random_like",
    "specs_of",
]

Call = tuple[tuple[Any, ...], dict[str, Any]]


def as_call(example_inputs: Any) -> Call:
    """Return ``(args, kwargs)`` for ``model(*args, **kwargs)``.

    Raises:
        TraceError: no tensor among the inputs, none with a value, or a meta or quantised one.
    """
    if isinstance(example_inputs, Mapping):
        made: Call = ((), dict(example_inputs))
    elif isinstance(example_inputs, (tuple, list)):
        made = (tuple(example_inputs), {})
    else:
        made = ((example_inputs,), {})
    tensors = [x for x in tree_flatten(made)[0] if isinstance(x, Tensor)]
    if not tensors:
        raise TraceError(
            f"example inputs hold no tensor (found {type(example_inputs).__name__}); give a tensor, "
            "a tuple of arguments or a dict of keyword arguments"
        )
    for x in tensors:
        if x.is_meta or x.is_quantized:
            what = "meta" if x.is_meta else "quantised"
            raise TraceError(f"example inputs hold a {what} tensor; give real values in float")
    if not any(x.numel() for x in tensors):
        shapes = ", ".join(str(list(x.shape)) for x in tensors)
        raise TraceError(f"example inputs hold no sample (shapes {shapes}); give one or two")
    return made


def cast(inputs: Call, dtype: torch.dtype) -> Call:
    """Return the inputs on the CPU with floating tensors in ``dtype``, where the gate runs."""
    changed: Call = tree_map_only(Tensor, lambda x: in_dtype(x, dtype), inputs)
    return changed


def in_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``x`` on the CPU: in ``dtype`` if it is floating, of that precision if complex."""
    if x.is_complex():
        return x.to("cpu", dtype.to_complex())
    return x.to("cpu", dtype if x.is_floating_point() else x.dtype)


def random_like(inputs: Call, seed: int) -> Call:
    """Return fresh normal noise in the place of floating inputs (others stay as they are)."""
    generator = torch.Generator().manual_seed(seed)

    def draw(x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x.clone()
        noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        return noise.to(x.dtype).to(x.device)

    drawn: Call = tree_map_only(Tensor, draw, inputs)
    return drawn


def call(model: nn.Module, inputs: Call) -> Any:
    """Run the model in evaluation mode without gradients, on copies of the inputs."""
    args, kwargs = tree_map_only(Tensor, torch.clone, inputs)
    with torch.no_grad():
        return model(*args, **kwargs)


def outputs_of(result: Any) -> list[Tensor]:
    """Return the floating tensors of a model's result, in a fixed order.

    Complex ones come as pairs of real numbers.

    Raises:
        TraceError: there is none.
    """
    tensors = [x for x in tree_flatten(result)[0] if isinstance(x, Tensor)]
    found = [torch.view_as_real(x) if x.is_complex() else x for x in tensors]
    found = [x for x in found if x.is_floating_point()]
    if not found:
        what = ", ".join(str(x.dtype) for x in tensors) or type(result).__name__
        raise TraceError(
            f"the model returns no floating tensor (found {what}), so no cut of it could be checked; "
            "return tensors (scores rather than their argmax), or a tuple, list or dict of them"
        )
    return found


def not_nan(outputs: list[Tensor]) -> list[Tensor]:
    """Return the outputs of an uncut model, checked.

    Raises:
        TraceError: there is NaN among them.
    """
    if any(bool(x.isnan().any()) for x in outputs):
        raise TraceError(
            "the uncut model returns NaN on the example inputs, so no cut of it could be checked; look "
            "for NaN among its weights, or give other inputs"
        )
    return outputs


def specs_of(inputs: Call) -> tuple[TensorSpec, ...]:
    """Describe the tensors among the inputs."""
    args, kwargs = inputs
    named = [(f"input{i}" if i else "input", x) for i, x in enumerate(args)] + list(kwargs.items())
    return tuple(
        TensorSpec(name=name, shape=tuple(x.shape), dtype=str(x.dtype).removeprefix("torch."))
        for name, x in named
        if isinstance(x, Tensor)
    )
