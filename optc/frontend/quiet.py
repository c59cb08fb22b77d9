"""Keep what PyTorch and transformers say to their own developers off the user's terminal."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

__all__ = ["quiet"]

_TALKATIVE = ("torch", "torch.onnx", "transformers", "onnxscript")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Swallow prints, progress bars, warnings and log lines of the libraries inside the block.

    What matters in them reaches the user otherwise: a failure as an exception, a weight that the
    files do not hold as an error of the loader, a wrong opset as a check of the exported graph.
    Loggers that the user configured below these (`TORCH_LOGS`) keep their own level.
    """
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    levels = [logger.level for logger in loggers]
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
