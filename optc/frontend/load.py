"""Find and load SOURCE. Nothing here reaches for the network or runs code of a model folder."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import torch

from optc.core.errors import InputError, OptcError
from optc.frontend.dependencies import require
from optc.frontend.factory import load_factory
from optc.frontend.quiet import quiet
from optc.frontend.source import Source, describe_model
from optc.frontend.wrap import named_tensors

__all__ = ["load_source"]

_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.txt")


@dataclasses.dataclass(frozen=True)
class _Files:
    """A model on disk: its folder, and the GGUF file in it if it is one."""

    folder: Path
    gguf: str | None = None

    @property
    def label(self) -> str:
        return self.gguf or self.folder.resolve().name

    def arguments(self) -> dict[str, Any]:
        extra = {"gguf_file": self.gguf} if self.gguf else {}
        return {"local_files_only": True, "trust_remote_code": False, **extra}


def load_source(text: str, *, seed: int = 0) -> Source:
    """Load SOURCE.

    Args:
        text: A folder, a GGUF file or `package.module:factory`.
        seed: Seed of PyTorch while a factory runs.

    Raises:
        InputError: There is no such thing, no model in it, or it cannot be loaded.
        NotYetError: A kind of model that is not exported yet.
        MissingDependencyError: A package that this kind of source needs is missing.
    """
    path = Path(text)
    if path.is_dir():
        return _load(_in_folder(path))
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            remedy = "give a model folder, a GGUF file or package.module:factory"
            raise InputError("not a GGUF file", where=text, remedy=remedy)
        return _load(_Files(path.parent, path.name))
    if _FACTORY.fullmatch(text):
        return load_factory(text, seed=seed)
    remedy = "give a model folder, a GGUF file or package.module:factory"
    raise InputError("no such file or folder", where=text, remedy=remedy)


def _in_folder(folder: Path) -> _Files:
    if (folder / "config.json").is_file():
        return _Files(folder)
    found = sorted(p.name for p in folder.iterdir() if p.suffix.lower() == ".gguf")
    if len(found) == 1:
        return _Files(folder, found[0])
    if found:
        problem = f"it holds {len(found)} GGUF files and no config.json"
        raise InputError(problem, where=str(folder), remedy="give the path of one of them")
    problem = "no model in this folder (neither config.json nor a .gguf file)"
    raise InputError(problem, where=str(folder))


def _load(files: _Files) -> Source:
    require("transformers", *(("gguf", "accelerate") if files.gguf else ()))
    try:
        with quiet():
            tokenizer = _load_tokenizer(files)
            model, missing = _load_model(files)
    except OptcError:
        raise
    except Exception as error:
        reason = _first_line(error)
        problem = f"transformers cannot load it ({type(error).__name__}: {reason})"
        raise InputError(problem, where=files.label) from error
    source = describe_model(model, tokenizer, files.label)
    _refuse_random_weights(source, missing)
    return source


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return lines[0].rstrip(".:")


def _load_tokenizer(files: _Files) -> Any:
    """The folder's own tokenizer, else the one inside the GGUF file, else None."""
    from transformers import AutoTokenizer

    arguments = files.arguments()
    if any((files.folder / name).is_file() for name in _TOKENIZER_FILES):
        arguments.pop("gguf_file", None)
    elif files.gguf is None:
        return None
    return AutoTokenizer.from_pretrained(files.folder, **arguments)


def _load_model(files: _Files) -> tuple[Any, set[str]]:
    """The model in float32 and the names of the parameters that the files do not hold."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(files.folder, **files.arguments())
    model, info = _model_class(config, files.label).from_pretrained(
        files.folder,
        config=config,
        dtype=torch.float32,
        output_loading_info=True,
        **files.arguments(),
    )
    return model, set(info["missing_keys"])


def _model_class(config: Any, label: str) -> Any:
    """The class that the config names; a config without one (GGUF) is asked what it can be."""
    import transformers
    from transformers.models.auto import modeling_auto

    for name in config.architectures or ():
        cls = getattr(transformers, name, None)
        if cls is None:
            problem = f"its architecture '{name}' is not in transformers"
            remedy = "write a factory and give package.module:factory"
            raise InputError(problem, where=label, remedy=remedy)
        return cls
    generates = type(config) in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING
    fills_gaps = type(config) in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING
    auto = transformers.AutoModelForCausalLM if generates and not fills_gaps else None
    return auto or transformers.AutoModel


def _refuse_random_weights(source: Source, missing: set[str]) -> None:
    """Refuse a model whose outputs depend on weights that transformers had to make up."""
    made_up = [p for name, p in source.module.named_parameters() if name in missing]
    if not made_up:
        return
    names = [name for name, _ in source.module.named_parameters() if name in missing]
    with quiet(), torch.enable_grad():
        result = named_tensors(source.module(**source.example, **source.fixed))
        total = torch.stack([result[name].sum() for name in source.outputs]).sum()
        gradients = torch.autograd.grad(total, made_up, allow_unused=True)
    used = [name for name, grad in zip(names, gradients, strict=True) if grad is not None]
    if used:
        problem = f"its files lack {len(used)} weights, '{used[0]}' first"
        raise InputError(problem, where=source.label, remedy="get the complete model")
