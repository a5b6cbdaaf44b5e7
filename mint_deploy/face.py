"""A model behind one face: named tensors in, named tensors out, whatever its forward looks like.

``model(x)``, ``model(image, mask=m)`` and ``model(**batch)`` returning a tensor, a tuple or a dict
all become ``face(*tensors) -> tuple of tensors`` with names. That is what an ONNX graph has, what a
runtime takes, and what two of them can be compared by.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_flatten_with_path, tree_unflatten

from mint_deploy.errors import ModelError
from mint_deploy.inputs import as_call, random_like
from mint_deploy.parity import Arrays

__all__ = ["Face"]


class Face(nn.Module):
    """A copy of ``model`` on the CPU in eval mode, called with the tensors of ``example_inputs``.

    Values among the inputs that are no tensors are kept as constants. ``input_names`` is
    ``("input",)`` for a single tensor, else the names of forward's arguments; ``output_names`` is
    ``("logits",)`` for a single output with one entry per class, ``("output",)`` for another single
    one, else the keys of the dict or ``output_0``, ``output_1``. ``batched``: which inputs have the
    batch in front.

    Raises:
        TraceError: no tensor among the inputs.
        ModelError: the model cannot be copied, fails on the inputs, or returns no tensor.
    """

    def __init__(
        self, model: nn.Module, example_inputs: Any, class_names: Sequence[str] | None = None
    ) -> None:
        super().__init__()
        call = as_call(example_inputs)
        self._leaves, self._spec = tree_flatten(call)
        self._at = [i for i, leaf in enumerate(self._leaves) if isinstance(leaf, Tensor)]
        self.example = tuple(self._leaves[i].detach().cpu().clone() for i in self._at)
        self.input_names = _input_names(model, call)
        self.batch = next((len(x) for x in self.example if x.ndim), 1)
        self.batched = tuple(x.ndim > 0 and len(x) == self.batch for x in self.example)
        if self.batch < 1:
            raise ModelError("the example inputs hold no sample; give at least one")
        try:
            self.model = copy.deepcopy(model).cpu().eval().requires_grad_(requires_grad=False)
        except Exception as error:
            raise ModelError(f"the model cannot be copied ({error}); see copy.deepcopy") from error
        self.eval()  # the older exporter puts back the mode of the outermost module
        self.output_names = _output_names(self._result(self.example), class_names, self.input_names)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Run the model on the tensors, in the order of ``input_names``."""
        leaves = list(self._leaves)
        for position, tensor in zip(self._at, tensors, strict=True):
            leaves[position] = tensor
        args, kwargs = tree_unflatten(leaves, self._spec)
        result = self.model(*args, **kwargs)
        return tuple(x for x in tree_flatten(result)[0] if isinstance(x, Tensor))

    def _result(self, tensors: Iterable[Tensor]) -> Any:
        leaves, tensors = list(self._leaves), [tensor.clone() for tensor in tensors]
        for position, tensor in zip(self._at, tensors, strict=True):
            leaves[position] = tensor
        args, kwargs = tree_unflatten(leaves, self._spec)
        try:
            with torch.no_grad():
                return self.model(*args, **kwargs)
        except Exception as error:
            raise ModelError(
                f"the model fails on inputs of shape {_shapes(tensors)}: "
                f"{type(error).__name__}: {error}"
            ) from error

    def run(self, inputs: Arrays) -> dict[str, npt.NDArray[np.generic]]:
        """Run PyTorch on named arrays and return named arrays.

        Raises:
            ModelError: an output that is not finite.
        """
        tensors = [torch.from_numpy(np.ascontiguousarray(inputs[n])) for n in self.input_names]
        found = [x for x in tree_flatten(self._result(tensors))[0] if isinstance(x, Tensor)]
        out = {}
        for name, value in zip(self.output_names, found, strict=True):
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise ModelError(
                    f"the model's output '{name}' is not finite; "
                    "look for NaN in its weights or inputs"
                )
            out[name] = value.numpy()
        return out

    def sized(self, batch: int) -> tuple[Tensor, ...]:
        """Return the example's tensors with ``batch`` samples, repeated or cut as needed."""
        rows = torch.arange(batch) % self.batch
        return tuple(
            x[rows].contiguous() if has else x
            for x, has in zip(self.example, self.batched, strict=True)
        )

    def arrays(self, tensors: Iterable[Tensor]) -> dict[str, npt.NDArray[np.generic]]:
        """Return tensors, in the order of ``input_names``, as named arrays."""
        pairs = zip(self.input_names, tensors, strict=True)
        return {name: x.detach().cpu().numpy() for name, x in pairs}

    def noise(self, batch: int, seed: int) -> dict[str, npt.NDArray[np.generic]]:
        """Return ``batch`` samples of normal noise (whole numbers stay those of the example)."""
        drawn, _ = random_like((self.sized(batch), {}), seed)
        return self.arrays(drawn)

    def samples(self, inputs: Any) -> dict[str, npt.NDArray[np.generic]]:
        """Return inputs of the example's form, with any number of samples, as named arrays.

        Raises:
            ModelError: they have another form, or other shapes behind the batch.
        """
        found = [x for x in tree_flatten(as_call(inputs))[0] if isinstance(x, Tensor)]
        fits = len(found) == len(self.example) and all(
            a.dtype == b.dtype
            and (a.shape[1:] if has else a.shape) == (b.shape[1:] if has else b.shape)
            for a, b, has in zip(found, self.example, self.batched, strict=True)
        )
        if not fits:
            here, wanted = _shapes(found), _shapes(self.example)
            raise ModelError(f"samples of shape {here} do not fit example inputs of shape {wanted}")
        return self.arrays(found)


