"""onnxruntime's quantisers: `run_onnxruntime.py METHOD MODEL.onnx CALIBRATION.npz OUT.onnx`.

METHOD is `prepare` (its preprocessing: every other method and tool starts from what that writes),
`dynamic:products|all`, `static:minmax|percentile|entropy`, or `nbits:ALGORITHM:BITS:BLOCK` with the
algorithm `rtn`, `embeddings` (the same, with tables), `k_quant`, `hqq` or `gptq`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import onnx
from calibration import sequences
from onnxruntime import quantization
from onnxruntime.quantization import matmul_nbits_quantizer as nbits
from onnxruntime.quantization.shape_inference import quant_pre_process

# What they compute in: int8, which is what makes them fast.
ACCURACY_LEVEL = 4
# The histograms of these keep every intermediate result of every sequence.
FEW = 8


class Reader(quantization.CalibrationDataReader):
    """Sequences, one at a time, from the start again after `rewind`."""

    def __init__(self, path: Path, count: int | None = None):
        self._feeds = sequences(path)[:count]
        self.rewind()

    def rewind(self) -> None:
        """Start again."""
        self._left = iter(self._feeds)

    def get_next(self) -> dict[str, Any] | None:
        """The next one; None at the end."""
        return next(self._left, None)


def prepare(model: Path, out: Path) -> None:
    """Fold constants, so that the transposed table of the head is a matrix of its own."""
    quant_pre_process(
        str(model), str(out), skip_symbolic_shape=True, save_as_external_data=True,
        all_tensors_to_one_file=True, external_data_location=f"{out.name}.data",
    )  # fmt: skip


def dynamic(model: Path, out: Path, what: str) -> None:
    """Products per channel, or `all` that it can, tables too; activations on each tensor's grid."""
    kinds = ["MatMul"] if what == "products" else None
    quantization.quantize_dynamic(
        model, out, op_types_to_quantize=kinds, per_channel=True,
        weight_type=quantization.QuantType.QInt8, use_external_data_format=True,
    )  # fmt: skip


def static(model: Path, calibration: Path, out: Path, method: str) -> None:
    """Per channel; activations in unsigned 8 bits, results left in float, which is their best."""
    quantization.quantize_static(
        model, out, Reader(calibration, None if method == "minmax" else FEW),
        quant_format=quantization.QuantFormat.QDQ, op_types_to_quantize=["MatMul"],
        per_channel=True, activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8, use_external_data_format=True,
        calibrate_method=getattr(quantization.CalibrationMethod, _METHODS[method]),
        extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul"]},
    )  # fmt: skip


_METHODS = {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}


def blocks(model: Path, calibration: Path, out: Path, algorithm: str, bits: int, size: int) -> None:
    """Products as `MatMulNBits`, weights in blocks of `size` input channels."""
    # Loaded here: from a path, some algorithms lose the weights that they leave alone.
    given: Any = onnx.load(model)
    config = _config(algorithm, calibration, bits, size)
    common = {"bits": bits, "block_size": size, "accuracy_level": ACCURACY_LEVEL}
    quantizer = nbits.MatMulNBitsQuantizer(given, algo_config=config, **common)
    quantizer.process()
    # Some algorithms ignore the level that they are given.
    for node in quantizer.model.model.graph.node:
        known = {attribute.name for attribute in node.attribute}
        if node.op_type == "MatMulNBits" and "accuracy_level" not in known:
            node.attribute.append(onnx.helper.make_attribute("accuracy_level", ACCURACY_LEVEL))
    quantizer.model.save_model_to_file(str(out), use_external_data_format=True)


def _config(algorithm: str, calibration: Path, bits: int, size: int) -> Any:
    if algorithm == "k_quant":
        return nbits.KQuantWeightOnlyQuantConfig()
    if algorithm == "hqq":
        return nbits.HQQWeightOnlyQuantConfig(block_size=size, bits=bits)
    if algorithm == "gptq":
        return nbits.GPTQWeightOnlyQuantConfig(
            calibration_data_reader=Reader(calibration), block_size=size, mse=True
        )
    return nbits.DefaultWeightOnlyQuantConfig(
        block_size=size, is_symmetric=False, bits=bits, accuracy_level=ACCURACY_LEVEL,
        op_types_to_quantize=("MatMul", "Gather") if algorithm == "embeddings" else ("MatMul",),
    )  # fmt: skip


def main() -> None:
    """Run one method."""
    (name, *details), (model, calibration, out) = sys.argv[1].split(":"), map(Path, sys.argv[2:])
    out.parent.mkdir(parents=True, exist_ok=True)
    if name == "prepare":
        prepare(model, out)
    elif name == "dynamic":
        dynamic(model, out, details[0])
    elif name == "static":
        static(model, calibration, out, details[0])
    else:
        blocks(model, calibration, out, details[0], int(details[1]), int(details[2]))


if __name__ == "__main__":
    main()
