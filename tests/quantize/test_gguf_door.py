"""What `labkit.quantize.gguf` takes, what it refuses, and how it cuts its work up."""

from __future__ import annotations

import gguf as package
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from labkit.core.errors import (
    CalibrationError,
    FormatError,
    GroupSizeError,
    NonFiniteError,
    PeerMissingError,
    SchemeError,
    ShapeError,
)
from labkit.models.encoder import encoder_folder
from labkit.peers import ggml
from labkit.quantize import gguf, gguf_checks_numba
from labkit.quantize.gguf_types import BLOCK_TYPES, row_bytes

LOOPS = ("plain", "numba")
FLOATS = ("F32", "F16", "BF16")


def _gauss(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns), np.float32)


@pytest.mark.parametrize("type_name", BLOCK_TYPES)
def test_sizes_are_those_of_the_package(type_name):
    kind, theirs = BLOCK_TYPES[type_name], package.GGMLQuantizationType[type_name]
    assert kind.number == theirs.value
    assert (kind.weights, kind.nbytes) == package.GGML_QUANT_SIZES[theirs]
    ends = [field.offset + field.nbytes for field in kind.fields]
    assert [0, *ends] == [*(field.offset for field in kind.fields), kind.nbytes]


def test_bits_per_weight_count_the_scales():
    assert BLOCK_TYPES["Q4_K"].bits_per_weight == 4.5
    assert BLOCK_TYPES["Q8_0"].bits_per_weight == 8.5
    assert BLOCK_TYPES["IQ4_XS"].bits_per_weight == 4.25


def test_row_bytes():
    assert row_bytes("Q6_K", 512) == 420 and row_bytes("F16", 3) == 6
    with pytest.raises(SchemeError, match="Q9_9"):
        row_bytes("Q9_9", 256)
    for columns in (0, -256, 128, 257):
        with pytest.raises(GroupSizeError, match="Q6_K"):
            row_bytes("Q6_K", columns)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("type_name", FLOATS)
def test_floats_round_as_in_ggml(type_name, loop):
    x = _gauss(40, 256) * np.float32(10) ** np.linspace(-45, 4, 40, dtype=np.float32)[:, None]
    ties = (np.arange(1, 513, dtype=np.float32) * np.float32(2.0**-8) + 1).reshape(2, 256)
    for given in (x, ties, -ties, np.zeros((2, 256), np.float32)):
        blocks = gguf.quantize(given, type_name, loop=loop)
        np.testing.assert_array_equal(blocks, ggml.quantize(given, type_name))


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(
    ("type_name", "largest"),
    [("F16", np.float32(65520)), ("BF16", np.uint32(0x7F7F8000).view(np.float32))],
)
def test_what_rounds_to_infinity_is_refused(type_name, largest, loop):
    x = np.zeros((3, 4), np.float32)
    x[1, 2] = np.nextafter(largest, np.float32(0))
    assert np.isfinite(gguf.dequantize(gguf.quantize(x, type_name, loop=loop), type_name)).all()
    x[1, 2] = -largest
    with pytest.raises(NonFiniteError, match="row 1, column 2"):
        gguf.quantize(x, type_name, loop=loop)


@pytest.mark.parametrize("type_name", [name for name in BLOCK_TYPES if name not in FLOATS])
def test_any_float_dtype_and_layout(type_name):
    weight = torch.from_numpy(_gauss(5, 512))
    for given in (
        weight.to(torch.bfloat16),
        weight.half(),
        weight.double(),
        weight.t().contiguous().t(),
        weight.half().numpy(),
        weight.double().numpy(),
        np.asfortranarray(weight.numpy()),
        torch.nn.Parameter(weight),
    ):
        values = torch.as_tensor(given).detach().float().numpy()
        np.testing.assert_array_equal(
            gguf.quantize(given, type_name), ggml.quantize(values, type_name)
        )


