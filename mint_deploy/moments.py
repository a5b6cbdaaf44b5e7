"""One pass over unlabelled images: second moments of what every consumer really reads.

A consumer (Conv, Linear) sees its input channels as *taps*: ``k x k`` neighbouring values around an output
position. At random output positions of every image the taps are gathered and their first and second
moments accumulated in float64. Scores, plan and repair all follow from these (``method.md`` in the design).
The first images are also run backwards (:mod:`mint_deploy.sensitivity`), in the same pass.

The images are taken in two halves, whose moments are kept apart until the end: what a plan made of one
half would keep and the other would not is what the sample leaves open (:mod:`mint_deploy.agreement`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from mint_deploy.agreement import agreement
from mint_deploy.artifacts import ConsumerMoments, Floats, Moments
from mint_deploy.blas import few_threads
from mint_deploy.errors import DataError
from mint_deploy.feed import Feed, as_feed
from mint_deploy.graph import Graph
from mint_deploy.inference import evaluating
from mint_deploy.inputs import Call
from mint_deploy.moments_file import read_moments, write_moments
from mint_deploy.sensitivity import Backwards
from mint_deploy.sums import Consumer, Seen, Sums, add_up
from mint_deploy.taps import Draw, Read, layer_call, reading

__all__ = ["EVIDENCE", "ROWS_PER_TAP", "read_moments", "sample", "write_moments"]

#: what can be gathered; the first two always serve plan and repair
EVIDENCE = ("moments", "sensitivity", "pooled", "gradients")
#: rows asked for of the first :data:`IMAGES` images, per dimension of the taps (with less than 5, covariances
#: are shrunk); further images give as many each
ROWS_PER_TAP, IMAGES = 8, 1000
LEAST_ROWS = 4096
#: numbers in a batch of samples that is run forwards, and of one that is also run backwards
FORWARD, BACKWARD = 1 << 22, 1 << 20
#: covariances up to so many bytes are kept for both halves too
HALVES_BYTES = 1 << 28


def sample(
    model: nn.Module,
    graph: Graph,
    data: Any,
    *,
    images: int = 1000,
    evidence: Sequence[str] = ("moments", "sensitivity"),
    sensitivity_images: int = 128,
    settle: float | None = None,
    seed: int = 0,
    batch: int = 100,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Moments:
    """Accumulate the moments of every layer that reads a prunable group.

    Args:
        model: the dense model that was traced.
        graph: its graph.
        data: anything :func:`mint_deploy.data.as_part` takes, or what :mod:`mint_deploy.feed` lists for
            networks of several inputs; class-balanced where it has labels.
        images: how many samples to look at, at the most.
        evidence: of :data:`EVIDENCE`; ``pooled`` adds paired spatial means, ``gradients`` the gradient of the
            labelled loss. Moments are always gathered.
        sensitivity_images: how many of them are also run backwards; more cost time and, on ResNet-56, gained
            nothing (``benchmarks/scoring_hypotheses.py``).
        settle: stop before all images are seen once the halves agree so far on which units stay (0 to 1;
            see :mod:`mint_deploy.agreement`), looked at after 1,000, 2,000, 4,000, ... images. None: never.
        seed: of the choice of images and positions.
        batch: images per forward pass, at the most (fewer where they are large).
        device: where to run.
        progress: called with ``(images done, images)``.

    ``settings`` of the result say how far the halves agree and why sampling stopped. A network that autograd
    cannot run backwards is sampled without sensitivities, and the settings say why.

    Raises:
        DataError: no images, no labels for gradients, or activations that are not numbers (the layer is named).
    """
    unknown = sorted(set(evidence) - set(EVIDENCE))
    if unknown:
        raise DataError(
            f"evidence '{unknown[0]}' is not known; expected some of {', '.join(EVIDENCE)}"
        )
    feed = as_feed(data)
    if not len(feed):
        raise DataError("no images to sample; give at least a few dozen")
    if "gradients" in evidence and feed.labels is None:
        raise DataError(
            f"gradients of the loss need labels, and '{feed.name}' has none; give (x, y), or choose a "
            "criterion that works without (mint, magnitude, thinet)"
        )
    chosen = feed.balanced(min(images, len(feed)), seed)
    backwards = 0
    if "sensitivity" in evidence:
        backwards = min(sensitivity_images, len(chosen))
    if "gradients" in evidence:
        backwards = len(chosen)
    pass_ = _Pass(model, graph, chosen, seed, batch, device, progress, "pooled" in evidence)
    why = "run" if backwards else "not asked for"
    try:
        return pass_.run(backwards, "gradients" in evidence, settle, why)
    except RuntimeError as error:  # autograd refuses it, or its memory does not suffice
        if not backwards or "gradients" in evidence:
            raise
        why = f"not run: {str(error).splitlines()[0]}"
    pass_ = _Pass(model, graph, chosen, seed, batch, device, progress, "pooled" in evidence)
    return pass_.run(0, False, settle, why)


@dataclass
class _Pass:
    """One pass over the chosen images."""

    model: nn.Module
    graph: Graph
    chosen: Feed
    seed: int
    batch: int
    device: str
    progress: Callable[[int, int], None] | None
    pooled: bool

    def run(self, backwards: int, gradients: bool, settle: float | None, why: str) -> Moments:
        """See the images, the first ``backwards`` of them in both directions."""
        chosen, graph = self.chosen, self.graph
        readers = {c for g in graph.groups.values() for c in g.consumers}
        small = sum(8 * _dimension(graph, c) ** 2 for c in readers) <= HALVES_BYTES
        looks = settle is not None and len(chosen) > IMAGES
        collector = _Collector(
            self.model,
            graph,
            readers,
            total=len(chosen),
            seed=self.seed,
            pooled=self.pooled,
            parts=2 if small or looks else 1,
        )
        names = {i: n for i, n in collector.names.items() if n in readers}
        watch = Backwards(self.model, names, seed=self.seed, gradients=gradients)
        done, stopped, agreed = 0, "all images seen", {}
        check = IMAGES
        with evaluating(self.model, self.device) as place, few_threads():
            for (args, kwargs), y in self._batches(backwards):
                call: Call = tree_map_only(Tensor, lambda x: x.to(place), (args, kwargs))
                if done < backwards:
                    with collector:
                        watch.step(call, None if y is None else y.to(place))
                else:
                    with collector, torch.no_grad():
                        self.model(*call[0], **call[1])
                done += _count(call)
                collector.turn(_count(call))
                if self.progress is not None:
                    self.progress(done, len(chosen))
                if looks and check <= done < len(chosen) and done >= backwards:
                    check = 2 * done
                    share = agreement(graph, *self._halves(collector, watch))
                    agreed = {"agreement": share, "agreement_images": done}
                    if settle is not None and share >= settle:
                        stopped = f"the halves agree on {share:.0%} of the units"
                        break
        settings = {
            "batch": self.batch,
            "rows_per_tap": ROWS_PER_TAP,
            "backwards": why,
            "stopped": stopped,
            **agreed,
        }
        return self._finish(collector, watch, done, settings, keep=small)

    def _batches(self, backwards: int) -> Iterator[tuple[Call, Tensor | None]]:
        size = max(1, self.chosen.elements)
        small = max(1, min(32, BACKWARD // size))
        large = max(1, min(self.batch, FORWARD // size))
        yield from self.chosen.subset(np.arange(backwards)).batches(small)
        yield from self.chosen.subset(np.arange(backwards, len(self.chosen))).batches(large)

    def _halves(self, collector: _Collector, watch: Backwards) -> list[Moments]:
        felt = watch.felt()
        return [
            Moments(
                consumers={
                    name: _with_sensitivity(sums.finish(name), felt.get(name))
                    for name, both in collector.found.items()
                    if (sums := both.halves[half]).rows
                },
                images=collector.images[half],
                seed=self.seed,
                dataset=self.chosen.name,
            )
            for half in (0, 1)
        ]

    def _finish(
        self,
        collector: _Collector,
        watch: Backwards,
        done: int,
        settings: dict[str, Any],
        *,
        keep: bool,
    ) -> Moments:
        felt = watch.felt()
        halves = tuple(self._halves(collector, watch)) if keep and all(collector.images) else ()
        pooled = {n: s.pooled() for n, s in collector.found.items()} if self.pooled else {}
        whole = {}
        for name in list(collector.found):  # one by one: sums and moments never lie side by side
            sums = collector.found.pop(name)
            whole[name] = _with_sensitivity(sums.whole().finish(name), felt.get(name))
        return Moments(
            consumers=whole,
            images=done,
            seed=self.seed,
            dataset=self.chosen.name,
            settings=settings,
            pooled=pooled,
            gradients=watch.gradients(done),
            halves=halves,
        )


def _dimension(graph: Graph, name: str) -> int:
    """Return how many taps a consumer reads, at the most."""
    shape, layer = graph.shapes[name], graph.layers[name]
    return layer.groups * math.prod(shape) // max(1, shape[layer.out_dim])


def _count(call: Call) -> int:
    return len(next(x for x in (*call[0], *call[1].values()) if isinstance(x, Tensor)))


def _with_sensitivity(c: ConsumerMoments, felt: Floats | None) -> ConsumerMoments:
    """Attach what is felt at the outputs; a transposed kernel shares it among its positions."""
    if felt is None:
        return c
    positions = len(c.weight) // len(felt)
    if positions > 1:
        felt = np.kron(felt, np.eye(positions)) / positions
    return dataclasses.replace(c, sensitivity=felt)


class _Collector(TorchFunctionMode):
    """Watches calls of convolution and linear, whichever module or function makes them."""

    def __init__(
        self,
        model: nn.Module,
        graph: Graph,
        readers: Iterable[str],
        *,
        total: int,
        seed: int,
        pooled: bool,
        parts: int,
    ) -> None:
        super().__init__()
        own: Mapping[str, nn.Parameter] = dict(model.named_parameters())
        wanted = set(readers)
        self.names = {id(own[n]): n for n in graph.tensors if n in wanted and n in own}
        self.layers = graph.layers
        self.total = max(1, min(total, IMAGES))
        self.draw = Draw(seed)
        self.found: dict[str, Seen] = {}
        self.waiting: list[tuple[Sums, Tensor]] = []
        self.half, self.images = 0, [0, 0]
        self.with_means, self.parts = pooled, parts

    def turn(self, images: int) -> None:
        """Count a batch and add its rows up; the next one belongs to the other half."""
        add_up(self.waiting)
        self.waiting.clear()
        self.draw.turn()
        self.images[self.half] += images
        self.half = 1 - self.half

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        weight = layer_call(func, args, kwargs)
        name = None if weight is None else self.names.get(id(weight))
        if weight is None or name is None:
            return func(*args, **kwargs)
        with torch.no_grad():
            read = reading(func, weight, args, kwargs, self.layers[name].groups)
            means = read.inputs() if read is not None and self.with_means else None
            if read is not None:
                self._see(name, read)
        result = func(*args, **kwargs)
        if read is not None and means is not None:
            self.found[name].inputs.append(means)
            self.found[name].outputs.append(read.outputs(result.detach()))
        return result

    def _see(self, name: str, read: Read) -> None:
        layer = self.layers[name]
        dimension = read.channels * read.taps
        wanted = max(ROWS_PER_TAP * dimension, LEAST_ROWS)
        per_image = math.ceil(wanted / self.total / max(1, layer.calls))
        rows = read.rows(per_image, self.draw).detach()
        if name not in self.found:
            of = Consumer(
                layer.kind,
                read.channels,
                read.taps,
                layer.groups,
                layer.bias,
                layer.normalised,
                read.weight.detach().float().cpu().numpy(),
            )
            shift = rows.double().mean(0)
            sums = tuple(
                Sums(of, shift, torch.zeros_like(shift), shift.new_zeros((len(shift),) * 2))
                for _ in range(self.parts)
            )
            self.found[name] = Seen(sums)
        self.waiting.append((self.found[name].halves[self.half % self.parts], rows))
