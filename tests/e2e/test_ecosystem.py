"""SmolLM2-135M-Instruct on other runtimes: the text that `optc run` writes, from text."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from ecosystem_runs import ask, greedy, needs_environment, optc

from optc.runtime.tokenizer import Tokenizer, load_tokenizer

pytestmark = [pytest.mark.e2e, pytest.mark.ecosystem, needs_environment]
PROMPTS = ["Gravity is", "The three most important rules for writing clear documentation are"]
CHAT, NEW = "What is a café?", 32
TEXTS = [*PROMPTS, "  naïve — 東京 🙂\n\tdef f(x): return x**2"]


@pytest.fixture(scope="module")
def bundle(smollm2_18: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In float32, with a cache."""
    out = tmp_path_factory.mktemp("ecosystem") / "smollm2.optc"
    optc(out.parent, "build", smollm2_18, "--passes", "flash,kv", "-o", out)
    return out


@pytest.fixture(scope="module")
def tokenizer(bundle: Path) -> Tokenizer:
    return load_tokenizer(bundle / "tokenizer")


@pytest.fixture(scope="module")
def wanted(bundle: Path) -> list[list[int]]:
    return greedy(bundle, PROMPTS, NEW)


@pytest.fixture(scope="module", params=["optimum", "genai"])
def answer(request: pytest.FixtureRequest, bundle: Path, tokenizer: Tokenizer) -> dict[str, Any]:
    """What each runtime says."""
    folder = bundle.with_suffix(f".{request.param}")
    optc(bundle.parent, "package", bundle, "--for", request.param, "-o", folder)
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    said = ask(request.param, folder, prompts=prompts, new=NEW, texts=TEXTS, chat=CHAT)
    shutil.rmtree(folder)
    return said


def test_the_tokens_are_those_of_optc_run(wanted: list[list[int]], answer: dict[str, Any]) -> None:
    assert answer["alone"] == wanted
    assert answer["batch"] == wanted


def test_text_becomes_the_same_tokens(tokenizer: Tokenizer, answer: dict[str, Any]) -> None:
    assert answer["tokenizer"]["ids"] == [tokenizer.encode(text) for text in TEXTS]


def test_a_conversation_becomes_the_same_tokens(
    tokenizer: Tokenizer, answer: dict[str, Any]
) -> None:
    chat = tokenizer.encode_chat([{"role": "user", "content": CHAT}])
    assert answer["tokenizer"]["chat"] == chat
