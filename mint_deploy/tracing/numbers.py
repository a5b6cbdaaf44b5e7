"""Whole numbers that remember where they came from.

PyTorch's operators see only values: ``view(b, 2, c // 2, h, w)`` and ``view(b, 2, 32, h, w)`` are
the same call to ATen, but after a cut the first one adapts and the second one breaks. So while the
tracer runs, shapes and the whole numbers in module attributes are :class:`Whole`: an ``int`` for
everybody else, with its origin for us. Arithmetic on a shape stays a shape; arithmetic in which an
attribute takes part is *computed*: it follows where that attribute is rewritten, which is assumed
and then probed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Whole", "attribute_of", "from_shape", "is_computed", "is_literal"]

SHAPE, ATTRIBUTE, COMPUTED = "shape", "attribute", "computed"


class Whole(int):
    """An ``int`` with an origin: ``"shape"``, ``"attribute"`` (with its path) or ``"computed"``."""

    origin: str
    path: str
    #: what stands at ``path`` times this is the number
    samples: int = 1

    def __new__(cls, value: int, origin: str = SHAPE, path: str = "") -> Self:
        """Make one from a plain int."""
        made = super().__new__(cls, value)
        made.origin, made.path = origin, path
        return made

    def times(self, samples: int) -> Whole:
        """Return so many of this number, which can still be rewritten: heads of all samples."""
        made = Whole(int(self) * int(samples), self.origin, self.path)
        made.samples = int(samples)
        return made

    def __neg__(self) -> Whole:
        return Whole(-int(self), SHAPE if self.origin == SHAPE else COMPUTED, self.path)

    def __deepcopy__(self, memo: dict[int, Any]) -> Whole:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return int, (int(self),)


def _combined(a: Any, b: Any) -> str:
    origins = {x.origin for x in (a, b) if isinstance(x, Whole)}
    return SHAPE if origins == {SHAPE} else COMPUTED


def _operation(name: str) -> Any:
    plain = getattr(int, name)

    def operate(self: Whole, other: Any) -> Any:
        result = plain(self, other)
        if isinstance(result, int) and not isinstance(result, bool):
            return Whole(result, _combined(self, other), self.path)
        return result

    return operate


for _name in ("add", "sub", "mul", "floordiv", "mod"):
    setattr(Whole, f"__{_name}__", _operation(f"__{_name}__"))
    setattr(Whole, f"__r{_name}__", _operation(f"__r{_name}__"))


def attribute_of(value: object) -> str | None:
    """Return the path of the module attribute that ``value`` is, unchanged; else ``None``."""
    return value.path if isinstance(value, Whole) and value.origin == ATTRIBUTE else None


def from_shape(value: object) -> bool:
    """Whether ``value`` follows from the shape of an activation (``-1`` does, too)."""
    if isinstance(value, Whole):
        return value.origin == SHAPE
    return value == -1


def is_computed(value: object) -> bool:
    """Whether ``value`` was computed in the forward pass with a module's attribute."""
    return isinstance(value, Whole) and value.origin == COMPUTED


def is_literal(value: object) -> bool:
    """Whether ``value`` is a number that nothing can adapt: written in the code."""
    return not isinstance(value, Whole) and value != -1
