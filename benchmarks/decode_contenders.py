"""Who takes part in `decode_cpu.py`: where each lives, how its model is made, how it is run.

Peers' packages contradict ours and each other, so each has an environment of its own under
`build/peers/`, made from `decode_peers/requirements-NAME.txt` when it is first needed.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

from peer_environments import programs, run

PEERS = Path(__file__).resolve().parent / "decode_peers"
OURS = "ours"
HOLD_A_MODEL = frozenset((".safetensors", ".onnx", ".data", ".onnx_data", ".xml", ".bin", ".gguf"))


@dataclasses.dataclass(frozen=True)
class Contender:
    """One way to run the model.

    Attributes:
        name: What tables call it.
        environment: The environment it runs in; `OURS` for the one of this process.
        script: Its file in `decode_peers`.
        made: What it runs, below the model's folder.
        arguments: More arguments of the script.
        recipe: The command that makes `made`; `{hf}`, `{here}`, `{out}` and `{bin}` are filled in.
        exact: Whether it computes in float32 throughout.
    """

    name: str
    environment: str
    script: str
    made: str
    arguments: tuple[str, ...] = ()
    recipe: tuple[tuple[str, ...], ...] = ()
    exact: bool = True

    def prepare(self, folder: Path) -> Path:
        """What the worker runs, made if it is not there."""
        path = folder / self.made
        if path.exists():
            return path
        words = {"hf": folder / "hf", "here": folder, "out": path, "bin": self.bin()}
        try:
            for step in self.recipe:
                run([word.format(**words) for word in step])
        except RuntimeError:
            # Half a model must not be taken for one next time.
            shutil.rmtree(path, ignore_errors=True)
            path.unlink(missing_ok=True)
            raise
        return path

    def size(self, folder: Path) -> int:
        """Bytes of the files that hold its graphs and weights."""
        made = folder / self.made
        files = made.rglob("*") if made.is_dir() else [made]
        return sum(file.stat().st_size for file in files if file.suffix in HOLD_A_MODEL)

    def bin(self) -> Path:
        """The folder of its environment's programs."""
        if self.environment == OURS:
            return Path(sys.executable).parent
        return programs(PEERS / f"requirements-{self.environment}.txt", self.environment)

    def start(self, folder: Path, threads: int) -> subprocess.Popen[str]:
        """Its worker, reading requests from a pipe; what it says besides is in `stderr.log`."""
        model = self.prepare(folder)
        command = [self.bin() / "python", PEERS / self.script, model, str(threads), *self.arguments]
        return subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(folder / "stderr.log").open("a"),
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"},
        )


def _group(weights: str) -> tuple[str, ...]:
    """Its default of 128 does not divide SmolLM2's width."""
    return ("--group-size", "64") if weights == "int4" else ()


def _optimum(name: str, weights: str, *precision: str, exact: bool = False) -> Contender:
    made = f"openvino-{weights}"
    recipe = ("{bin}/optimum-cli", "export", "openvino", "--model", "{hf}", "--task")
    options = ("text-generation-with-past", "--weight-format", weights, *_group(weights), "{out}")
    arguments = ("openvino", *precision)
    return Contender(
        name, "openvino", "run_optimum.py", made, arguments, ((*recipe, *options),), exact
    )


def _genai(name: str, precision: str, *, exact: bool = False) -> Contender:
    builder = (
        "{bin}/python",
        "-m",
        "onnxruntime_genai.models.builder",
        "-i",
        "{hf}",
        "-o",
        "{out}",
    )
    recipe = (*builder, "-p", precision, "-e", "cpu", "-c", "{here}/cache")
    return Contender(
        name, "genai", "run_genai.py", f"genai-{precision}", (), (recipe,), exact=exact
    )


def _llama_cpp(name: str, kind: str, *, exact: bool = False) -> Contender:
    recipe = ("{bin}/python", str(PEERS / "quantise_gguf.py"), "{here}/f32.gguf", "{out}", kind)
    made = f"{kind}.gguf"
    return Contender(name, "llama_cpp", "run_llama_cpp.py", made, (), (recipe,), exact=exact)


def _optc(
    name: str, made: str, quant: str = "", prefill: str = "", *, exact: bool = False
) -> Contender:
    export = ("{bin}/optc", "export", "{hf}", "-o", "{here}/onnx")
    passes = "flash,kv:logits=last" + (f",quant:{quant}" if quant else "")
    build = ("{bin}/optc", "build", "{here}/onnx/model.onnx", "--passes", passes, "-o", "{out}")
    # Random weights drift more than trained ones; here it is speed that is asked for.
    build += ("--force", "--prefill", f"quant:{prefill}") if prefill else ("--force",)
    recipe = (("sh", "-c", f"test -f {{here}}/onnx/model.onnx || {' '.join(export)}"), build)
    return Contender(name, OURS, "run_optc.py", made, (), recipe, exact=exact)


_ONNX = ("{bin}/optimum-cli", "export", "onnx", "--model", "{hf}", "--task")

CONTENDERS = (
    Contender("PyTorch eager", OURS, "run_pytorch.py", "hf", ("eager",)),
    Contender("torch.compile", OURS, "run_pytorch.py", "hf", ("compile",)),
    Contender(
        "optimum-onnx", "optimum", "run_optimum.py", "optimum", ("onnx",),
        ((*_ONNX, "text-generation-with-past", "{out}"),),
    ),
    _genai("onnxruntime-genai", "fp32", exact=True),
    _genai("onnxruntime-genai int4", "int4"),
    _optimum("OpenVINO", "fp32", "f32", exact=True),
    _optimum("OpenVINO, its default (bf16)", "fp32"),
    _optimum("OpenVINO int8", "int8"),
    _optimum("OpenVINO int4", "int4"),
    _llama_cpp("llama.cpp", "f32", exact=True),
    _llama_cpp("llama.cpp q8_0", "q8_0"),
    _llama_cpp("llama.cpp q4_0", "q4_0"),
    _optc("optc", "f32.optc", exact=True),
    _optc("optc int8", "int8.optc", "scheme=int8"),
    _optc("optc int8-dynamic", "int8-dynamic.optc", "scheme=int8-dynamic"),
    _optc("optc int4", "int4.optc", "scheme=int4"),
    _optc("optc int4, int8 for prompts", "int4-int8.optc", "scheme=int4", "scheme=int8-dynamic"),
)  # fmt: skip
