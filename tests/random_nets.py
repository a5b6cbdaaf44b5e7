"""Random small networks out of the pieces that real ones are made of.

A network is a list of genes ``(kind, a, b)``; ``assemble(genes)`` turns any such list into a module that runs.
Pieces on feature maps and pieces on tokens follow one another as they come: the network rearranges between them.
"""

from __future__ import annotations

import random_more  # noqa: F401  # registers its pieces
import torch
import torch.nn.functional as F
from random_pieces import KINDS as MAP_KINDS
from random_pieces import SIDE, Gene, Make, conv, width
from random_tokens import TOKEN_KINDS
from torch import Tensor, nn

KINDS: dict[str, Make] = {**MAP_KINDS, **TOKEN_KINDS}
#: wider streams (and single channels) meet a plain layer instead of the next piece, so that networks stay small
WIDEST = 24

__all__ = ["KINDS", "SIDE", "TOKEN_KINDS", "Gene", "RandomNet", "assemble"]


def as_tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2) if x.dim() == 4 else x


def as_map(x: Tensor) -> Tensor:
    if x.dim() == 4:
        return x
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], SIDE, SIDE)


class RandomNet(nn.Module):
    """Pieces in a row, an optional long skip, and a head of one of four kinds."""

    def __init__(self, genes: list[Gene], tail: int, skip: int) -> None:
        super().__init__()
        c = width(skip)
        self.stem = conv(3, c)
        widths, pieces, tokens = [c], [], []
        for kind, a, b in genes:
            kind = "plain" if not 1 < c <= WIDEST else kind
            pieces.append(KINDS[kind](c, a, b))
            tokens.append(kind in TOKEN_KINDS)
            c = pieces[-1].after[0]
            widths.append(c)
        self.pieces, self.tail, self.skip = nn.ModuleList(pieces), tail % 4, None
        self.tokens = tokens
        equal = [i for i in range(len(genes)) if widths[i] == c]
        if equal and skip % 2:
            self.skip = str(equal[skip % len(equal)])  # text: no attribute that counts
        self.hidden = nn.Linear(c * (SIDE**2 if self.tail else 1), 7)
        self.flat = str(c * SIDE**2)
        self.head = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        x = self.stem(x)
        seen = [x]
        for part, on_tokens in zip(self.pieces, self.tokens, strict=True):
            x = part(as_tokens(x) if on_tokens else as_map(x))
            seen.append(x)
        x = as_map(x)
        if self.skip is not None:
            x = x + as_map(seen[int(self.skip)])
        if self.tail == 0:
            y = x.mean((2, 3))
        elif self.tail == 1:
            y = torch.flatten(x, 1)
        elif self.tail == 2:
            y = x.contiguous().view(-1, int(self.flat))
        else:
            y = x.reshape(x.shape[0], x.shape[1] * SIDE * SIDE)
        out = self.head(F.relu(self.hidden(y)))
        return {"scores": out, "sum": y.sum()} if self.skip == "0" else out


def assemble(genes: list[Gene], *, tail: int = 0, skip: int = 0, seed: int = 0) -> RandomNet:
    """The network of these genes in eval mode, with lively BatchNorm statistics."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = RandomNet(genes, tail, skip).eval()
        for module in net.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.3)
                nn.init.normal_(module.running_mean, 0, 0.3)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
    return net.requires_grad_(requires_grad=False)
