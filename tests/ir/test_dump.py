from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from optc.core.base import Pass, PassResult
from optc.core.context import Context
from optc.core.errors import OutputError
from optc.core.pipeline import Pipeline
from optc.ir.dump import DumpHook
from optc.ir.load import load_model


class First(Pass):
    name = "first"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        model.graph.node("only").op_type = self.name.title()
        return PassResult(sites=("y",))


class Second(First):
    name = "second"


@pytest.fixture
def model() -> ir.Model:
    return ir.from_onnx_text(
        '<ir_version: 11, opset_import: ["": 24]> g (float[n] x) => (float[n] y) '
        "{ [only] y = Neg(x) }"
    )


def test_each_step_has_a_folder_with_the_graph_as_it_was_then(
    model: ir.Model, tmp_path: Path
) -> None:
    folder = tmp_path / "new" / "dump"
    Pipeline((First(), Second())).run(model, Context(), [DumpHook(folder)])
    names = ["00-input", "01-first", "02-second"]
    assert sorted(entry.name for entry in folder.iterdir()) == names
    found = [load_model(folder / name / "model.onnx").graph.node("only").op_type for name in names]
    assert found == ["Neg", "First", "Second"]


def test_a_place_that_cannot_be_written_is_one_sentence(model: ir.Model, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot be written"):
        DumpHook(tmp_path / "file").start(model)
