"""What may be said of a weight before it is quantised: is it finite, how far does rounding move it.

Both read it a few megabytes at a time.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from optc.ir.streamed import EVERY, blocks_of, read_part, sizes
from optc.rewrite.quant_grid import Grid
from optc.rewrite.quant_stream import Constant

__all__ = ["is_finite", "rounding_error"]

_EXPONENTS = {
    ir.DataType.FLOAT: (np.uint32, 0x7F800000),
    ir.DataType.FLOAT16: (np.uint16, 0x7C00),
}


def is_finite(tensor: ir.TensorProtocol) -> bool:
    """Whether a weight of 16 or 32 bits holds neither NaN nor infinity.

    Those have every bit of the exponent set (IEEE 754), which is quicker to see than to compute.
    """
    unsigned, exponent = _EXPONENTS[tensor.dtype]
    rows = sizes(tensor)[0]
    for part in blocks_of(rows, tensor.nbytes // max(1, rows)):
        bits = np.ascontiguousarray(read_part(tensor, part)).view(unsigned)
        if ((bits & unsigned(exponent)) == exponent).any():
            return False
    return True


def rounding_error(constant: Constant, grid: Grid) -> float:
    """Norm of what rounding to the nearest step changes, relative to the norm of the weight."""
    moved = size = 0.0
    for part in constant.blocks():
        rows = constant.read(part, EVERY)
        size += float(np.square(rows).sum(dtype=np.float64))
        moved += float(np.square(grid.rounded(rows, constant.kind) - rows).sum(dtype=np.float64))
    return float(np.sqrt(moved / size)) if size else 0.0
