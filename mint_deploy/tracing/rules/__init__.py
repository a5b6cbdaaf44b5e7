"""What each ATen operator does to labels.

A rule is ``rule(t, op) -> labels of the outputs`` (or ``None`` where it wrote them itself), found by
the operator's name. Data movement runs the SAME operator on the labels: the operator is its own
index map. Element-wise operators are known by ATen's own ``pointwise`` tag. An operator without
a rule freezes everything it touches and says so.
"""

from mint_deploy.tracing.rules import indexing, layers, movement, statistics
from mint_deploy.tracing.rules.computed import compute
from mint_deploy.tracing.rules.recurrent import BEFORE
from mint_deploy.tracing.rules.table import RULES, Op, freeze_everything, pointwise

__all__ = [
    "BEFORE",
    "RULES",
    "Op",
    "compute",
    "freeze_everything",
    "indexing",
    "layers",
    "movement",
    "pointwise",
    "statistics",
]
