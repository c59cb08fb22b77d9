"""Who takes part in `quant_quality.py`: how each makes its model, and what it is compared with.

All start from the same ONNX file, those of others after onnxruntime's own preprocessing, and
calibrate on the same sequences where they calibrate. Products compute in int8 (`accuracy_level=4`)
wherever that is a choice.
"""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

from peer_environments import ROOT, programs

PEERS = Path(__file__).resolve().parent / "quant_peers"
OURS = "ours"
_DISTRIBUTIONS = {OURS: "onnxruntime", "modelopt": "nvidia-modelopt", "olive": "olive-ai"}

WEIGHTS_8 = "8-bit weights"
DYNAMIC_8 = "8-bit weights and activations, grids of activations found at run time"
STATIC_8 = "8-bit weights and activations, static"
WEIGHTS_4_128 = "4-bit weights, groups of 128"
WEIGHTS_4_32 = "4-bit weights, groups of 32"
CLASSES = (WEIGHTS_8, DYNAMIC_8, STATIC_8, WEIGHTS_4_128, WEIGHTS_4_32)


@dataclasses.dataclass(frozen=True)
class Contender:
    """One way to quantise the model.

    Attributes:
        name: What tables call it.
        group: What it is compared with, one of `CLASSES`.
        recipe: The command; `{bin}`, `{model}`, `{prepared}`, `{calibration}` and `{out}` are
            filled in.
        environment: The environment it runs in; `OURS` for the one of this process.
        made: What the recipe writes into its folder.
        optional: Whether it takes part only where it is asked for.
    """

    name: str
    group: str
    recipe: tuple[str, ...]
    environment: str = OURS
    made: str = "model.onnx"
    optional: bool = False

    @property
    def ours(self) -> bool:
        """Whether it is optc."""
        return self.made.endswith(".optc")

    @property
    def slug(self) -> str:
        """Its name as a file's."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")

    def bin(self) -> Path:
        """The folder of its environment's programs."""
        if self.environment == OURS:
            return Path(sys.executable).parent
        requirements = PEERS / f"requirements-{self.environment}.txt"
        return programs(requirements, f"quant-{self.environment}")

    def command(self, folder: Path, out: Path) -> list[str]:
        """What makes its model at `out`; `folder` is the model's."""
        words = {
            "bin": self.bin(),
            "model": folder / "onnx" / "model.onnx",
            "prepared": folder / "prepared" / "model.onnx",
            "calibration": folder / "texts" / "calibration.npz",
            "out": out,
        }
        return [word.format(**words) for word in self.recipe]

    def version(self) -> str:
        """The tool and its version; of ours, the last change too."""
        name = _DISTRIBUTIONS[self.environment]
        code = f"import importlib.metadata as m; print(m.version({name!r}))"
        found = f"{name} {_said([str(self.bin() / 'python'), '-c', code])}"
        return (
            f"optc {_said(['git', 'describe', '--always', '--dirty'])}, {found}"
            if self.ours
            else found
        )


def _said(command: list[str]) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _ours(name: str, group: str, options: str) -> Contender:
    build = ("{bin}/optc", "build", "{model}", "--passes", f"flash,quant:{options}", "-o", "{out}")
    # A model that misses the policy is measured like the others.
    more = ("--calibration", "{calibration}", "--force")
    return Contender(f"optc {name}", group, (*build, *more), made="model.optc")


def _peer(name: str, group: str, script: str, method: str, *, optional: bool = False) -> Contender:
    environment = script if script in _DISTRIBUTIONS else OURS
    command = ("{bin}/python", str(PEERS / f"run_{script}.py"), method)
    recipe = (*command, "{prepared}", "{calibration}", "{out}")
    return Contender(name, group, recipe, environment, optional=optional)


def _ort(name: str, group: str, method: str, *, optional: bool = False) -> Contender:
    return _peer(f"onnxruntime {name}", group, "onnxruntime", method, optional=optional)


CONTENDERS = (
    _ours("w8", WEIGHTS_8, "scheme=w8"),
    _ort("MatMulNBits 8 bits, b32", WEIGHTS_8, "nbits:rtn:8:32"),
    _ours("int8-dynamic", DYNAMIC_8, "scheme=int8-dynamic"),
    _ort("dynamic", DYNAMIC_8, "dynamic:products"),
    _ort("dynamic, tables too", DYNAMIC_8, "dynamic:all"),
    _ours("int8", STATIC_8, "scheme=int8"),
    _ort("static MinMax", STATIC_8, "static:minmax"),
    _ort("static Percentile", STATIC_8, "static:percentile", optional=True),
    _ort("static Entropy", STATIC_8, "static:entropy", optional=True),
    _peer("Model Optimizer int8 max", STATIC_8, "modelopt", "int8:max"),
    _ours("int4, g128", WEIGHTS_4_128, "scheme=int4:group=128"),
    _ort("MatMulNBits RTN, b128", WEIGHTS_4_128, "nbits:rtn:4:128"),
    _ort("MatMulNBits HQQ, b128", WEIGHTS_4_128, "nbits:hqq:4:128"),
    _ort("MatMulNBits GPTQ, b128", WEIGHTS_4_128, "nbits:gptq:4:128", optional=True),
    _peer("Model Optimizer int4 AWQ, b128", WEIGHTS_4_128, "modelopt", "int4:awq_lite:128"),
    _peer("Olive RTN, b128", WEIGHTS_4_128, "olive", "rtn:4:128"),
    _ours("int4, g32", WEIGHTS_4_32, "scheme=int4:group=32"),
    _ort("MatMulNBits RTN, b32", WEIGHTS_4_32, "nbits:rtn:4:32"),
    _ort("MatMulNBits RTN, b32, embeddings too", WEIGHTS_4_32, "nbits:embeddings:4:32"),
    _ort("MatMulNBits k-quant, b32", WEIGHTS_4_32, "nbits:k_quant:4:32"),
    _ort("MatMulNBits HQQ, b32", WEIGHTS_4_32, "nbits:hqq:4:32"),
    _ort("MatMulNBits GPTQ, b32", WEIGHTS_4_32, "nbits:gptq:4:32", optional=True),
    _peer("Olive RTN, b32", WEIGHTS_4_32, "olive", "rtn:4:32"),
)
