"""A tiny language model on disk with its tokenizer, and the command line around it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import tokenizers
from click.testing import CliRunner
from tokenizers import decoders, models, pre_tokenizers

from optc.cli.main import cli

VOCAB, WIDTH = 257, 16
WEIGHTS = {
    "embedding": (VOCAB, WIDTH),
    "places": (64, WIDTH),
    "wq": (WIDTH, WIDTH),
    "wk": (WIDTH, WIDTH),
    "wv": (WIDTH, WIDTH),
    "head": (WIDTH, VOCAB),
}
NODES = """
  steps_1d = Shape<start = 1, end = 2>(input_ids)
  steps = Squeeze(steps_1d)
  zero = Constant<value_int = 0>()
  one = Constant<value_int = 1>()
  counted = Range(zero, steps, one)
  first_axis = Constant<value_ints = [0]>()
  positions = Unsqueeze(counted, first_axis)
  word = Gather(embedding, input_ids)
  place = Gather(places, positions)
  x = Add(word, place)
  q3 = MatMul(x, wq)
  k3 = MatMul(x, wk)
  v3 = MatMul(x, wv)
  split = Constant<value_ints = [0, 0, 2, 8]>()
  q4 = Reshape(q3, split)
  k4 = Reshape(k3, split)
  v4 = Reshape(v3, split)
  q = Transpose<perm = [0, 2, 1, 3]>(q4)
  k = Transpose<perm = [0, 2, 1, 3]>(k4)
  v = Transpose<perm = [0, 2, 1, 3]>(v4)
  attended = Attention<is_causal = 1>(q, k, v)
  back = Transpose<perm = [0, 2, 1, 3]>(attended)
  join = Constant<value_ints = [0, 0, 16]>()
  y = Reshape(back, join)
  z = Add(x, y)
  logits = MatMul(z, head)
"""


def language_model() -> ir.Model:
    """`input_ids` [B,S] to `logits`: one layer of attention over learned positions."""
    weights = ", ".join(f"float[{rows},{cols}] {name}" for name, (rows, cols) in WEIGHTS.items())
    model = ir.from_onnx_text(
        f"""<ir_version: 11, opset_import: ["": 23]>
tiny (int64[B,S] input_ids, {weights}) => (float[B,S,{VOCAB}] logits)
<int64[1,S] positions, float[1,S,{WIDTH}] place, float[B,S,{WIDTH}] x> {{ {NODES} }}"""
    )
    rng = np.random.default_rng(7)
    for value in list(model.graph.inputs)[1:]:
        array = rng.normal(size=WEIGHTS[str(value.name)]).astype(np.float32)
        value.const_value = ir.tensor(array, name=value.name)
        model.graph.inputs.remove(value)
        model.graph.register_initializer(value)
    return model


def save_tokenizer(folder: Path) -> None:
    """256 byte tokens, then <end>."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE({c: i for i, c in enumerate(letters)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<end>"])
    backend.save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="session")
def tiny_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `tiny` is copied from."""
    folder = tmp_path_factory.mktemp("source")
    ir.save(language_model(), folder / "model.onnx", external_data="model.onnx.data")
    save_tokenizer(folder)
    return folder


@pytest.fixture
def here(tmp_path: Path, tiny_source: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a test; the model lies in its folder `tiny`."""
    tiny = tmp_path / "tiny"
    tiny.mkdir()
    for file in tiny_source.iterdir():
        (tiny / file.name).write_bytes(file.read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, object]:
        document = json.loads(self.out)
        assert isinstance(document, dict)
        return document


Optc = Callable[..., Outcome]


@pytest.fixture
def optc() -> Optc:
    """Run one command in this process."""

    def run(*arguments: object) -> Outcome:
        result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
        return Outcome(result.exit_code, result.stdout, result.stderr)

    return run


EXTENSION = """
import dataclasses
from typing import ClassVar
import numpy as np
import onnx_ir as ir
from optc.core.base import Pass, PassResult

@dataclasses.dataclass(frozen=True)
class Shift(Pass):
    '''Claims to be exact and adds {amount} to every weight of the last product.'''
    name: ClassVar[str] = "shift"

    def run(self, model, ctx):
        value = model.graph.initializers["head"]
        sites = [s for s in ("first", "second", "third") if ctx.wants(s)]
        if "second" in sites:
            array = value.const_value.numpy() + np.float32({amount})
            value.const_value = ir.tensor(array, name="head")
        return PassResult(sites=tuple(sites))

@dataclasses.dataclass(frozen=True)
class Crash(Pass):
    '''Raises what nobody expects.'''
    name: ClassVar[str] = "crash"

    def run(self, model, ctx):
        raise KeyError("lost")

@dataclasses.dataclass(frozen=True)
class Tear(Pass):
    '''Leaves a graph that is no graph.'''
    name: ClassVar[str] = "tear"

    def run(self, model, ctx):
        node = model.graph.outputs[0].producer()
        model.graph.remove(node, safe=False)
        return PassResult(sites=("logits",))

NAMES = ("shift", "crash", "tear")
TABLE = {{"passes": {{name: "{package}:" + name.title() for name in NAMES}}}}
"""


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Install a distribution with three broken passes, the way pip would."""

    def install(amount: float) -> None:
        package = f"planted_{tmp_path.name.replace('-', '_')}"
        site = tmp_path.parent / f"site_{package}"
        info = site / f"{package}-1.0.dist-info"
        info.mkdir(parents=True)
        (site / f"{package}.py").write_text(EXTENSION.format(amount=amount, package=package))
        metadata = f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n"
        (info / "METADATA").write_text(metadata)
        (info / "entry_points.txt").write_text(f"[optc.extensions]\nplanted = {package}:TABLE\n")
        monkeypatch.syspath_prepend(site)

    return install
