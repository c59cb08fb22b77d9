"""The same as `make demo` in a few lines of Python: build a model, read the evidence, generate.

    python examples/build_and_generate.py build/smollm2/model.onnx

Run `make demo`, or `optc export`, first: it makes the model and PyTorch's answers.
"""

from __future__ import annotations

import sys
from pathlib import Path

import optc


def main(model: str) -> None:
    """Build `model` with exact passes, show what they did, continue two prompts in one batch."""
    bundle = Path("build") / "example.optc"
    built = optc.build(model, "flash,kv", out=bundle)
    for row in built.rows:
        metrics = row.metrics
        print(f"{row.text}: {row.rewrites} rewrites, relative error {metrics.rel_l2:.1e},", end=" ")
        print(f"{metrics.greedy_equal} of {metrics.greedy_total} greedy tokens equal")
    print(f"evidence: {built.evidence}\n")

    prompts = ["The capital of France is", "Water boils when"]
    for prompt, text in zip(
        prompts, optc.run(bundle, prompts, max_tokens=24).completion.texts, strict=True
    ):
        print(f"{prompt}{text}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: build_and_generate.py MODEL.onnx")
    main(sys.argv[1])
