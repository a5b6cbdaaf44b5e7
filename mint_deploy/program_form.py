"""The form of example inputs as a line of text, to export a model again from nothing but its run folder."""

from __future__ import annotations

import json
import math
from typing import Any

import torch
from torch import Tensor

from mint_deploy.errors import DataError
from mint_deploy.inputs import Call

__all__ = ["example_of", "form_of"]

#: more elements than this are no example, but a damaged file
LARGEST = 1 << 28


def form_of(inputs: Call) -> str:
    """Return the shapes and dtypes of inputs as JSON; none where they are nested, and have no such form."""
    args, kwargs = inputs

    def told(value: Any) -> Any:
        if isinstance(value, Tensor):
            return {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
        if value is None or isinstance(value, (bool, int, float, str)):
            return {"value": value}
        return {}

    body = {"args": [told(x) for x in args], "kwargs": {k: told(x) for k, x in kwargs.items()}}
    if {} in (*body["args"], *body["kwargs"].values()):  # type: ignore[attr-defined]  # a list, a dict
        return ""
    return json.dumps(body, separators=(",", ":"))


def example_of(form: str) -> tuple[Any, ...] | dict[str, Any]:
    """Return example inputs of a form that :func:`form_of` told: seeded noise, zeros for whole numbers.

    Raises:
        DataError: it is not such a form.
    """
    generator = torch.Generator().manual_seed(0)

    def made(entry: Any) -> Any:
        if "value" in entry:
            return entry["value"]
        shape = [int(n) for n in entry["shape"]]
        dtype = getattr(torch, entry["dtype"])
        if (
            not isinstance(dtype, torch.dtype)
            or math.prod(shape) > LARGEST
            or min(shape, default=1) < 1
        ):
            raise ValueError(f"{entry}")
        if not dtype.is_floating_point:
            return torch.zeros(shape, dtype=dtype)
        return torch.randn(shape, generator=generator).to(dtype)

    try:
        body = json.loads(form)
        args = tuple(made(x) for x in body["args"])
        return args or {str(k): made(x) for k, x in body["kwargs"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{form[:80]!r} is no description of example inputs ({error}); the file is damaged"
        ) from error
