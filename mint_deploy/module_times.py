"""Where the time goes in a PyTorch module: hooks around each module without children.

The hooks cost a microsecond or so a module, so this is a run of its own, never the one that latencies are taken
from. Functions between the modules (``F.relu``, additions) are not seen.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from mint_deploy.artifacts import LayerTime
from mint_deploy.errors import ConfigError, ModelError
from mint_deploy.layer_times import CALLS

__all__ = ["module_times"]


def module_times(
    model: torch.nn.Module,
    example_inputs: tuple[torch.Tensor, ...],
    *,
    calls: int = CALLS,
    threads: int = 1,
    limit_s: float = 5.0,
) -> tuple[LayerTime, ...]:
    """Return the median time of each module without children, in the order in which they are first called.

    A module that is called several times a pass has a row for each (``relu``, ``relu (2)``). On a GPU each module
    is waited for, which a real pass does not do.

    Args:
        model: left as it is; run in evaluation mode.
        example_inputs: its arguments, ``[N, ...]`` each.
        calls: passes that are watched; one more warms up.
        threads: compute threads of PyTorch meanwhile.
        limit_s: seconds for the watched passes; at least one is made.

    Raises:
        ConfigError: ``calls`` or ``threads`` below 1.
        ModelError: the model has no modules inside.
    """
    if calls < 1 or threads < 1:
        raise ConfigError(f"calls is {calls} and threads {threads}, expected 1 or more")
    leaves = {n: m for n, m in model.named_modules() if n and not any(m.children())}
    if not leaves:
        raise ModelError("the model has no modules inside, so there are no layers to time")
    gpu = any(t.is_cuda for t in (*model.parameters(), *example_inputs))
    watch = _Watch(gpu)
    with _evaluation(model, threads), watch.on(leaves), torch.inference_mode():
        watch.one_pass(model, example_inputs)
        watch.taken.clear()
        end = time.monotonic() + limit_s
        for _ in range(calls):
            watch.one_pass(model, example_inputs)
            if time.monotonic() > end:
                break
    return tuple(
        LayerTime(
            name=name if k == 1 else f"{name} ({k})",
            op=type(leaves[name]).__name__,
            ns=float(statistics.median(ns)),
            calls=len(ns),
            layer=name if isinstance(getattr(leaves[name], "weight", None), torch.Tensor) else None,
            width=_width(leaves[name]),
        )
        for (name, k), ns in watch.taken.items()
    )


class _Watch:
    """The hooks and what they saw: (module, which call of the pass) -> nanoseconds, one a pass."""

    def __init__(self, gpu: bool) -> None:
        self.taken: dict[tuple[str, int], list[int]] = {}
        self._gpu, self._begun = gpu, 0
        self._counts: dict[str, int] = {}

    def one_pass(self, model: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        """Run the model once."""
        self._counts.clear()
        model(*inputs)

    def _clock(self) -> int:
        if self._gpu:
            torch.cuda.synchronize()
        return time.perf_counter_ns()

    def _before(self, *_: object) -> None:
        self._begun = self._clock()

    def _after(self, name: str) -> Any:
        def hook(*_: object) -> None:
            ns = self._clock() - self._begun
            count = self._counts[name] = self._counts.get(name, 0) + 1
            self.taken.setdefault((name, count), []).append(ns)

        return hook

    @contextmanager
    def on(self, leaves: dict[str, torch.nn.Module]) -> Iterator[None]:
        """Hook every module, and take the hooks off again."""
        handles: list[Any] = []
        try:
            for name, module in leaves.items():
                # ours is the last before and the first after: hooks of others are not counted
                handles.append(module.register_forward_pre_hook(self._before))
                handles.append(module.register_forward_hook(self._after(name), prepend=True))
            yield
        finally:
            for handle in handles:
                handle.remove()


@contextmanager
def _evaluation(model: torch.nn.Module, threads: int) -> Iterator[None]:
    """Evaluation mode and ``threads`` threads; both are put back."""
    was, training = torch.get_num_threads(), [m for m in model.modules() if m.training]
    try:
        torch.set_num_threads(threads)
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True
        torch.set_num_threads(was)


def _width(module: torch.nn.Module) -> int | None:
    """Return the output channels of a module; None where it has none to speak of."""
    for name in ("out_channels", "out_features", "num_features", "num_channels"):
        value = getattr(module, name, None)
        if isinstance(value, int):
            return value
    weight = getattr(module, "weight", None)
    return int(weight.shape[0]) if isinstance(weight, torch.Tensor) and weight.dim() else None
