"""SOURCE: what is recognised, and one sentence for everything that is not."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import socket
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from optc.core.errors import InputError, MissingDependencyError, NotYetError, OptcError

pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("transformers")


def load(text: str | Path, seed: int = 0) -> Any:
    from optc.frontend.load import load_source

    return load_source(str(text), seed=seed)


def sentence(error: pytest.ExceptionInfo[OptcError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def factory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Callable[[str], str]:
    """Write a module into the working directory, say how to name its factory `make`."""

    def write(body: str) -> str:
        name = re.sub(r"\W", "_", request.node.name)
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(body))
        monkeypatch.chdir(tmp_path)
        return f"{name}:make"

    return write


def test_a_folder_with_a_model_that_generates_is_a_causal_lm(llama: Path) -> None:
    source = load(llama)
    assert source.kind.value == "causal-lm"
    assert (source.inputs, source.outputs) == (("input_ids",), ("logits",))
    assert (source.vocabulary, source.max_tokens, source.eos) == (128, 256, (0,))
    assert not source.module.training
    assert {str(p.dtype) for p in source.module.parameters()} == {"torch.float32"}
    assert source.chat_template is not None


def test_a_folder_with_a_model_that_does_not_generate_is_an_encoder(bert: Path) -> None:
    source = load(bert)
    assert source.kind.value == "encoder"
    assert source.inputs == ("input_ids", "attention_mask")
    assert source.outputs == ("last_hidden_state",)


def test_an_encoder_with_a_head_gives_its_logits(transformers: Any, tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 32}
    config = transformers.BertConfig(**sizes, num_attention_heads=2, num_labels=3)
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path)
    source = load(tmp_path)
    assert (source.kind.value, source.outputs, source.tokenizer) == ("encoder", ("logits",), None)


@pytest.mark.parametrize("as_folder", [False, True])
def test_a_gguf_file_or_the_folder_that_holds_only_it(gguf_file: Path, as_folder: bool) -> None:
    source = load(gguf_file.parent if as_folder else gguf_file)
    assert (source.kind.value, source.label, source.eos) == ("causal-lm", "tiny.gguf", (0,))
    assert source.tokenizer("the")["input_ids"] == [96, 69]  # "th", "e"
    assert {str(p.dtype) for p in source.module.parameters()} == {"torch.float32"}


def test_half_precision_files_are_loaded_in_float32(llama: Path, tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    LlamaForCausalLM.from_pretrained(llama).half().save_pretrained(tmp_path)
    assert {str(p.dtype) for p in load(tmp_path).module.parameters()} == {"torch.float32"}


def test_nothing_reaches_for_the_network(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert load(llama).tokenizer is not None


def test_a_path_that_does_not_exist() -> None:
    with pytest.raises(InputError, match="no such file or folder") as error:
        load("nowhere/at-all")
    assert "package.module:factory" in sentence(error)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no model in this folder") as error:
        load(tmp_path)
    sentence(error)


def test_a_folder_with_two_gguf_files(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(InputError, match="2 GGUF files") as error:
        load(tmp_path)
    assert "path of one of them" in sentence(error)


def test_a_file_that_is_not_gguf(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"?")
    with pytest.raises(InputError, match="not a GGUF file"):
        load(tmp_path / "model.bin")


@pytest.mark.parametrize("content", [b"", b"this is not a GGUF file at all" * 9])
def test_a_damaged_gguf_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(InputError, match="transformers cannot load it") as error:
        load(tmp_path / "model.gguf")
    sentence(error)


def test_a_config_that_is_not_json(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="transformers cannot load it") as error:
        load(tmp_path)
    sentence(error)


def test_a_folder_without_weights(llama: Path, tmp_path: Path) -> None:
    shutil.copy(llama / "config.json", tmp_path)
    with pytest.raises(InputError, match="transformers cannot load it") as error:
        load(tmp_path)
    sentence(error)


def test_an_architecture_that_transformers_does_not_have(llama: Path, tmp_path: Path) -> None:
    config = json.loads((llama / "config.json").read_text())
    config["architectures"] = ["SomebodysOwnModel"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="'SomebodysOwnModel' is not in transformers"):
        load(tmp_path)


def test_weights_that_are_missing_are_never_made_up(llama: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(llama, tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        InputError, match=r"lack 1 weights, 'model\.layers\.1\.mlp\.up_proj\.weight'"
    ):
        load(tmp_path)


def test_missing_weights_that_no_output_needs_are_accepted(bert: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(bert, tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("pooler")}
    assert len(kept) < len(weights)
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    assert load(tmp_path).outputs == ("last_hidden_state",)


def test_an_encoder_decoder_is_not_there_yet(transformers: Any, tmp_path: Path) -> None:
    config = transformers.T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    config.vocab_size = 32
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    with pytest.raises(NotYetError, match="encoder-decoder"):
        load(tmp_path)


def test_a_model_that_does_not_read_text_is_not_there_yet(
    transformers: Any, tmp_path: Path
) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = transformers.ViTConfig(**sizes, num_attention_heads=2, image_size=8, patch_size=4)
    transformers.ViTModel(config).save_pretrained(tmp_path)
    with pytest.raises(NotYetError, match="'pixel_values'"):
        load(tmp_path)


@pytest.mark.parametrize("missing", ["torch", "transformers"])
def test_what_is_not_installed_is_named_with_the_way_to_install_it(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from optc.frontend import export_model, write_reference

    find = importlib.util.find_spec
    hide: Callable[[str], Any] = lambda name: None if name == missing else find(name)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", hide)
    calls = (
        lambda: export_model("x", tmp_path / "out"),
        lambda: write_reference(tmp_path / "m.onnx", "x", tmp_path / "r.npz"),
    )
    for call in calls:
        with pytest.raises(MissingDependencyError, match=f"{missing} not installed") as error:
            call()
        assert 'pip install "optc[export]"' in sentence(error)


def test_gguf_needs_its_reader(gguf_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    hide: Callable[[str], Any] = lambda name: None if name == "gguf" else find(name)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", hide)
    with pytest.raises(MissingDependencyError, match="gguf not installed"):
        load(gguf_file)


MODULE = """
    import torch

    class Scores(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(11, 4)

        def forward(self, tokens, weights):
            return {"scores": self.table(tokens) * weights[..., None]}

    def make():
        example = {"tokens": torch.tensor([[1, 9], [4, 2]]), "weights": torch.rand(2, 2)}
        return Scores().half(), example
"""


def test_a_factory_of_a_module_with_example_inputs(factory: Callable[[str], str]) -> None:
    source = load(factory(MODULE))
    assert source.kind.value == "module"
    assert (source.inputs, source.outputs) == (("tokens", "weights"), ("scores",))
    assert source.module.table.weight.dtype.itemsize == 4


def test_a_factory_draws_the_same_weights_for_the_same_seed(factory: Callable[[str], str]) -> None:
    text = factory(MODULE)
    weights = [load(text, seed).module.table.weight for seed in (3, 3, 4)]
    assert (weights[0] == weights[1]).all()
    assert (weights[0] != weights[2]).any()


def test_a_factory_of_a_model_and_its_tokenizer(factory: Callable[[str], str], llama: Path) -> None:
    text = factory(f"""
        from transformers import AutoTokenizer, LlamaForCausalLM

        def make():
            folder = {str(llama)!r}
            return LlamaForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    """)
    source = load(text)
    assert source.kind.value == "causal-lm"
    assert source.tokenizer is not None


def test_what_a_factory_prints_stays_off_stdout(
    factory: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    load(factory(MODULE + "\n    print('hello')\n"))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("make = 3", "not callable"),
        ("import nothing_of_that_name", "cannot be imported (ModuleNotFoundError"),
        ("other = 1", "cannot be imported (AttributeError"),
        ("def make(): raise OSError('disk\\n full')", "the factory failed with OSError: disk full"),
        ("def make(): return 3", "returned int, not a module"),
        ("import torch\ndef make(): return torch.nn.ReLU()", "it has no example inputs"),
        ("import torch\ndef make(): return torch.nn.ReLU(), {}", "no inputs"),
        ("import torch\ndef make(): return torch.nn.ReLU(), {'input': 3}", "'input' is no tensor"),
        (
            "import torch\ndef make(): return torch.nn.ReLU(), {'wrong': torch.ones(2)}",
            "the module fails on its example inputs (TypeError",
        ),
    ],
)
def test_a_factory_that_is_no_good(factory: Callable[[str], str], body: str, problem: str) -> None:
    text = factory(body)
    with pytest.raises(InputError) as error:
        load(text)
    assert problem in sentence(error)
    assert text in sentence(error)


def test_a_factory_in_a_module_that_does_not_exist() -> None:
    with pytest.raises(InputError, match="cannot be imported"):
        load("no_such_package.models:make")
