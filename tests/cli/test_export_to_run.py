"""From PyTorch to text, a command at a time, with a tiny Llama of random weights."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")

ROOT = Path(__file__).resolve().parents[2]
FACTORY = """
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

def make():
    config = LlamaConfig(
        vocab_size=257, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, eos_token_id=256, bos_token_id=None,
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_file="tiny/tokenizer.json", eos_token="<end>")
    return LlamaForCausalLM(config), tokenizer
"""


def optc(here: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "optc.cli.main", *arguments],
        cwd=here,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_command_of_the_readme_in_its_order(here: Path) -> None:
    (here / "factory.py").write_text(FACTORY)
    assert optc(here, "export", "factory:make", "-o", "out") == "wrote out/model.onnx\n"
    built = optc(here, "build", "out/model.onnx", "--passes", "kv,flash")
    assert "evidence: against PyTorch, engine run" in built
    assert "against PyTorch" in optc(here, "verify", "out.optc")
    text = optc(here, "run", "out.optc", "--prompt", "hello", "--max-tokens", "8")
    assert text
    (here / "out" / "reference.npz").unlink()
    told = optc(here, "reference", "out/model.onnx", "--from", "factory:make")
    assert told == "wrote out/reference.npz\n"
    assert "against PyTorch" in optc(here, "build", "out/model.onnx", "--passes", "flash")
