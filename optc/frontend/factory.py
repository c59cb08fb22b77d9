"""SOURCE of the form `package.module:factory`.

The factory is called without arguments, with the working directory importable, and returns one of

* a transformers model that reads text;
* such a model and its transformers tokenizer, as a pair;
* any `torch.nn.Module` and a dict of example inputs, as a pair: tensors by the names of the
  arguments of `forward`, each axis that may vary given with a size of at least 2. Outputs are
  named by the module: a dict it returns gives the names, a single tensor is called `output`.
  Each input gets memory of its own: PyTorch's exporter makes one input of what is one tensor.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from optc.core.errors import InputError, OptcError
from optc.frontend.quiet import quiet
from optc.frontend.source import Kind, Source, describe_model
from optc.frontend.token_ids import watch_ids
from optc.frontend.wrap import named_tensors

__all__ = ["load_factory"]

_REMEDY = "return a transformers model, (model, tokenizer) or (module, example inputs by name)"


def load_factory(text: str, *, seed: int = 0) -> Source:
    """Import and call a factory; see the module's docstring for what it may return.

    Args:
        text: `package.module:factory`.
        seed: Seed of PyTorch during the call, so that random weights are the same each time.

    Raises:
        InputError: It cannot be imported, fails, or returns something else.
    """
    with (
        _working_directory_importable(),
        contextlib.redirect_stdout(sys.stderr),
        torch.random.fork_rng(devices=[]),
    ):
        torch.manual_seed(seed)
        try:
            result = _find(text)()
        except OptcError:
            raise
        except Exception as error:
            problem = f"the factory failed with {type(error).__name__}: {error}"
            raise InputError(problem, where=text) from error
    return _describe(result, text)


@contextlib.contextmanager
def _working_directory_importable() -> Iterator[None]:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _find(text: str) -> Callable[[], Any]:
    name, _, attribute = text.partition(":")
    try:
        found: Any = importlib.import_module(name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:
        problem = f"cannot be imported ({type(error).__name__}: {error})"
        raise InputError(problem, where=text) from error
    if not callable(found):
        raise InputError("it is not callable", where=text, remedy=_REMEDY)
    return found  # type: ignore[no-any-return]  # callable() cannot tell mypy the signature


def _describe(result: Any, text: str) -> Source:
    module, extra = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
    if not isinstance(module, torch.nn.Module):
        problem = f"the factory returned {type(module).__name__}, not a module"
        raise InputError(problem, where=text, remedy=_REMEDY)
    if isinstance(extra, dict):
        return _describe_module(module, extra, text)
    if not hasattr(module, "can_generate"):
        raise InputError("it has no example inputs", where=text, remedy=_REMEDY)
    return describe_model(module.float(), extra, text)


def _describe_module(module: torch.nn.Module, example: dict[str, Any], text: str) -> Source:
    wrong = [str(k) for k, v in example.items() if not isinstance(v, torch.Tensor) or v.dim() == 0]
    if wrong or not example:
        problem = f"example input '{wrong[0]}' is no tensor with axes" if wrong else "no inputs"
        raise InputError(problem, where=text, remedy=_REMEDY)
    module = module.float().eval()
    inputs = {k: _own(tensor) for k, tensor in example.items()}
    try:
        with torch.inference_mode(), quiet():
            result, ids = watch_ids(module, inputs, lambda: module(**inputs))
    except Exception as error:
        problem = f"the module fails on its example inputs ({type(error).__name__}: {error})"
        raise InputError(problem, where=text) from error
    outputs = tuple(named_tensors(result))
    if not outputs:
        raise InputError("the module returns no tensor", where=text, remedy=_REMEDY)
    return Source(text, Kind.MODULE, module, inputs, outputs, ids=ids)


def _own(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, float32 if it is floating, in memory that no other input shares."""
    copied = tensor.detach().clone()
    return copied.float() if copied.is_floating_point() else copied
