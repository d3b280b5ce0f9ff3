"""Notebook 01: its widgets, its pictures, and answers that its exercises must accept."""

from __future__ import annotations

import math
import re
from types import SimpleNamespace

import pytest
import torch

from labkit.core.codebooks import CODEBOOKS
from labkit.core.errors import PackingError
from labkit.core.gpus import GPUS
from labkit.core.memory import kv_cache_bytes
from labkit.core.model_shapes import MODEL_SHAPES
from labkit.course.chapters.exercises_01_levels import normal_float_levels, power_of_two_scale
from labkit.course.checking import evaluate
from labkit.course.registry import get
from labkit.course.source import compile_function
from labkit.course.widgets_01_bits import FORMATS_SHOWN, BitExplorer, nearby, read
from labkit.course.widgets_01_memory import MemoryExplorer, cache_bytes, gpus_that_fit, shape_of
from labkit.course.widgets_01_pictures import bit_layouts, code_table, model_map


@pytest.mark.parametrize(
    ("name", "code", "kind", "value", "formula"),
    [
        ("fp8_e4m3", 0x7E, "normal", 448.0, "1.75 x 2^(15 - 7)"),
        ("fp8_e4m3", 0x01, "subnormal", 2.0**-9, "0.125 x 2^(1 - 7)"),
        ("fp8_e4m3", 0x80, "zero", 0.0, "-0 x 2^(1 - 7)"),
        ("fp8_e4m3", 0xFF, "NaN", math.nan, "a code kept for it"),
        ("fp16", 0xFC00, "infinity", -math.inf, "a code kept for it"),
        ("bf16", 0xC000, "normal", -2.0, "-1 x 2^(128 - 127)"),
        ("fp4_e2m1", 0x1, "subnormal", 0.5, "0.5 x 2^(1 - 1)"),
        ("e8m0", 0x00, "normal", 2.0**-127, "1 x 2^(0 - 127)"),
        ("int4", 0xF, "integer", -1.0, "-8 + 7"),
        ("int4", 0x7, "integer", 7.0, "7"),
        ("nf4", 0x0, "codebook", -1.0, "entry 0 of 16"),
    ],
)
def test_a_code_is_read_as_what_it_is(name, code, kind, value, formula):
    reading = read(code, name)
    assert (reading.kind, reading.formula) == (kind, formula)
    assert reading.value == value or math.isnan(value) == math.isnan(reading.value) is True


def test_a_code_out_of_range_is_refused():
    with pytest.raises(PackingError):
        read(16, "fp4_e2m1")


def test_the_neighbourhood_ends_where_the_format_does():
    assert nearby(448.0, "fp8_e4m3", 2) == [384.0, 416.0, 448.0]
    assert nearby(0.0, "int4", 1) == [-1.0, 0.0, 1.0]


def test_clicking_a_bit_flips_it_and_redraws():
    explorer = BitExplorer("fp16", 1.0)
    buttons = explorer.children[1].children
    assert [button.description for button in buttons] == list("0011110000000000")
    before = explorer.children[3].value
    buttons[0].click()
    assert explorer.reading.value == -1.0
    assert explorer.code == 0xBC00
    assert "<img" in before and explorer.children[3].value != before
    explorer.flip(0)
    assert explorer.reading.value == 1.0


def test_a_number_becomes_the_nearest_code_and_says_by_how_much_it_missed():
    explorer = BitExplorer("fp8_e4m3", 0.3)
    assert explorer.reading.value == 0.3125
    assert "asked for 0.3, off by 0.0125" in explorer.text
    explorer.choose("bf16", 1.001)
    assert explorer.reading.value == 1.0
    assert len(explorer.children[1].children) == 16
    explorer.flip(15)  # now the number is the learner's own, not a rounded one
    assert "asked for" not in explorer.text


@pytest.mark.parametrize("name", FORMATS_SHOWN)
@pytest.mark.parametrize("number", [0.0, -3.7, 1e9])
def test_every_format_of_the_menu_shows_any_number(name, number):
    explorer = BitExplorer()
    explorer.choose(name, number)
    assert "<img" in explorer.children[3].value
    assert explorer.text.splitlines()[0].endswith("(sign | exponent | mantissa)")


def test_more_context_or_more_bits_fit_on_fewer_gpus():
    explorer = MemoryExplorer("llama-3-8b")
    before, picture = set(explorer.fitting), explorer.children[-1].value
    explorer.context.value = 131072
    assert set(explorer.fitting) < before
    assert explorer.children[-1].value != picture
    long_context = explorer.estimate
    explorer.kv_bits.value = 8.0
    assert explorer.estimate.kv_cache == long_context.kv_cache / 2
    assert explorer.estimate.weights == long_context.weights
    explorer.bits.value = 4.125
    assert explorer.estimate.weights < long_context.weights / 3
    assert explorer.text.startswith(f"{explorer.estimate.total / 2**30:.1f} GiB")


def test_gpus_are_listed_from_the_smallest_and_none_holds_everything():
    names = gpus_that_fit(20 * 2**30)
    sizes = [GPUS[name].gib for name in names]
    assert sizes == sorted(sizes) and min(sizes) >= 20
    assert set(names) == {gpu.name for gpu in GPUS.values() if gpu.gib >= 20}
    assert gpus_that_fit(10**15) == []


def test_cache_bytes_counts_both_shapes_of_transformers_cache():
    keys = [torch.zeros(2, 2, 10, 4), torch.zeros(2, 2, 10, 4)]
    values = [torch.zeros(2, 2, 10, 4, dtype=torch.bfloat16) for _ in keys]
    layers = [SimpleNamespace(keys=k, values=v) for k, v in zip(keys, values, strict=True)]
    wanted = 2 * 2 * 2 * 10 * 4 * (4 + 2)
    assert cache_bytes(SimpleNamespace(layers=layers)) == wanted
    assert cache_bytes(SimpleNamespace(key_cache=keys, value_cache=values)) == wanted


