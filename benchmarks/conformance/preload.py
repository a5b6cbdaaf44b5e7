"""Imported once by the server from which every architecture's process is forked."""

from __future__ import annotations

import importlib
import importlib.util

from conformance import ours, peer
from conformance.builders import prepare_torchvision

__all__ = ["ours", "peer"]

for _name in ("torchvision", "timm", "transformers", "torch_pruning"):
    if importlib.util.find_spec(_name) is not None:
        prepare_torchvision()
        importlib.import_module(_name)
