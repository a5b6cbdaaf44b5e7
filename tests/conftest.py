"""What every test may use: the nets (``from nets import build``) and the real data."""

from __future__ import annotations

import gc
import os
import signal
import sys
from pathlib import Path

import pytest

# Small networks on a shared machine: a second thread waits more than it works (before torch is loaded).
os.environ.setdefault("OMP_NUM_THREADS", "1")

# a job in the background ignores Ctrl-C, and so would the commands that tests interrupt
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # tests/nets.py, from any sub-folder of tests
sys.path.append(str(HERE.parent / "benchmarks"))  # conformance.absent, the independent crossing
sys.path.insert(1, str(HERE.parent / "benchmarks"))  # the conformance suite's reference


def pytest_collection_finish(session: pytest.Session) -> None:
    """Keep the garbage collector off what was imported: walking PyTorch took a tenth of all the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of the real images and weights; skip where it is absent."""
    given = os.environ.get("MINT_DEPLOY_DATA")
    folder = Path(given) if given else HERE.parent.parent / "shared" / "data"
    if not (folder / "cifar10" / "validation_indices.npy").is_file():
        pytest.skip(f"no real data at {folder}; MINT_DEPLOY_DATA names its folder")
    return folder