def test_shape_of_a_config_gives_the_cache_of_the_published_shape():
    shape = MODEL_SHAPES["llama-3-8b"]
    config = SimpleNamespace(
        model_type="llama",
        num_hidden_layers=shape.layers,
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        vocab_size=shape.vocab,
        tie_word_embeddings=shape.tied,
    )
    assert kv_cache_bytes(shape_of(config), 77) == kv_cache_bytes(shape, 77)
    assert shape_of(config).parameters == shape.parameters


def test_pictures_hold_every_bit_and_every_code():
    boxes = bit_layouts(["fp32", "fp8_e5m2", "nf4"]).axes[0].patches
    assert len(boxes) == 32 + 8 + 4
    written = [text.get_text() for text in code_table("fp8_e5m2").axes[0].texts]
    assert len(written) == 128
    assert written[0x7B:] == ["57344", "inf", "NaN", "NaN", "NaN"]
    assert max(map(len, written)) <= 7
    labels = model_map(torch.rand(3, 2), ["a", "b"], ["block 0", "", "block 1"]).axes[0]
    assert [label.get_text() for label in labels.get_yticklabels()] == ["block 0", "block 1"]


def test_the_answer_key_of_nf4_is_the_real_nf4():
    assert torch.allclose(
        normal_float_levels(4, 0.9677083), torch.tensor(CODEBOOKS["nf4"].values), atol=1e-6
    )


def test_the_loss_scale_is_exact_at_powers_of_two():
    assert power_of_two_scale(torch.tensor([-2.0]), 64.0) == 32.0
    assert power_of_two_scale(torch.tensor([2.0000002]), 64.0) == 16.0


ALTERNATIVES = {
    "01.1": """
def decode_float(code, exponent_bits, mantissa_bits, specials):
    bits = format(code, f"0{1 + exponent_bits + mantissa_bits}b")
    sign, exponent = (-1.0) ** int(bits[0]), bits[1 : 1 + exponent_bits]
    fraction = sum(2.0 ** -(i + 1) for i, b in enumerate(bits[1 + exponent_bits :]) if b == "1")
    if "0" not in exponent and specials == "ieee":
        return sign * math.inf if fraction == 0 else math.nan
    if "0" not in bits[1:] and specials == "nan_only":
        return math.nan
    normal = "1" in exponent
    power = max(int(exponent, 2), 1) - (2 ** (exponent_bits - 1) - 1)
    return sign * (normal + fraction) * 2.0**power
""",
    "01.2": '''
def encode_float(x, exponent_bits, mantissa_bits, specials):
    """By bisection over the codes: slow to think of, but as right."""
    bias, top = 2 ** (exponent_bits - 1) - 1, exponent_bits + mantissa_bits
    def value(code):
        field, mantissa = code >> mantissa_bits, code % 2**mantissa_bits
        return ((field > 0) + mantissa / 2**mantissa_bits) * 2.0 ** (max(field, 1) - bias)
    last = 2**top - 1 - {"ieee": 2**mantissa_bits, "nan_only": 1, "none": 0}[specials]
    beyond = last + 1 if specials == "ieee" else last
    low, high, size = 0, last + 1, abs(x)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if value(middle) <= size else (low, middle)
    up = size - value(low) > value(low + 1) - size
    tie = size - value(low) == value(low + 1) - size
    code = low + int(up or (tie and low % 2 == 1))
    if code > last:
        code = beyond
    return code + ((math.copysign(1, x) < 0) << top)
''',
    "01.3": """
def loss_scale(gradients, largest):
    scale, peak = 1.0, float(torch.linalg.vector_norm(gradients, float("inf")))
    while peak and peak * scale > largest:
        scale /= 2
    while peak and peak * scale * 2 <= largest:
        scale *= 2
    return scale
""",
    "01.4": """
def normal_float(bits, offset):
    from statistics import NormalDist
    quantile, n = NormalDist().inv_cdf, 2 ** (bits - 1)
    above = [quantile(0.5 + (offset - 0.5) * i / n) for i in range(n + 1)]
    below = [-quantile(0.5 + (offset - 0.5) * i / (n - 1)) for i in range(n - 1, 0, -1)]
    return torch.tensor(below + above) / above[-1]
""",
    "01.5": """
def memory_gib(shape, weight_bits, kv_bits, context, batch):
    token = kv_bits * shape.kv_heads * shape.head_dim
    bits = [shape.parameters * weight_bits, (token + token) * shape.layers * batch * context]
    return [b / (8 * 1024**3) for b in bits]
""",
}


@pytest.mark.parametrize("exercise_id", ALTERNATIVES)
def test_another_right_answer_passes(exercise_id):
    function = compile_function(ALTERNATIVES[exercise_id], f"<alternative {exercise_id}>")
    verdict = evaluate(get(exercise_id), function)
    assert verdict.status == "passed", verdict.text()


def test_a_bound_says_what_is_wrong_in_numbers():
    lazy = compile_function(
        "def memory_gib(shape, weight_bits, kv_bits, context, batch):\n"
        "    return shape.parameters * weight_bits / 8 / 2**30, 3.0 * shape.heads\n",
        "<lazy>",
    )
    verdict = evaluate(get("01.5"), lazy)
    assert verdict.status == "failed"
    assert "queries are not kept" in verdict.reason
    assert re.search(r"from \d+ to \d+ GiB", verdict.reason)