def test_a_row_may_be_given_alone():
    x = _gauss(1, 256)
    np.testing.assert_array_equal(gguf.quantize(x[0], "Q4_K"), gguf.quantize(x, "Q4_K"))
    blocks = gguf.quantize(x, "Q4_K")
    assert gguf.dequantize(blocks[0], "Q4_K").shape == (1, 256)


def test_read_only_weights_are_taken():
    x = _gauss(4, 256)
    x.flags.writeable = False
    np.testing.assert_array_equal(gguf.quantize(x, "Q8_0"), ggml.quantize(x, "Q8_0"))


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("type_name", ["Q4_0", "Q4_K", "IQ4_NL", "BF16"])
def test_chunks_change_nothing(type_name, loop, monkeypatch):
    x, importance = _gauss(21, 512), _gauss(1, 512)[0] ** 2
    whole = gguf.quantize(x, type_name, importance, loop=loop)
    restored = gguf.dequantize(whole, type_name, loop=loop)
    monkeypatch.setattr(gguf, "_CHUNK", {"numba": 5 * 512, "plain": 100})
    np.testing.assert_array_equal(gguf.quantize(x, type_name, importance, loop=loop), whole)
    np.testing.assert_array_equal(gguf.dequantize(whole, type_name, loop=loop), restored)


@pytest.mark.parametrize("type_name", BLOCK_TYPES)
def test_threads_change_nothing(type_name, monkeypatch):
    monkeypatch.setattr(gguf_checks_numba, "FAST", 1)  # so that threads do share the work
    x, importance = _gauss(300, 768), _gauss(1, 768)[0] ** 2
    expected = ggml.quantize(x, type_name, importance)
    for threads in (1, 2, None):
        found = gguf.quantize(x, type_name, importance, threads=threads)
        np.testing.assert_array_equal(found, expected)


@pytest.fixture(scope="module")
def encoder_weights():
    """Of MiniLM, whose outlier channels are real: float32 [96, 1536] and [96, 768]."""
    layers = load_file(encoder_folder() / "model.safetensors")
    down = layers["encoder.layer.5.output.dense.weight"][:96].float().numpy()
    query = layers["encoder.layer.0.attention.self.query.weight"].float()
    return [down, query.reshape(-1, 768)[:96].contiguous().numpy()]


@pytest.mark.parametrize("type_name", BLOCK_TYPES)
def test_bytes_of_a_real_encoder(type_name, encoder_weights):
    for weight in encoder_weights:
        for importance in (None, np.square(weight).mean(axis=0)):
            expected = ggml.quantize(weight, type_name, importance)
            for loop in LOOPS:
                blocks = gguf.quantize(weight, type_name, importance, loop=loop)
                np.testing.assert_array_equal(blocks, expected)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_named(bad, loop, monkeypatch):
    monkeypatch.setattr(gguf, "_CHUNK", {"numba": 512, "plain": 512})
    x = _gauss(5, 256)
    x[3, 17] = bad
    with pytest.raises(NonFiniteError, match=r"from row 2 on.*\(1, 17\)"):
        gguf.quantize(x, "Q8_0", loop=loop)
    wide = _gauss(1, 256).astype(np.float64)
    wide[0, 0] = 1e300
    with pytest.raises(NonFiniteError):
        gguf.quantize(wide, "Q8_0", loop=loop)


@pytest.mark.parametrize(
    ("weight", "error"),
    [
        (np.zeros((2, 32), np.int32), SchemeError),
        (torch.zeros(2, 32, dtype=torch.int8), SchemeError),
        (np.zeros((2, 2, 32), np.float32), ShapeError),
        (np.zeros((0, 32), np.float32), ShapeError),
        (torch.zeros(4, 0), ShapeError),
        (np.float32(1), ShapeError),
        (np.zeros((2, 48), np.float32), GroupSizeError),
    ],
)
def test_bad_weights_are_refused(weight, error):
    with pytest.raises(error):
        gguf.quantize(weight, "Q4_0")


