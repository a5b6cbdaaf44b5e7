"""What runners of PyTorch change while they are open, and put back when the last of them is closed.

The thread count belongs to the process; mode and layout belong to a module that several runners may
have open at once. So each change is counted: the first who comes makes it, the last who goes undoes
it, whatever their order; who wants something else than those before is refused. No torch at module
level: the callers hand it over.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from mint_deploy.errors import ConfigError

__all__ = ["HOLD", "Hold"]


class Hold:
    """Counted changes: key -> how many hold it, what they want, how to undo it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[object, tuple[int, object, Callable[[], None]]] = {}

    def threads(self, torch: Any, count: int) -> contextlib.AbstractContextManager[None]:
        """Hold the process at ``count`` compute threads."""

        def change(_: object) -> Callable[[], None]:
            before = torch.get_num_threads()
            torch.set_num_threads(count)
            return lambda: torch.set_num_threads(before)

        said = "PyTorch has one thread count for the whole process"
        return self._each({"threads": torch}, count, change, said)

    def evaluation(self, module: Any) -> contextlib.AbstractContextManager[None]:
        """Hold a module and all inside of it in evaluation mode."""

        def change(part: Any) -> Callable[[], None]:
            before = part.training
            part.training = False
            return lambda: setattr(part, "training", before)

        parts = {("mode", id(part)): part for part in module.modules()}
        return self._each(parts, False, change, "")

    def layout(
        self, torch: Any, module: Any, *, channels_last: bool
    ) -> contextlib.AbstractContextManager[None]:
        """Hold a module's images of weights, ``[K, C, H, W]``, in one layout or in their own."""

        def change(weight: Any) -> Callable[[], None]:
            before = weight.data.stride()
            if channels_last:
                weight.data = weight.data.contiguous(memory_format=torch.channels_last)

            def undo() -> None:  # in the old layout, the values of now
                if weight.data.stride() != before:
                    old = torch.empty_strided(
                        weight.shape, before, dtype=weight.dtype, device=weight.device
                    )
                    weight.data = old.copy_(weight.data)

            return undo

        weights = {("layout", id(w)): w for w in module.parameters() if w.ndim == 4}
        said = "a module has one memory format"
        return self._each(weights, channels_last, change, said)

    @contextlib.contextmanager
    def _each(
        self,
        things: dict[Any, Any],
        wish: object,
        change: Callable[[Any], Callable[[], None]],
        said: str,
    ) -> Iterator[None]:
        taken: list[object] = []
        try:
            with self._lock:
                for key, thing in things.items():
                    count, held, undo = self._held.get(key, (0, wish, None))
                    if held != wish:
                        raise ConfigError(
                            f"{said}: a runner that is open has {held}, and this one asks for "
                            f"{wish}; close the other first"
                        )
                    self._held[key] = (count + 1, wish, undo or change(thing))
                    taken.append(key)
            yield
        finally:
            with self._lock:
                for key in reversed(taken):
                    count, held, undo = self._held.pop(key)
                    if count > 1:
                        self._held[key] = (count - 1, held, undo)
                    else:
                        undo()


#: of this process
HOLD = Hold()
