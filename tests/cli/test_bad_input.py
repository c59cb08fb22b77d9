"""Bad input: one sentence on stderr, the documented exit code, nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from optc.ir.reference import Reference, Sample, save_reference

ROOT = Path(__file__).resolve().parents[2]
MODEL = "tiny/model.onnx"


def no_model(here: Path) -> list[str]:
    return ["missing.onnx", "--passes", "flash,kv"]


def folder(here: Path) -> list[str]:
    return ["tiny", "--passes", "flash,kv"]


def not_onnx(here: Path) -> list[str]:
    (here / "noise.onnx").write_bytes(b"\x89PNG\r\n\x1a\n" * 50)
    return ["noise.onnx", "--passes", "flash,kv"]


def empty(here: Path) -> list[str]:
    (here / "empty.onnx").write_bytes(b"")
    return ["empty.onnx", "--passes", "flash,kv"]


def truncated_data(here: Path) -> list[str]:
    data = here / "tiny" / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-9000])
    return [MODEL, "--passes", "flash,kv"]


def missing_data(here: Path) -> list[str]:
    (here / "tiny" / "model.onnx.data").unlink()
    return [MODEL, "--passes", "flash,kv"]


def unknown_pass(here: Path) -> list[str]:
    return [MODEL, "--passes", "flsh,kv"]


def planned_pass(here: Path) -> list[str]:
    return [MODEL, "--passes", "flash,spec"]


def unknown_option(here: Path) -> list[str]:
    return [MODEL, "--passes", "flash,kv:maxx=3"]


def wrong_option_type(here: Path) -> list[str]:
    return [MODEL, "--passes", "flash,kv:max=many"]


def no_passes(here: Path) -> list[str]:
    return [MODEL, "--passes", ""]


def nameless_output(here: Path) -> list[str]:
    return [MODEL, "--passes", "flash", "-o", ""]


def output_here(here: Path) -> list[str]:
    return [MODEL, "--passes", "flash", "-o", "."]


def unknown_target(here: Path) -> list[str]:
    return [MODEL, "--passes", "flash", "--target", "otr"]


def planned_target(here: Path) -> list[str]:
    return [MODEL, "--passes", "flash", "--target", "tensorrt"]


def architectures_for_cpu(here: Path) -> list[str]:
    return [MODEL, "--passes", "flash", "--sm", "86,89"]


def architectures_in_words(here: Path) -> list[str]:
    return [MODEL, "--passes", "flash", "--sm", "ada"]


def draft(here: Path) -> list[str]:
    return [MODEL, "--passes", "flash", "--draft", "draft.onnx"]


def reference(here: Path, name: str, shape: tuple[int, ...]) -> list[str]:
    inputs = {name: np.ones(shape, np.int64)}
    outputs = {"logits": np.ones((*shape[:2], 257), np.float32)}
    made = Reference("pytorch", (Sample(inputs, outputs),))
    save_reference(made, here / "tiny" / "reference.npz")
    return [MODEL, "--passes", "flash,kv"]


def reference_names(here: Path) -> list[str]:
    return reference(here, "tokens", (1, 4))


def reference_shapes(here: Path) -> list[str]:
    return reference(here, "input_ids", (1, 4, 1))


def reference_damaged(here: Path) -> list[str]:
    (here / "tiny" / "reference.npz").write_bytes(b"PK\x03\x04 no more")
    return [MODEL, "--passes", "flash,kv"]


def reference_missing(here: Path) -> list[str]:
    return [MODEL, "--passes", "flash,kv", "--reference", "no.npz"]


def calibration_missing(here: Path) -> list[str]:
    return [MODEL, "--passes", "flash,kv", "--calibration", "no.npz"]


def no_attention(here: Path) -> list[str]:
    text = (
        '<ir_version: 8, opset_import: ["": 18]>\nm (float[N,2] x) => (float[N,2] y) {y = Relu(x)}'
    )
    ir.save(ir.from_onnx_text(text), here / "relu.onnx")
    return ["relu.onnx", "--passes", "flash"]


def output_below_a_file(here: Path) -> list[str]:
    (here / "file").write_text("")
    return [MODEL, "--passes", "flash,kv", "-o", "file/out.optc"]


def output_nowhere(here: Path) -> list[str]:
    return [MODEL, "--passes", "flash,kv", "-o", "/proc/out.optc"]


def output_is_something_else(here: Path) -> list[str]:
    (here / "out.optc").mkdir()
    (here / "out.optc" / "thesis.txt").write_text("")
    return [MODEL, "--passes", "flash,kv", "-o", "out.optc"]


def output_name(here: Path) -> list[str]:
    return [MODEL, "--passes", "flash,kv", "-o", "out"]


def dump_below_a_file(here: Path) -> list[str]:
    (here / "file").write_text("")
    return [MODEL, "--passes", "flash,kv", "--dump-dir", "file/dumps"]


def policy_key(here: Path) -> list[str]:
    (here / "policy.toml").write_text("[exact]\nrel_l3 = 1\n")
    return [MODEL, "--passes", "flash,kv", "--policy", "policy.toml"]


def policy_missing(here: Path) -> list[str]:
    return [MODEL, "--passes", "flash,kv", "--policy", "policy.toml"]


def unknown_flag(here: Path) -> list[str]:
    return [MODEL, "--pases", "flash"]


BUILD = [
    (no_model, 2, "missing.onnx: no such file"),
    (folder, 2, "tiny: is a folder, not a file"),
    (not_onnx, 2, "noise.onnx: not an ONNX model"),
    (empty, 2, "empty.onnx: not an ONNX model"),
    (truncated_data, 2, "'model.onnx.data' is truncated"),
    (missing_data, 2, "'model.onnx.data' is missing"),
    (unknown_pass, 2, "no pass 'flsh'; did you mean 'flash'?"),
    (planned_pass, 3, "'spec'"),
    (unknown_option, 2, "no option 'maxx'; did you mean 'max'?"),
    (wrong_option_type, 2, "kv:max: 'many' is not a whole number"),
    (no_passes, 2, "no pass is named"),
    (nameless_output, 2, "names no bundle; write NAME.optc"),
    (output_here, 2, "'.' names no bundle; write NAME.optc"),
    (unknown_target, 2, "no target 'otr'; did you mean 'ort'?"),
    (planned_target, 3, "'tensorrt'"),
    (architectures_for_cpu, 2, "--sm: the target 'ort'"),
    (architectures_in_words, 2, "'ada' is not a list of whole numbers"),
    (draft, 3, "--draft: speculation"),
    (reference_names, 2, "its inputs are ['tokens'], the model's are ['input_ids']"),
    (reference_shapes, 2, "has shape [1, 4, 1], the model's is"),
    (reference_damaged, 2, "reference.npz"),
    (reference_missing, 2, "no.npz: no such file"),
    (calibration_missing, 2, "no.npz: no such file"),
    (no_attention, 3, "pass 'flash': nothing was rewritten"),
    (output_below_a_file, 2, "file/out.optc: cannot be written"),
    (output_nowhere, 2, "/proc/out.optc: cannot be written"),
    (output_is_something_else, 2, "is there already"),
    (output_name, 2, "ends in '.optc'"),
    (dump_below_a_file, 2, "file/dumps: cannot be written"),
    (policy_key, 2, "[exact] has no key 'rel_l3'; did you mean 'rel_l2'?"),
    (policy_missing, 2, "policy.toml: cannot be read"),
    (unknown_flag, 2, "--pases"),
]


def listing(here: Path) -> list[tuple[str, int]]:
    return sorted((str(p.relative_to(here)), p.stat().st_size) for p in here.rglob("*"))


def check(result: subprocess.CompletedProcess[str], code: int, words: str) -> None:
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.returncode == code, result.stderr
    assert len(errors) == 1, result.stderr
    assert words in errors[0]
    assert result.stderr.endswith(f"{errors[0]}\n")
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def as_process(arguments: list[str], cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "optc.cli.main", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("arrange", "code", "words"), BUILD, ids=[row[0].__name__ for row in BUILD]
)
def test_build_refuses_in_one_sentence_and_leaves_nothing(
    arrange: Callable[[Path], list[str]],
    code: int,
    words: str,
    here: Path,
    tmp_path_factory: pytest.TempPathFactory,
    optc: Callable[..., Any],
) -> None:
    arguments = arrange(here)
    before = listing(here)
    outcome = optc("build", *arguments)
    check(
        subprocess.CompletedProcess(arguments, outcome.code, outcome.out, outcome.err), code, words
    )
    assert listing(here) == before


@pytest.mark.parametrize(
    ("arrange", "code", "words"),
    [row for row in BUILD if row[0] in (no_model, not_onnx, truncated_data, no_attention)],
)
def test_a_real_process_does_the_same(
    arrange: Callable[[Path], list[str]], code: int, words: str, here: Path, tmp_path: Path
) -> None:
    arguments = arrange(here)
    temporary = tmp_path.parent / f"{tmp_path.name}-temporary"
    temporary.mkdir()
    before = listing(here)
    check(as_process(["build", *arguments], here, TMPDIR=str(temporary)), code, words)
    assert listing(here) == before
    assert listing(temporary) == []
