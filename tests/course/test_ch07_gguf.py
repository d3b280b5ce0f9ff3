"""Notebook 07: its widgets say what the bytes say, its pictures cover the whole file."""

import itertools

import numpy as np
import pytest

from labkit.course.chapters.exercises_07_bits import BUILT, bits_per_weight
from labkit.course.widgets_07_block import BlockExplorer
from labkit.course.widgets_07_memory import GIB, MemoryExplorer
from labkit.course.widgets_07_pictures import (
    block_map,
    block_runs,
    cost_of_types,
    file_map,
    file_runs,
    header_map,
    part_of,
    type_map,
)
from labkit.formats.gguf.mix import ModelFacts, choose_types
from labkit.formats.gguf.reader import GgufFile
from labkit.formats.gguf.values import string
from labkit.formats.gguf.writer import Declared, GgufWriter
from labkit.quantize import gguf
from labkit.quantize.gguf_types import BLOCK_TYPES
from labkit.quantize.kquants import unpack_pairs


@pytest.fixture
def block():
    weights = np.random.default_rng(0).standard_normal(256).astype(np.float32)
    return gguf.quantize(weights, "Q4_K", loop="plain")[0]


@pytest.mark.parametrize("name", BUILT)
def test_the_exercise_counts_the_bits_that_the_types_have(name):
    assert bits_per_weight(*BUILT[name]) == BLOCK_TYPES[name].bits_per_weight


def test_flipping_the_chosen_byte_changes_the_weights_that_it_names(block):
    box = BlockExplorer(block)
    before = gguf.dequantize(block, "Q4_K", loop="plain")[0]
    for at in (16, 47, 48, 143):
        box.byte.value = at
        broken = block.copy()
        broken[at] ^= 0x11
        after = gguf.dequantize(broken, "Q4_K", loop="plain")[0]
        changed = np.flatnonzero(before != after).tolist()
        assert [f"weight {index}," in box.meaning for index in changed] == [True, True]


def test_the_scales_are_those_of_the_block(block):
    box = BlockExplorer(block)
    scales, mins = (part[0] for part in unpack_pairs(block[None, 4:16]))
    for at in range(4):
        box.byte.value = 4 + at
        assert f"scale {at} = {scales[at]};" in box.meaning
        assert f"scale {at + 4} = {scales[at + 4]}" in box.meaning
        box.byte.value = 8 + at
        assert f"min {at} = {mins[at]};" in box.meaning
        box.byte.value = 12 + at
        assert f"scale {at + 4} = {scales[at + 4]};" in box.meaning
        assert f"min {at + 4} = {mins[at + 4]}" in box.meaning


def test_every_byte_has_words_and_a_picture_of_its_own(block):
    box = BlockExplorer(block)
    seen = {box.picture.value}
    for at in (1, 3, 9, 100):
        box.byte.value = at
        assert box.picture.value not in seen and f"byte {at} = " in box.text.value
        seen.add(box.picture.value)


def test_the_best_type_that_fits_wins():
    types = {"large": (8.0, 0.1), "middle": (5.0, 0.4), "small": (4.0, 0.2)}
    box = MemoryExplorer(types, "KL")
    box.weights.value, box.cache.value = 8.0, 1.0
    assert box.gibibytes("small") == pytest.approx(4e9 / GIB + 1)
    first = box.picture.value
    for limit, best in ((10.0, "large"), (6.0, "small"), (4.0, None)):
        box.limit.value = limit
        assert box.best == best
    assert box.picture.value != first and "None" in box.picture.value


def test_the_map_of_a_file_leaves_no_byte_out(tmp_path):
    path = tmp_path / "a.gguf"
    names = ("token_embd.weight", "blk.0.attn_q.weight", "blk.0.ffn_up.weight", "output.weight")
    declared = [Declared(name, (8, 32), "F32") for name in names]
    metadata = {"general.architecture": string("llama")}
    with GgufWriter(path, metadata, declared) as writer:
        for name in names:
            writer.write(name, np.zeros((8, 32), np.float32))
    with GgufFile(path) as file:
        runs = file_runs(file)
        first = file.tensors[names[0]].offset
    assert [part for part, *_ in runs] == [
        "metadata", "table of tensors", "embedding", "attention", "MLP", "head, other",
    ]  # fmt: skip
    assert runs[0][1] == 0 and runs[-1][2] == path.stat().st_size
    assert all(one[2] == other[1] for one, other in itertools.pairwise(runs))
    # The table: its first entry begins with the length of the first name.
    data = path.read_bytes()
    assert data[runs[1][1]] == len(names[0]) and runs[2][1] == first
    drawn = file_map(runs, rows=4).axes[0].collections
    covered = sum(p.get_extents().width for c in drawn for p in c.get_paths())
    assert covered == pytest.approx(len(data))
    assert part_of("blk.0.attn_norm.weight") == "norms"


def test_the_maps_of_bytes_and_types_have_a_square_for_each(block):
    kind = BLOCK_TYPES["Q4_K"]
    assert len(block_map(kind, block.tobytes(), 3).axes[0].patches) == 145
    assert block_runs(kind)[-1] == ("codes 192 to 255", 112, 144)
    assert block_runs(BLOCK_TYPES["Q4_0"])[-1] == ("qs", 2, 18)
    runs = [("magic", 0, 4), ("version", 4, 8)]
    assert len(header_map(b"GGUF\x03\0\0\0", runs).axes[0].patches) == 8
    shapes = {
        f"blk.{n}.{role}.weight": (256, 256) for n in range(8) for role in ("attn_v", "ffn_up")
    }
    chosen = choose_types(shapes, "Q4_K_M", ModelFacts("llama", 8, 4, 2))
    types = {name: choice.type_name for name, choice in chosen.items()}
    squares = type_map(types, "Q4_K_M").axes[0]
    assert len(squares.patches) == 16
    assert [text.get_text() for text in squares.texts].count("Q6_K") == 4


def test_every_type_is_drawn_on_both_sides_and_named_on_one():
    results = {"Q8_0": (8.5, 10.0, 1e-3), "Q4_K_M": (5.0, 11.0, 1e-2), "IQ4_XS": (4.3, 12.0, 2e-2)}
    left, right = cost_of_types(results, 10.0, 10**6).axes
    drawn = {tuple(map(float, (*line.get_xdata(), *line.get_ydata()))) for line in right.lines}
    assert drawn == {(bits, divergence) for bits, _, divergence in results.values()}
    assert {text.get_text() for text in right.texts} == set(results)
    sizes = {float(line.get_xdata()[0]): float(line.get_ydata()[0]) for line in left.lines[:3]}
    assert sizes[0.625] == pytest.approx(10.0)
    assert len(right.get_legend().get_texts()) == 3
