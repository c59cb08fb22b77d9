"""Which example inputs of a module are rows of a table, found by running it: never by names."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch

__all__ = ["IdRange", "watch_ids"]


@dataclasses.dataclass(frozen=True)
class IdRange:
    """Token ids that a module has.

    Attributes:
        count: Ids are 0 to `count - 1`.
        padding: One of them that stands for padding, where the table names one.
    """

    count: int
    padding: int | None = None


def watch_ids(
    module: torch.nn.Module, example: Mapping[str, torch.Tensor], call: Callable[[], Any]
) -> tuple[Any, dict[str, IdRange]]:
    """Call a module, and see which of its inputs choose rows of an embedding.

    An input is followed by its memory, so through views too, but not through arithmetic. Where
    several tables are read by one, the smallest counts.

    Args:
        module: Its `torch.nn.Embedding`s are watched.
        example: Inputs by name, no two of which share memory.
        call: Calls the module on `example`.

    Returns:
        What `call` returned, and the ids of each input that is embedded.
    """
    names = {tensor.untyped_storage().data_ptr(): name for name, tensor in example.items()}
    found: dict[str, IdRange] = {}

    def see(table: torch.nn.Module, given: tuple[Any, ...]) -> None:
        if not (isinstance(table, torch.nn.Embedding) and given):
            return
        name = names.get(given[0].untyped_storage().data_ptr())
        if name is not None and table.num_embeddings < _count(found, name):
            found[name] = IdRange(table.num_embeddings, table.padding_idx)

    tables = [part for part in module.modules() if isinstance(part, torch.nn.Embedding)]
    hooks = [table.register_forward_pre_hook(see) for table in tables]
    try:
        return call(), found
    finally:
        for hook in hooks:
            hook.remove()


def _count(found: Mapping[str, IdRange], name: str) -> float:
    return found[name].count if name in found else float("inf")