def test_unknown_words_are_refused():
    x = _gauss(1, 256)
    with pytest.raises(SchemeError, match="Q4_K"):
        gguf.quantize(x, "Q4_K_M")
    with pytest.raises(SchemeError, match="Q7_1"):
        gguf.dequantize(np.zeros((1, 18), np.uint8), "Q7_1")
    with pytest.raises(SchemeError, match="plain"):
        gguf.quantize(x, "Q4_0", loop="fast")


@pytest.mark.parametrize(
    ("bad", "error", "says"),
    [
        (np.ones(255, np.float32), ShapeError, "256 columns"),
        (np.ones((1, 256), np.float32), ShapeError, "256 columns"),
        ({7: np.nan}, CalibrationError, "columns 7"),
        ({7: np.inf}, CalibrationError, "columns 7"),
        ({7: -1.0, 9: -2.0}, CalibrationError, "columns 7, 9"),
    ],
)
@pytest.mark.parametrize("type_name", ["Q4_0", "Q8_0", "Q6_K", "F16"])
def test_bad_importances_are_refused(bad, error, says, type_name):
    if isinstance(bad, dict):
        wrong, bad = bad, np.ones(256, np.float32)
        for column, value in wrong.items():
            bad[column] = value
    with pytest.raises(error, match=says):
        gguf.quantize(_gauss(2, 256), type_name, bad)


def test_a_block_without_importance_is_named():
    importance = np.ones(256, np.float32)
    importance[64:96] = 0
    x = _gauss(2, 256)
    for type_name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL"):
        with pytest.raises(CalibrationError, match=r"1 blocks of 32.*columns 64, 65"):
            gguf.quantize(x, type_name, importance)
    # Some importance in a super-block is enough, and these make no use of it.
    for type_name in ("Q4_K", "Q6_K", "Q8_0", "MXFP4", "F16"):
        np.testing.assert_array_equal(
            gguf.quantize(x, type_name, importance), ggml.quantize(x, type_name, importance)
        )
    with pytest.raises(CalibrationError):
        gguf.quantize(x, "Q4_K", np.zeros(256, np.float32))


@pytest.mark.parametrize("loop", LOOPS)
def test_scales_beyond_float16_are_named(loop):
    x = _gauss(3, 512)
    x[2, 300] = 1e12
    for type_name in ("Q4_0", "Q4_1", "Q8_0", "Q4_K", "IQ4_XS"):
        with pytest.raises(NonFiniteError, match=f"{type_name}.*beyond float16.*row 2"):
            gguf.quantize(x, type_name, loop=loop)
    huge = np.full(512, 1e38, np.float32)
    with pytest.raises(NonFiniteError, match="beyond float16"):
        gguf.quantize(x, "Q5_0", huge, loop=loop)


@pytest.mark.parametrize(
    "blocks",
    [
        np.zeros((2, 17), np.uint8),
        np.zeros((2, 19), np.uint8),
        np.zeros((2, 18), np.int8),
        np.zeros((2, 0), np.uint8),
        np.zeros((2, 2, 18), np.uint8),
    ],
)
def test_bad_blocks_are_refused(blocks):
    for loop in LOOPS:
        with pytest.raises(FormatError, match="Q4_0"):
            gguf.dequantize(blocks, "Q4_0", loop=loop)


def test_inputs_are_left_alone():
    x, importance = _gauss(4, 256), np.ones(256, np.float32)
    before = x.copy()
    for type_name in BLOCK_TYPES:
        gguf.quantize(x, type_name, importance)
        np.testing.assert_array_equal(x, before)
        np.testing.assert_array_equal(importance, 1)


def test_a_missing_library_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(ggml, "find_spec", lambda name: None)
    assert not ggml.available()
    with pytest.raises(PeerMissingError, match="llama-cpp-python"):
        ggml.library_path()
