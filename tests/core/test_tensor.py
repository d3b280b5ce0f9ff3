import pytest
import torch

from labkit.core.errors import PackingError, SchemeError, ShapeError
from labkit.core.scheme import QuantScheme
from labkit.core.tensor import QuantizedTensor
from labkit.quantize import rtn

GROUP = QuantScheme(4, granularity="group", group_size=2)


def by_hand(scheme=GROUP, **changes):
    parts = {
        "codes": torch.tensor([[1, 2, 3, 4], [-1, -2, -3, -4]], dtype=torch.int8),
        "scale": torch.tensor([[1.0, 10.0], [0.5, 0.25]], dtype=torch.float16),
        "zero_point": None,
        "scheme": scheme,
    }
    return QuantizedTensor(**{**parts, **changes})


def test_dequantize_by_hand():
    assert by_hand().dequantize().tolist() == [[1, 2, 30, 40], [-0.5, -1, -0.75, -1]]
    assert by_hand().dequantize().dtype == torch.float32


def test_asymmetric_by_hand():
    tensor = by_hand(
        QuantScheme(4, False, "group", 2),
        codes=torch.tensor([[1, 2, 3, 4], [5, 6, 7, 15]], dtype=torch.uint8),
        zero_point=torch.tensor([[1, 3], [15, 0]], dtype=torch.int32),
    )
    assert tensor.dequantize().tolist() == [[0, 1, 0, 10], [-5, -4.5, 1.75, 3.75]]


def test_g_idx_gives_each_column_its_group():
    tensor = by_hand(g_idx=torch.tensor([1, 0, 1, 0], dtype=torch.int32))
    assert tensor.dequantize().tolist() == [[10, 2, 30, 4], [-0.25, -1, -0.75, -2]]
    order = torch.tensor([0, 0, 1, 1], dtype=torch.int32)
    assert torch.equal(by_hand(g_idx=order).dequantize(), by_hand().dequantize())


@pytest.mark.parametrize(
    ("scheme", "bits"),
    [
        (QuantScheme(4, True, "group", 128), 4 + 16 / 128),
        (QuantScheme(4, False, "group", 128), 4 + (16 + 4) / 128),
        (QuantScheme(3, False, "group", 64), 3 + (16 + 3) / 64),
        (QuantScheme(8, True, "channel"), 8 + 16 / 256),
        (QuantScheme(2, False, "tensor"), 2 + (16 + 2) / (64 * 256)),
    ],
    ids=str,
)
def test_bits_per_weight_counts_the_metadata(scheme, bits):
    tensor = rtn.quantize(torch.randn(64, 256), scheme)
    assert tensor.bits_per_weight == pytest.approx(bits, abs=1e-12)


def test_bits_per_weight_counts_what_is_stored():
    weight = torch.randn(64, 256)
    scheme = QuantScheme(4, granularity="group", group_size=32)
    exact = rtn.quantize(weight, scheme, scale_dtype=torch.float32)
    assert exact.bits_per_weight == 4 + 32 / 32
    half = rtn.quantize(weight, scheme)
    ordered = QuantizedTensor(
        half.codes, half.scale, None, scheme, torch.arange(256, dtype=torch.int32) // 32
    )
    assert ordered.bits_per_weight == half.bits_per_weight + 32 / 64
    assert "g_idx" in repr(ordered)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("granularity", ["tensor", "channel", "group", "token"])
def test_packed_is_nbytes_long_and_comes_back_exactly(bits, symmetric, granularity):
    scheme = QuantScheme(bits, symmetric, granularity, 7 if granularity == "group" else None)
    tensor = rtn.quantize(torch.randn(5, 21), scheme)
    parts = tensor.packed()
    assert sum(part.numel() * part.element_size() for part in parts.values()) == tensor.nbytes
    # Padding to whole bytes is all that separates the two figures.
    padding = tensor.nbytes * 8 - round(tensor.bits_per_weight * 105)
    assert 0 <= padding <= 7 * len(parts)
    back = QuantizedTensor.from_packed(parts, scheme, (5, 21))
    assert torch.equal(back.codes, tensor.codes) and back.codes.dtype == tensor.codes.dtype
    assert torch.equal(back.dequantize(), tensor.dequantize())


def test_packed_keeps_g_idx():
    tensor = by_hand(g_idx=torch.tensor([1, 0, 1, 0], dtype=torch.int32))
    assert tensor.nbytes == 4 + 8 + 16
    back = QuantizedTensor.from_packed(tensor.packed(), GROUP, (2, 4))
    assert torch.equal(back.dequantize(), tensor.dequantize())


def test_lowest_full_range_code_packs_as_zero():
    tensor = by_hand(
        QuantScheme(2, granularity="group", group_size=2, narrow_range=False),
        codes=torch.tensor([[-2, -1, 0, 1], [1, 0, -1, -2]], dtype=torch.int8),
    )
    assert tensor.packed()["codes"].tolist() == [0b11100100, 0b00011011]


def test_code_wider_than_its_bits_does_not_pack():
    codes = torch.tensor([[1, 2, 3, 4], [-1, -2, -3, 9]], dtype=torch.int8)
    with pytest.raises(PackingError, match="position 7, is 17"):
        by_hand(codes=codes).packed()
    with pytest.raises(PackingError, match=r"Expected uint8 \[6\]"):
        QuantizedTensor.from_packed(by_hand().packed(), GROUP, (3, 4))


def test_to_keeps_everything():
    tensor = by_hand(g_idx=torch.tensor([1, 0, 1, 0], dtype=torch.int32))
    moved = tensor.to("cpu")
    assert torch.equal(moved.dequantize(), tensor.dequantize())
    assert moved.scheme == tensor.scheme and moved.scale.dtype == torch.float16


def test_repr_is_one_useful_line():
    text = "QuantizedTensor(2 x 4, int4 sym group 2, 12.000 bits/weight, 12 bytes)"
    assert repr(by_hand()) == text


def test_zeros_of_a_symmetric_tensor_are_not_kept():
    assert by_hand(zero_point=torch.zeros(2, 2, dtype=torch.int32)).zero_point is None


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"codes": torch.zeros(2, 4)}, SchemeError, "float32"),
        ({"codes": torch.zeros(2, 4, dtype=torch.uint8)}, SchemeError, "int8"),
        ({"scale": torch.ones(2, 2, dtype=torch.int32)}, SchemeError, "scale is"),
        ({"zero_point": torch.ones(2, 2, dtype=torch.int32)}, SchemeError, "other than 0"),
        ({"scale": torch.ones(2, 1)}, ShapeError, r"Expected \(2, 2\)"),
        ({"scale": torch.ones(2)}, ShapeError, r"Expected \(2, 2\)"),
        ({"g_idx": torch.tensor([0, 1])}, ShapeError, "g_idx"),
        ({"g_idx": torch.tensor([0, 1, 2, 0])}, ShapeError, "index below 2"),
        ({"g_idx": torch.tensor([0, 1, -1, 0])}, ShapeError, "index below 2"),
    ],
)
def test_parts_that_contradict_each_other(changes, error, message):
    with pytest.raises(error, match=message):
        by_hand(**changes)


def test_asymmetric_needs_a_zero_point_of_the_shape_of_scales():
    scheme = QuantScheme(4, False, "group", 2)
    codes = torch.zeros(2, 4, dtype=torch.uint8)
    with pytest.raises(SchemeError, match="no zero-point"):
        by_hand(scheme, codes=codes)
    with pytest.raises(ShapeError, match="zero_point has shape"):
        by_hand(scheme, codes=codes, zero_point=torch.zeros(2, 1, dtype=torch.int32))
