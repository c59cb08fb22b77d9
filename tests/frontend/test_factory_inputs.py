"""Inputs of a factory: each is an input of its own, read, and judged on more than the example."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from optc.core.errors import InputError
from optc.frontend import export_model
from optc.ir.reference import load_reference

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("transformers")

DOCS = Path(__file__).resolve().parents[2] / "docs" / "kv-encoder-decoder.md"
Factory = Callable[[str], str]


@pytest.fixture
def factory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Factory:
    """Write a module into the working directory, say how to name its factory `make`."""

    def write(body: str, name: str = "make") -> str:
        module = re.sub(r"\W", "_", f"inputs_{request.node.name}")
        (tmp_path / f"{module}.py").write_text("import torch\n" + textwrap.dedent(body))
        monkeypatch.chdir(tmp_path)
        return f"{module}:{name}"

    return write


def answer(folder: Path, feeds: dict[str, np.ndarray]) -> Any:
    return onnxruntime.InferenceSession(folder / "model.onnx").run(None, feeds)[0]


DIFFERENCE = """
    class Difference(torch.nn.Module):
        def forward(self, a, b):
            return {"y": 2.0 * a - b}

    def make():
        one = torch.rand(2, 3)
        return Difference(), {"a": one, "b": SECOND}
"""


@pytest.mark.parametrize("second", ["one", "one[:]", "one.view(2, 3)", "one.detach()"])
def test_inputs_that_share_memory_stay_apart(factory: Factory, second: str, tmp_path: Path) -> None:
    source = factory(DIFFERENCE.replace("SECOND", second))
    folder = export_model(source, tmp_path / "out", samples=1).parent
    a, b = np.ones((2, 3), np.float32), np.full((2, 3), 5, np.float32)
    np.testing.assert_allclose(answer(folder, {"a": a, "b": b}), 2 * a - b)


def test_the_factory_of_the_documentation_is_the_model_it_says(
    factory: Factory, transformers: Any, tmp_path: Path
) -> None:
    config = transformers.T5Config(
        vocab_size=128, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4,
        decoder_start_token_id=0, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.T5ForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path / "path" / "to" / "t5")
    blocks = re.findall(r"```python\n(.*?)^```$", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    body = next(block for block in blocks if "def t5" in block)
    folder = export_model(factory(body, "t5"), tmp_path / "t5", samples=3).parent
    rng = np.random.default_rng(0)
    feeds = {
        "input_ids": rng.integers(1, 128, (2, 9)),
        "attention_mask": np.array([[1] * 9, [1] * 4 + [0] * 5]),
        "decoder_input_ids": rng.integers(1, 128, (2, 6)),
    }
    with torch.inference_mode():
        told = model(**{name: torch.from_numpy(a) for name, a in feeds.items()}).logits.numpy()
    np.testing.assert_allclose(answer(folder, feeds), told, atol=1e-4)


EMBEDDED = """
    class Embedded(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(ROWS, 4, padding_idx=0)

        def forward(self, words, weight):
            return {"y": self.table(words.view(-1)).view(*words.shape, 4) * weight[..., None]}

    def make():
        ones = torch.ones(2, 5, dtype=torch.int64)
        return Embedded(), {"words": ones, "weight": ones}
"""


def test_ids_are_drawn_from_the_whole_table_but_for_padding(
    factory: Factory, tmp_path: Path
) -> None:
    said: list[str] = []
    source = factory(EMBEDDED.replace("ROWS", "40"))
    folder = export_model(source, tmp_path / "out", samples=8, log=said.append).parent
    drawn = np.stack([s.inputs["words"] for s in load_reference(folder / "reference.npz").samples])
    assert drawn.min() >= 1
    assert 30 < drawn.max() < 40
    assert len(np.unique(drawn)) > 20
    assert said == ["the input 'weight' is 1 everywhere in the example, and in every sample"]


UNREAD = """
    class Unread(torch.nn.Module):
        def forward(self, a, mask):
            return {"y": RESULT}

    def make():
        return Unread(), {"a": torch.rand(2, 3), "mask": torch.rand(2, 4)}
"""


def test_an_input_that_the_graph_does_not_read_is_refused(factory: Factory, tmp_path: Path) -> None:
    source = factory(UNREAD.replace("RESULT", "a * 2"))
    with pytest.raises(InputError, match="does not read the input 'mask', though it was given"):
        export_model(source, tmp_path / "out", samples=1)
    assert not (tmp_path / "out").exists()


def test_an_input_of_which_only_the_shape_is_read_is_named(
    factory: Factory, tmp_path: Path
) -> None:
    said: list[str] = []
    source = factory(UNREAD.replace("RESULT", "a[:, :, None] + torch.arange(mask.shape[1])"))
    export_model(source, tmp_path / "out", samples=1, log=said.append)
    assert said == ["of the input 'mask' the graph reads nothing but the shape"]
