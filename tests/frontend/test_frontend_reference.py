"""`write_reference`: PyTorch's answers in the words of a graph that came from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from optc.core.errors import ModelFileError, NotYetError, OutputError, SampleError
from optc.frontend import write_reference
from optc.ir.interface import ports
from optc.ir.reference import Reference, load_reference

pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("transformers")


def graph(folder: Path, inputs: str, outputs: str) -> Path:
    """A graph with that signature; what it computes does not matter here."""
    results = "".join(f"  {out.split()[-1]} = Zeros()\n" for out in outputs.split("; "))
    text = f"""<ir_version: 10, opset_import: ["": 21, "test": 1]>
main ({inputs.replace("; ", ", ")}) => ({outputs.replace("; ", ", ")}) {{
{results.replace("Zeros", "test.Zeros")}}}"""
    path = folder / "model.onnx"
    ir.save(ir.from_onnx_text(text), path)
    return path


def answers(path: Path, source: Path, **options: Any) -> Reference:
    out = write_reference(path, str(source), path.with_name("reference.npz"), **options)
    reference = load_reference(out)
    model = ir.load(path)
    reference.check(ports(model.graph.inputs), ports(model.graph.outputs), "here")
    return reference


def test_our_own_names(llama: Path, tmp_path: Path) -> None:
    path = graph(tmp_path, "int64[B,S] input_ids", "float[B,S,128] logits")
    reference = answers(path, llama)
    assert (len(reference.samples), len(reference.prompts)) == (8, 8)
    # 16 paragraphs, and as many texts that the model wrote itself
    assert (reference.source, len(reference.calibration)) == ("pytorch", 32)


def test_the_only_input_and_the_only_output_may_be_called_anything(
    llama: Path, tmp_path: Path
) -> None:
    ours = answers(graph(tmp_path, "int64[B,S] input_ids", "float[B,S,128] logits"), llama)
    path = graph(tmp_path, "int64[B,S] tokens", "float[B,S,128] linear_14")
    for mine, theirs in zip(ours.samples, answers(path, llama).samples, strict=True):
        assert (mine.inputs["input_ids"] == theirs.inputs["tokens"]).all()
        assert (mine.outputs["logits"] == theirs.outputs["linear_14"]).all()


def test_mask_and_positions_are_given_where_the_graph_wants_them(
    llama: Path, tmp_path: Path
) -> None:
    inputs = "int32[B,S] input_ids; int64[B,S] attention_mask; int64[B,S] position_ids"
    reference = answers(graph(tmp_path, inputs, "float[B,S,128] logits"), llama, samples=2)
    for sample in reference.samples:
        ids = sample.inputs["input_ids"]
        assert ids.dtype == np.int32
        assert (sample.inputs["attention_mask"] == 1).all()
        assert (sample.inputs["position_ids"] == np.arange(ids.shape[1])).all()


def test_an_encoder_with_more_than_one_output(bert: Path, tmp_path: Path) -> None:
    inputs = "int64[B,S] input_ids; int64[B,S] attention_mask; int64[B,S] token_type_ids"
    outputs = "float[B,S,32] last_hidden_state; float[B,32] pooler_output"
    reference = answers(graph(tmp_path, inputs, outputs), bert, samples=2)
    assert reference.samples[1].inputs["attention_mask"].min() == 0
    assert reference.samples[1].outputs["pooler_output"].shape == (2, 32)


def test_fixed_axes_are_filled_exactly(llama: Path, bert: Path, tmp_path: Path) -> None:
    path = graph(tmp_path, "int64[1,24] input_ids", "float[1,24,128] logits")
    reference = answers(path, llama)
    assert {s.inputs["input_ids"].shape for s in reference.samples} == {(1, 24)}
    inputs = "int64[2,24] input_ids; int64[2,24] attention_mask"
    reference = answers(graph(tmp_path, inputs, "float[2,24,32] out"), bert, samples=2)
    assert reference.samples[0].inputs["attention_mask"].sum(axis=1).tolist() == [24, 16]


FACTORY = """
import torch

class Sum(torch.nn.Module):
    def forward(self, left, right):
        return left + right, left - right

def make():
    return Sum(), {"left": torch.rand(2, 3), "right": torch.rand(2, 3)}
"""


def test_a_module_is_paired_by_position_where_names_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "factory_of_sum.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    path = graph(tmp_path, "float[N,3] a; float16[N,3] b", "float[N,3] sum; float[N,3] diff")
    reference = answers(path, Path("factory_of_sum:make"), samples=2)
    for sample in reference.samples:
        a, b = sample.inputs["a"], sample.inputs["b"].astype(np.float32)
        np.testing.assert_array_equal(sample.outputs["sum"], a + b)
        np.testing.assert_array_equal(sample.outputs["diff"], a - b)


def test_the_same_seed_gives_the_same_bytes(llama: Path, tmp_path: Path) -> None:
    path = graph(tmp_path, "int64[B,S] input_ids", "float[B,S,128] logits")
    files = [write_reference(path, str(llama), tmp_path / name, samples=2) for name in "ab"]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_text_of_the_users_own(llama: Path, tmp_path: Path) -> None:
    path = graph(tmp_path, "int64[B,S] input_ids", "float[B,S,128] logits")
    text = tmp_path / "mine.txt"
    text.write_text("\n\n".join(f"paragraph {i} says that " + "a b c d e " * 40 for i in "xyz"))
    reference = answers(path, llama, texts=text, samples=2)
    assert len(reference.samples) == 2
    assert 2 <= len(reference.calibration) < 16
    with pytest.raises(SampleError, match="fewer --samples") as error:
        answers(path, llama, texts=text, samples=9)
    assert "mine.txt" in str(error.value)


@pytest.mark.parametrize(
    ("inputs", "outputs", "problem"),
    [
        ("int64[B,S] input_ids; float[B,S] image", "float[B,S,128] logits", "input 'image'"),
        (
            "int64[B,S] input_ids",
            "float[B,S,128] logits; float[B] value",
            "output 'value' is none of the source's",
        ),
        ("int64[B,S] attention_mask", "float[B,S,128] logits", "no input 'input_ids'"),
        ("int64[B,S] input_ids", "float[B,S,777] logits", "does not fit this graph"),
    ],
)
def test_a_source_that_does_not_fit_the_graph(
    llama: Path, tmp_path: Path, inputs: str, outputs: str, problem: str
) -> None:
    path = graph(tmp_path, inputs, outputs)
    with pytest.raises(SampleError) as error:
        write_reference(path, str(llama), tmp_path / "reference.npz", samples=1)
    assert problem in str(error.value)
    assert "\n" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_a_graph_with_a_cache_is_not_there_yet(llama: Path, tmp_path: Path) -> None:
    inputs = "int64[B,S] input_ids; int64[B] cache_lengths"
    path = graph(tmp_path, inputs, "float[B,S,128] logits")
    with pytest.raises(NotYetError, match="cache"):
        write_reference(path, str(llama), tmp_path / "reference.npz")


def test_a_model_file_that_is_missing(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="no such file"):
        write_reference(tmp_path / "none.onnx", str(llama), tmp_path / "reference.npz")


def test_a_place_that_cannot_be_written(llama: Path, tmp_path: Path) -> None:
    path = graph(tmp_path, "int64[B,S] input_ids", "float[B,S,128] logits")
    with pytest.raises(OutputError, match="cannot be written"):
        write_reference(path, str(llama), tmp_path / "no" / "reference.npz", samples=1)
