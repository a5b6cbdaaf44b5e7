"""Nothing said on the terminal while PyTorch's exporters work."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

__all__ = ["silent"]

_TALKATIVE = ("torch", "onnxscript", "onnx_ir")


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Silence the exporters: they warn about their own insides, log, and print."""
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    loggers += [
        log
        for name, log in logging.root.manager.loggerDict.items()
        if isinstance(log, logging.Logger) and name.startswith(tuple(f"{n}." for n in _TALKATIVE))
    ]
    levels = [log.level for log in loggers]
    sink = io.StringIO()
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(sink),
        contextlib.redirect_stderr(sink),
    ):
        warnings.simplefilter("ignore")
        for log in loggers:
            log.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for log, level in zip(loggers, levels, strict=True):
                log.setLevel(level)
