"""From losses to a ranking, for criteria that judge every unit once."""

from __future__ import annotations

import numpy as np

from mint_deploy.artifacts import Floats, GroupImportance
from mint_deploy.errors import ModelError

__all__ = ["ranked"]


def ranked(group: str, loss: Floats) -> GroupImportance:
    """Rank units by ``loss [units]``, least first; of equals the lower number first.

    Raises:
        ModelError: a loss is not a number, because a weight is none.
    """
    if not np.isfinite(loss).all():
        unit = int(np.flatnonzero(~np.isfinite(loss))[0])
        raise ModelError(
            f"unit {unit} of group '{group}' has the score {loss[unit]}, so the weights around it hold "
            "NaN, infinite or huge values; expected numbers: check how the weights were made and loaded"
        )
    return GroupImportance(loss=loss, order=np.argsort(loss, kind="stable"))