def _shapes(tensors: Iterable[Tensor]) -> str:
    return ", ".join(str(tuple(x.shape)) for x in tensors)


# ---------------------------------------------------------------- names


def _word(path: Iterable[Any], root: str) -> str:
    """Return a pytree path as a name: keys and attributes as they are, positions as numbers."""
    parts = [root] if root else []
    for key in path:
        value = next(getattr(key, a) for a in ("key", "name", "idx") if hasattr(key, a))
        parts.append(re.sub(r"\W", "_", str(value)))
    return "_".join(parts)


def _distinct(names: Iterable[str], taken: Iterable[str] = ()) -> tuple[str, ...]:
    used, out = set(taken), []
    for name in names:
        stem, count = name, 1
        while name in used:
            count += 1
            name = f"{stem}_{count}"
        used.add(name)
        out.append(name)
    return tuple(out)


def _input_names(model: nn.Module, call: tuple[tuple[Any, ...], dict[str, Any]]) -> tuple[str, ...]:
    paths: list[Any] = [
        path for path, leaf in tree_flatten_with_path(call)[0] if isinstance(leaf, Tensor)
    ]
    if len(paths) == 1:
        return ("input",)
    known = getattr(model, "argument_names", None) or [
        p.name
        for p in inspect.signature(model.forward).parameters.values()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    words = []
    for side, first, *rest in paths:
        if side.idx == 1:
            words.append(_word((first, *rest), ""))
        else:
            named = known[first.idx] if first.idx < len(known) else f"input_{first.idx}"
            words.append(_word(rest, named))
    return _distinct(words)


def _output_names(
    result: Any, class_names: Sequence[str] | None, taken: Sequence[str]
) -> tuple[str, ...]:
    found = [(p, x) for p, x in tree_flatten_with_path(result)[0] if isinstance(x, Tensor)]
    if not found:
        raise ModelError(
            f"the model returns no tensor (found {type(result).__name__}); "
            "return tensors, or a tuple, list or dict of them"
        )
    if len(found) == 1:
        value = found[0][1]
        classes = value.ndim == 2 and class_names is not None and value.shape[1] == len(class_names)
        return ("logits" if classes else "output",)
    words = []
    for path, _ in found:
        positional = hasattr(path[0], "idx")
        words.append(_word(path, "output" if positional else ""))
    return _distinct(words, taken)
