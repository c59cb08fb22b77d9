"""Tensors that are computed a part at a time."""

import io

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

import optc.ir.streamed as streamed
from optc.ir.streamed import EVERY, StreamedTensor, blocks_of, read_part


def _tensor(array, dtype, seen):
    def part(rows, columns):
        seen.append(rows)
        return array[rows, columns]

    return StreamedTensor(part, dtype, array.shape)


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [
        (ir.DataType.FLOAT, np.float32),
        (ir.DataType.UINT8, np.uint8),
        (ir.DataType.INT4, ml_dtypes.int4),
        (ir.DataType.UINT4, ml_dtypes.uint4),
    ],
)
@pytest.mark.parametrize("shape", [(7, 5), (64, 33), (3, 4, 5)])
def test_bytes_written_in_blocks_are_the_bytes_of_the_whole(monkeypatch, dtype, kind, shape):
    array = np.random.default_rng(0).integers(0, 7, shape).astype(kind)
    monkeypatch.setattr(streamed, "_BLOCK_BYTES", 64)
    seen = []
    file = io.BytesIO()
    _tensor(array, dtype, seen).tofile(file)
    assert file.getvalue() == ir.Tensor(array, dtype=dtype).tobytes()
    assert len(seen) > 1


def test_a_part_of_a_part_computes_no_more_than_it_needs():
    source = ir.Tensor(np.arange(12, dtype=np.float32).reshape(4, 3))

    def doubled(rows, columns):
        return 2 * read_part(source, rows, columns)

    tensor = StreamedTensor(doubled, ir.DataType.FLOAT, (4, 3))
    assert read_part(tensor, slice(1, 2), slice(0, 2)).tolist() == [[6.0, 8.0]]
    assert tensor.numpy().tolist() == (2 * source.numpy()).tolist()


def test_blocks_cover_all_rows_and_part_no_group():
    parts = list(blocks_of(100, row_bytes=1 << 20, multiple=3))
    assert [part.start for part in parts] == [0, *[part.stop for part in parts[:-1]]]
    assert parts[-1].stop == 100
    assert all((part.stop - part.start) % 3 == 0 for part in parts[:-1])


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [
        (ir.DataType.FLOAT16, np.float16),
        (ir.DataType.BFLOAT16, ml_dtypes.bfloat16),
        (ir.DataType.INT8, np.int8),
        (ir.DataType.INT4, ml_dtypes.int4),
        (ir.DataType.UINT4, ml_dtypes.uint4),
        (ir.DataType.FLOAT4E2M1, ml_dtypes.float4_e2m1fn),
    ],
)
@pytest.mark.parametrize("shape", [(6, 5), (5, 7, 3)])
def test_a_part_of_a_tensor_in_a_file_is_read_into_memory_of_its_own(tmp_path, dtype, kind, shape):
    array = np.random.default_rng(0).integers(0, 6, shape).astype(kind)
    raw = ir.Tensor(array, dtype=dtype).tobytes()
    (tmp_path / "data").write_bytes(b"12345" + raw)
    place = {"shape": ir.Shape(shape), "name": "w", "base_dir": tmp_path}
    tensor = ir.ExternalTensor("data", 5, len(raw), dtype, **place)
    for rows in (EVERY, slice(1, 3), slice(2, None), slice(3, 3)):
        for columns in (EVERY, slice(2, 5)):
            got = read_part(tensor, rows, columns)
            assert got.dtype == array.dtype
            np.testing.assert_array_equal(
                got.astype(np.float32), array[rows, columns].astype(np.float32)
            )
    assert tensor.raw is None, "the whole file was mapped"
