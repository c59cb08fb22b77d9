"""Which form of a quantised product does ONNX Runtime's CPU run fast?

    python benchmarks/products_ort.py [--sizes 576x1536,1536x576] [--tokens 1,128] [--rounds 9]

One product of `tokens` activations with a random weight, in the forms that the target `ort` chooses
between. Forms take turns; each number is the least of all rounds, in processor microseconds of one
thread, which waiting for a processor does not enter.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
from onnx import numpy_helper

# The package re-exports its classes in a way that type checkers do not follow.
_ort: Any = onnxruntime
CONTRIB = "com.microsoft"
# An activation x becomes q, uint8 around 128, with a scale s for each token.
ROUNDING = """
    size = Abs(x)
    most = ReduceMax<keepdims = 1>(size, axes)
    raw = Mul(most, share)
    s = Max(raw, tiny)
    shape = Shape(s)
    middles = Expand(middle, shape)
    q = QuantizeLinear<axis = -1, block_size = {k}>(x, s, middles)"""
STEPWISE = ROUNDING.split("    shape")[0] + (
    "    ratio = Div(x, s)\n    q = QuantizeLinear(ratio, one, middle)"
)
AFTER = {
    "scales in the kernel": "y = com.microsoft.MatMulIntegerToFloat(q, w, s, ws, middle)",
    "one Mul after it": """
    r = com.microsoft.MatMulIntegerToFloat(q, w, one, ws, middle)
    y = Mul(r, s)""",
    "MatMulInteger, Cast, Mul, Mul": """
    i = MatMulInteger(q, w, middle)
    f = Cast<to = 1>(i)
    r = Mul(f, ws)
    y = Mul(r, s)""",
}
SMALL = {
    "axes": np.array([-1]),
    "share": np.float32(1 / 127),
    "tiny": np.float32(1e-30),
    "one": np.float32(1),
    "middle": np.uint8(128),
}


def model(body: str, kind: str, output: str, constants: dict[str, Any]) -> bytes:
    """A graph from x [n,K] to `output`."""
    text = f"""<ir_version: 11, opset_import: ["": 24, "{CONTRIB}": 1]>
    main ({kind}[n, k] x) => ({output}) {{ {body} }}"""
    made = onnx.parser.parse_model(text)
    for name, array in constants.items():
        made.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    data: bytes = made.SerializeToString()
    return data


def by_token(inner: int, outer: int) -> dict[str, bytes]:
    """int8 weights and activations: the rounding alone, and with each way to multiply."""
    rng = np.random.default_rng(0)
    weight = {"w": rng.integers(-127, 128, (inner, outer)).astype(np.int8)}
    weight["ws"] = rng.random(outer).astype(np.float32)
    fast, rounded = ROUNDING.format(k=inner), "uint8[n, k] q, float[n, 1] s"
    forms = {
        "rounding, stepwise": model(STEPWISE, "float", rounded, SMALL),
        "rounding, tokens as blocks": model(fast, "float", rounded, SMALL),
    }
    for name, lines in AFTER.items():
        forms[name] = model(f"{fast}\n    {lines}", "float", "float[n, c] y", SMALL | weight)
    return forms


def in_blocks(inner: int, outer: int, bits: int, length: int, kind: str = "float") -> bytes:
    """`MatMulNBits` at accuracy level 4."""
    rng = np.random.default_rng(0)
    blocks = -(-inner // length)
    node = f"""y = com.microsoft.MatMulNBits<K = {inner}, N = {outer}, bits = {bits},
        block_size = {length}, accuracy_level = 4>(x, w, ws)"""
    steps = rng.integers(0, 256, (outer, blocks, length * bits // 8)).astype(np.uint8)
    scales = rng.random((outer, blocks)).astype(np.float16 if kind == "float16" else np.float32)
    return model(node, kind, f"{kind}[n, c] y", {"w": steps, "ws": scales})


def forms_of(inner: int, outer: int) -> dict[str, bytes]:
    """All forms, by name."""
    weight = np.random.default_rng(0).random((inner, outer)).astype(np.float32)
    forms = {"float32": model("y = MatMul(x, w)", "float", "float[n, c] y", {"w": weight})}
    forms |= by_token(inner, outer)
    for bits in (4, 8):
        for length in (16, 32, 64, 128, 256):
            forms[f"{bits} bits, blocks of {length}"] = in_blocks(inner, outer, bits, length)
        forms[f"{bits} bits, blocks of 32, float16"] = in_blocks(inner, outer, bits, 32, "float16")
    return forms


def runner(data: bytes, inner: int, tokens: int) -> Callable[[], object]:
    """Runs a form once."""
    options = _ort.SessionOptions()
    options.log_severity_level = 3  # not every form uses every constant
    options.intra_op_num_threads = 1
    session = _ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    kind = np.float16 if "float16" in session.get_inputs()[0].type else np.float32
    x = np.random.default_rng(0).standard_normal((tokens, inner)).astype(kind)
    return lambda: session.run(None, {"x": x})


def measure(inner: int, outer: int, tokens: int, rounds: int) -> dict[str, float]:
    """Microseconds of each form."""
    runs = {name: runner(data, inner, tokens) for name, data in forms_of(inner, outer).items()}
    repeats = max(1, 64 // tokens)
    found = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds + 1):
        for name, run in runs.items():
            before = time.thread_time()
            for _ in range(repeats):
                run()
            found[name] = min(found[name], (time.thread_time() - before) / repeats * 1e6)
    return found


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="576x1536,1536x576")
    parser.add_argument("--tokens", default="1,128")
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    sizes = [tuple(map(int, size.split("x"))) for size in given.sizes.split(",")]
    cases = [(k, c, int(tokens)) for k, c in sizes for tokens in given.tokens.split(",")]
    columns = [measure(*case, given.rounds) for case in cases]
    print("| form | " + " | ".join(f"{k}x{c}, {n} tokens" for k, c, n in cases) + " |")
    print("|---" * (len(cases) + 1) + "|")
    for name in columns[0]:
        print(f"| {name} | " + " | ".join(f"{column[name]:.0f}" for column in columns) + " |")


if __name__ == "__main__":
    main()
