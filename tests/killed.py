"""Runs a small demo and dies at given places: ``killed.py FOLDER PLACE SIGNAL [PLACE SIGNAL ...]``.

PLACE is ``STAGE:after`` (all its files are written, the manifest does not know yet) or
``STAGE:N`` (at its N-th step), or ``-`` for none. Each takes up what the one before left. The demo trains
for three epochs of a few steps on a third of its images, so that its training and its recovery are killed between
two checkpoints.

Each is a process of its own, a fork of this one, which has loaded PyTorch and done nothing with it.
A JSON list says how each ended: ``returncode`` as that of subprocess, ``stdout``, ``stderr``.
"""

import json
import os
import signal
import sys
import tempfile

import numpy as np
import sklearn.datasets
import sklearn.utils
import torch._dynamo  # noqa: F401  two seconds in every process otherwise: the first optimiser loads it

from mint_deploy import pipeline, progress, steps
from mint_deploy.errors import Interrupted
from mint_deploy.settings import Request


class Deadly(progress.Progress):
    """Dies at the N-th step of one stage."""

    def __init__(self, stage: str, when: str, number: int) -> None:
        super().__init__()
        self.at, self.number, self.left = (stage, when), number, -1

    def _begin(self, name: str, title: str) -> None:
        stage, when = self.at
        self.left = int(when) if name == stage and when.isdigit() else -1

    def _step(self, done: float, total: float, note: str) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.number)


def few_digits() -> None:
    """Give the demo 620 of its 1,797 images: epochs of a few steps."""
    whole = sklearn.datasets.load_digits()
    part = {name: np.asarray(whole[name])[:620] for name in ("images", "target")}
    sklearn.datasets.load_digits = lambda: sklearn.utils.Bunch(**part)


def live(folder: str, place: str, number: int) -> int:
    stage, _, when = place.partition(":")
    steps.DEMO_EPOCHS = 3.0
    few_digits()
    if when == "after":
        whole = getattr(steps, stage)

        def deadly(job: steps.Job) -> None:
            whole(job)
            os.kill(os.getpid(), number)

        setattr(steps, stage, deadly)
    request = Request(out=folder, images=200, epochs=3.0, workers=1, seed=5)
    try:
        pipeline.run(request, resume=True, until="recover", progress=Deadly(stage, when, number))
    except Interrupted as error:
        print(error)
        return error.exit_code
    return 0


def main(folder: str, *pairs: str) -> None:
    ends = []
    for place, name in zip(pairs[::2], pairs[1::2], strict=True):
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            child = os.fork()
            if child == 0:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                code = 70
                try:
                    code = live(folder, place, getattr(signal, name))
                finally:
                    sys.stdout.flush()
                    sys.excepthook(*sys.exc_info()) if sys.exc_info()[0] else None
                    sys.stderr.flush()
                    os._exit(code)
            _, status = os.waitpid(child, 0)
            texts = []
            for stream in (out, err):
                stream.seek(0)
                texts.append(stream.read())
        end = {"place": place, "returncode": os.waitstatus_to_exitcode(status)}
        ends.append({**end, "stdout": texts[0], "stderr": texts[1]})
    print(json.dumps(ends))


if __name__ == "__main__":
    main(*sys.argv[1:])
