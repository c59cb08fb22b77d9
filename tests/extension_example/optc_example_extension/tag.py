"""A pass that writes a tag into the model's metadata."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from optc.core.base import Pass, PassResult, option
from optc.core.context import Context


@dataclasses.dataclass(frozen=True)
class Tag(Pass):
    """Write `text` into the model's metadata."""

    name: ClassVar[str] = "example-tag"
    after: ClassVar[tuple[str, ...]] = ("plain",)

    text: str = option("tagged", "What to write.")

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        """Write the tag."""
        model.metadata_props["tag"] = self.text
        return PassResult(sites=(str(model.graph.name),))
