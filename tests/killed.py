"""Runs a small demo in this process and dies at a given place: ``killed.py FOLDER PLACE SIGNAL``.

PLACE is ``STAGE:after`` (all its files are written, the manifest does not know yet) or
``STAGE:N`` (at its N-th step), or ``-`` for none. The demo trains for three epochs, so that its
training and its recovery are killed between two checkpoints.
"""

import os
import signal
import sys

from mint_deploy import pipeline, progress, steps
from mint_deploy.errors import Interrupted
from mint_deploy.settings import Request

folder, place, name = sys.argv[1:]
stage, _, when = place.partition(":")
number = getattr(signal, name)


def die() -> None:
    os.kill(os.getpid(), number)


class Deadly(progress.Progress):
    """Dies at the N-th step of one stage."""

    def __init__(self) -> None:
        super().__init__()
        self.left = -1

    def _begin(self, name: str, title: str) -> None:
        self.left = int(when) if name == stage and when.isdigit() else -1

    def _step(self, done: float, total: float, note: str) -> None:
        self.left -= 1
        if self.left == 0:
            die()


steps.DEMO_EPOCHS = 3.0
steps.BENCH_S, steps.RESTARTS = 1.0, 2  # what is asked here is not how fast it is
if when == "after":
    done = getattr(steps, stage)

    def deadly(job: steps.Job) -> None:
        done(job)
        die()

    setattr(steps, stage, deadly)
request = Request(out=folder, images=200, epochs=3.0, workers=1, seed=5)
try:
    pipeline.run(request, resume=True, until="recover", progress=Deadly())
except Interrupted as error:
    print(error)
    sys.exit(error.exit_code)
