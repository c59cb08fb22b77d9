"""`export_model`: the graph, the reference answers, the files around them."""

from __future__ import annotations

import itertools
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from optc.core.context import Array
from optc.core.errors import (
    InputError,
    OutputError,
    SampleError,
    UnsupportedError,
    UsageError,
)
from optc.frontend import export_model
from optc.ir.interface import ports
from optc.ir.load import load_model
from optc.ir.reference import Reference, load_reference

pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("transformers")


@pytest.fixture(scope="module")
def exported(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_model(str(llama), tmp_path_factory.mktemp("export") / "llama").parent


@pytest.fixture(scope="module")
def reference(exported: Path) -> Reference:
    return load_reference(exported / "reference.npz")


@pytest.fixture(scope="module")
def encoder(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_model(str(bert), tmp_path_factory.mktemp("export") / "bert").parent


def run(folder: Path, feeds: dict[str, Array]) -> Any:
    return onnxruntime.InferenceSession(folder / "model.onnx").run(None, feeds)[0]


def describe(values: Any) -> list[tuple[str, str, tuple[int | str, ...]]]:
    return [(p.name, p.dtype, p.shape) for p in ports(values)]


def test_the_graph_takes_any_batch_and_any_sequence(exported: Path) -> None:
    graph = load_model(exported / "model.onnx").graph
    assert describe(graph.inputs) == [("input_ids", "int64", ("batch", "sequence"))]
    assert describe(graph.outputs) == [("logits", "float32", ("batch", "sequence", 128))]
    for shape in ((1, 1), (3, 7), (2, 200)):
        assert run(exported, {"input_ids": np.ones(shape, np.int64)}).shape == (*shape, 128)


def test_the_graph_gives_what_pytorch_gave(exported: Path, reference: Reference) -> None:
    for sample in reference.samples:
        logits = sample.outputs["logits"]
        assert logits.std() > 0.1
        np.testing.assert_allclose(run(exported, sample.inputs), logits, atol=1e-4, rtol=0)


def test_the_reference_fits_the_graph(exported: Path, reference: Reference) -> None:
    graph = load_model(exported / "model.onnx").graph
    reference.check(ports(graph.inputs), ports(graph.outputs), "here")
    assert reference.source == "pytorch"


def test_judged_samples_vary_in_length_and_one_has_two_rows(reference: Reference) -> None:
    shapes = [s.inputs["input_ids"].shape for s in reference.samples]
    assert len(shapes) == 8
    assert len({tokens for _, tokens in shapes}) >= 6
    assert all(16 <= tokens <= 48 for _, tokens in shapes)
    assert sorted(batch for batch, _ in shapes) == [1] * 7 + [2]
    assert all(s.outputs["logits"].dtype == np.float32 for s in reference.samples)


def test_calibration_shares_no_text_with_the_judged_samples(reference: Reference) -> None:
    assert len(reference.calibration) >= 16
    # paragraphs and, in between, texts that the model wrote itself
    assert [c["input_ids"].shape for c in reference.calibration] == [(1, 128)] * 32
    calibration = [c["input_ids"][0].tolist() for c in reference.calibration]
    for row in itertools.chain.from_iterable(s.inputs["input_ids"] for s in reference.samples):
        start = row[:16].tolist()
        assert not any(start == c[i : i + 16] for c in calibration for i in range(len(c)))


def test_continuations_are_the_argmax_of_the_whole_text(
    exported: Path, reference: Reference
) -> None:
    assert len(reference.prompts) == len(reference.continuations) == 8
    assert {c.size for c in reference.continuations} == {64}
    for prompt, continuation in zip(reference.prompts, reference.continuations, strict=True):
        text = np.concatenate([prompt, continuation])[None, :-1]
        likely = run(exported, {"input_ids": text})[0].argmax(-1)
        assert likely[prompt.size - 1 :].tolist() == continuation.tolist()


def test_every_second_prompt_is_a_chat(reference: Reference) -> None:
    user, model = 1, 2
    chats = [p[0] == user and p[-1] == model for p in reference.prompts]
    assert chats == [False, True] * 4


def test_the_tokenizer_comes_along_unchanged(
    exported: Path, reference: Reference, llama: Path
) -> None:
    from tokenizers import Tokenizer

    ours, theirs = (Tokenizer.from_file(str(f / "tokenizer.json")) for f in (exported, llama))
    assert ours.to_str() == theirs.to_str()
    assert (exported / "tokenizer_config.json").is_file()
    assert (exported / "chat_template.jinja").is_file()
    ends = json.loads((exported / "generation_config.json").read_text())
    assert ends == {"eos_token_id": [0]}


def test_the_configuration_comes_along_without_its_place(exported: Path, llama: Path) -> None:
    ours, theirs = (json.loads((f / "config.json").read_text()) for f in (exported, llama))
    assert ours["max_position_embeddings"] == theirs["max_position_embeddings"]
    assert str(llama.parent) not in (exported / "config.json").read_text()


def test_the_graph_says_nothing_about_this_machine(exported: Path) -> None:
    content = (exported / "model.onnx").read_bytes()
    assert b"site-packages" not in content
    assert b"optc/frontend" not in content
    assert str(exported.parent).encode() not in (exported / "reference.npz").read_bytes()


def test_weights_are_written_once(exported: Path, llama: Path) -> None:
    graph = load_model(exported / "model.onnx").graph
    weights = [v.const_value for v in graph.initializers.values() if v.const_value is not None]
    size = sum(w.nbytes for w in weights)
    assert size < 1.05 * (llama / "model.safetensors").stat().st_size


def test_opset_23_has_the_operators_of_that_opset(llama: Path, tmp_path: Path) -> None:
    path = export_model(str(llama), tmp_path / "out", opset=23)
    model = load_model(path)
    counts = Counter(node.op_type for node in model.graph)
    assert model.opset_imports[""] == 23
    assert counts["Attention"] == 2
    assert counts["RMSNormalization"] == 5
    assert describe(model.graph.inputs) == [("input_ids", "int64", ("batch", "sequence"))]
    reference = load_reference(tmp_path / "out" / "reference.npz")
    reference.check(ports(model.graph.inputs), ports(model.graph.outputs), "here")
    onnx.checker.check_model(path)


def test_an_encoder_is_asked_about_padded_rows(encoder: Path) -> None:
    reference = load_reference(encoder / "reference.npz")
    graph = load_model(encoder / "model.onnx").graph
    assert [p.name for p in ports(graph.inputs)] == ["input_ids", "attention_mask"]
    assert describe(graph.outputs) == [("last_hidden_state", "float32", ("batch", "sequence", 32))]
    reference.check(ports(graph.inputs), ports(graph.outputs), "here")
    masks = [s.inputs["attention_mask"] for s in reference.samples]
    assert [len(mask) for mask in masks] == [1, 2] * 4
    assert all((mask[0] == 1).all() for mask in masks)
    assert all(mask[1].sum() < mask[0].sum() for mask in masks[1::2])
    assert not reference.prompts
    for sample in reference.samples:
        answer = run(encoder, sample.inputs)
        np.testing.assert_allclose(answer, sample.outputs["last_hidden_state"], atol=1e-4, rtol=0)


FACTORY = """
import torch

class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(6, 3)

    def forward(self, hidden, keep):
        return {"kept": self.inner(hidden) * keep[..., None]}

def make():
    print("on the way")
    return Block(), {"hidden": torch.randn(2, 5, 6), "keep": torch.tensor([[1, 0, 1, 1, 0]] * 2)}
"""


@pytest.fixture
def block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "factory_of_block.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    return "factory_of_block:make"


def test_a_factory_module_is_exported_with_the_axes_that_turn_out_free(
    block: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    told: list[tuple[str, int, int]] = []
    path = export_model(
        block, tmp_path / "out", samples=3, progress=lambda *step: told.append(step)
    )
    printed = capfd.readouterr()
    graph = load_model(path).graph
    (_, _, hidden), (_, _, keep) = describe(graph.inputs)
    assert hidden[2] == 6
    assert hidden[:2] == keep
    assert all(isinstance(axis, str) for axis in keep)
    reference = load_reference(tmp_path / "out" / "reference.npz")
    reference.check(ports(graph.inputs), ports(graph.outputs), "here")
    assert len(reference.samples) == 3
    assert set(np.unique(reference.samples[1].inputs["keep"])) == {0, 1}
    for sample in reference.samples:
        expected = sample.outputs["kept"]
        np.testing.assert_allclose(run(path.parent, sample.inputs), expected, atol=1e-5, rtol=0)
    assert (printed.out, printed.err) == ("", "on the way\n")
    assert {what for what, _, _ in told} >= {"load the model", "export to ONNX, opset 18"}
    assert {what for what, done, total in told if done == total} == {what for what, _, _ in told}


def test_only_an_earlier_export_is_replaced_and_other_files_stay(
    block: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    before = export_model(block, out, samples=1).read_bytes()
    (out / "notes.txt").write_text("mine")
    (out / "model.onnx").write_bytes(b"old")
    export_model(block, out, samples=2)
    assert (out / "model.onnx").read_bytes() == before
    assert len(load_reference(out / "reference.npz").samples) == 2
    assert (out / "notes.txt").read_text() == "mine"
    assert leftovers(tmp_path) == []


def leftovers(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if p.name.startswith(".")]


def test_a_folder_with_something_else_is_refused(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match="no earlier export"):
        export_model(str(llama), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_way_is_refused(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(OutputError, match="a file, not a folder"):
        export_model(str(llama), tmp_path / "out")


def test_a_place_that_cannot_be_written_is_refused(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        export_model(str(llama), tmp_path / "file" / "out")


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        export_model(str(tmp_path / "nowhere"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("opset", [17, 25])
def test_an_opset_that_pytorch_does_not_write(llama: Path, tmp_path: Path, opset: int) -> None:
    with pytest.raises(UsageError, match="give one from 18 to 24"):
        export_model(str(llama), tmp_path / "out", opset=opset)


def test_no_samples_at_all(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least one judged sample"):
        export_model(str(llama), tmp_path / "out", samples=0)


def test_a_module_that_cannot_be_traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = FACTORY.replace(
        "self.inner(hidden)", "self.inner(hidden) * hidden.sum().item().__hash__()"
    )
    (tmp_path / "untraceable.py").write_text(body)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnsupportedError, match=r"cannot export it \(\w+: ") as error:
        export_model("untraceable:make", tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_text_of_the_users_own(llama: Path, tmp_path: Path) -> None:
    text = tmp_path / "mine.txt"
    text.write_text("too short")
    with pytest.raises(SampleError, match="too little text"):
        export_model(str(llama), tmp_path / "out", texts=text)
    with pytest.raises(SampleError, match="No such file"):
        export_model(str(llama), tmp_path / "out", texts=tmp_path / "none.txt")


def test_a_model_without_a_tokenizer_gets_random_tokens(llama: Path, tmp_path: Path) -> None:
    from optc.core.context import no_progress
    from optc.frontend.load import load_source
    from optc.frontend.paragraphs import load_texts
    from optc.frontend.samples import make_reference

    for name in ("config.json", "model.safetensors"):
        shutil.copy(llama / name, tmp_path)
    source = load_source(str(tmp_path))
    made = [
        make_reference(source, load_texts(), samples=2, seed=seed, progress=no_progress)
        for seed in (1, 1, 2)
    ]
    ids = [np.concatenate([*m.prompts, *m.continuations]) for m in made]
    assert ids[0].tolist() == ids[1].tolist() != ids[2].tolist()
    assert 0 <= ids[0].min() <= ids[0].max() < 128
