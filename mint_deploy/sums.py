"""Streaming sums over the rows that a consumer reads: what becomes its mean and covariance."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mint_deploy.artifacts import ConsumerMoments, PooledRows
from mint_deploy.errors import DataError

__all__ = ["Consumer", "Seen", "Sums", "add_up"]


@dataclass(frozen=True)
class Consumer:
    """What is known of a layer before any row is seen."""

    kind: str
    channels: int
    taps: int
    groups: int
    bias: str | None
    normalised: bool
    weight: np.ndarray


@dataclass
class Sums:
    """Streaming sums; shifted by the first batch's mean, so that little cancels."""

    of: Consumer
    shift: Tensor
    first: Tensor
    second: Tensor
    rows: int = 0

    def add(self, rows: Tensor) -> None:
        """Add rows ``[R, D]``, in double precision."""
        self.rows += len(rows)
        if (
            rows.device.type == "cpu"
        ):  # numpy sees that the product is symmetric, and halves the work
            taps = rows.numpy().astype(np.float64)
            taps -= self.shift.numpy()
            self.first.numpy()[:] += taps.sum(0)
            self.second.numpy()[:] += taps.T @ taps
            return
        wide = rows.double() - self.shift
        self.first += wide.sum(0)
        self.second.addmm_(wide.t(), wide)

    def finish(self, name: str) -> ConsumerMoments:
        """Return mean and covariance.

        Raises:
            DataError: they are not numbers.
        """
        mean = self.first / self.rows
        covariance = torch.addr(self.second / self.rows, mean, mean, alpha=-1)
        if not bool(torch.isfinite(covariance).all()):
            raise DataError(
                f"the input of '{name}' holds NaN or infinite values on the sample; check the "
                "images and the weights before it"
            )
        of = self.of
        return ConsumerMoments(
            name=name,
            kind=of.kind,
            channels=of.channels,
            taps=of.taps,
            groups=of.groups,
            bias=of.bias,
            normalised=of.normalised,
            rows=self.rows,
            mean=(mean + self.shift).cpu().numpy(),
            covariance=((covariance + covariance.t()) / 2).cpu().numpy(),
            weight=of.weight,
            sensitivity=np.zeros((len(of.weight),) * 2),
        )


def add_up(waiting: Sequence[tuple[Sums, Tensor]]) -> None:
    """Add the rows of one batch, a layer a core: each product has one thread of its own.

    Between two calls of the network, so that they and PyTorch's threads never want the same core.
    """
    by_sums: dict[int, list[tuple[Sums, Tensor]]] = {}
    for sums, rows in waiting:
        by_sums.setdefault(id(sums), []).append((sums, rows))

    def add(mine: list[tuple[Sums, Tensor]]) -> None:
        for sums, rows in mine:
            sums.add(rows)

    cores = min(len(by_sums), torch.get_num_threads())
    if cores < 2 or waiting[0][1].device.type != "cpu":
        for mine in by_sums.values():
            add(mine)
        return
    with ThreadPoolExecutor(cores) as pool:
        # the largest first, so that no core waits long for another
        large = sorted(by_sums.values(), key=lambda mine: -mine[0][1].shape[1])
        for _ in pool.map(add, large):
            pass


@dataclass
class Seen:
    """One consumer's sums, of either half of the sample or of all of it, and its pooled rows."""

    halves: tuple[Sums, ...]
    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)

    def whole(self) -> Sums:
        """Join the halves, into the first."""
        one, *others = self.halves
        for two in others:
            one.first += two.first
            one.second += two.second
            one.rows += two.rows
        return one

    def pooled(self) -> PooledRows:
        """Return the paired rows."""
        return PooledRows(
            inputs=torch.cat(self.inputs).float().cpu().numpy(),
            outputs=torch.cat(self.outputs).float().cpu().numpy(),
        )
