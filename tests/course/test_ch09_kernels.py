"""Notebook 09: its exercises speak of the kernels' own layout, its pictures of its numbers."""

import pytest
import torch

from labkit.core.scheme import QuantScheme
from labkit.course.chapters.exercises_09_gemv import group_gemv
from labkit.course.chapters.exercises_09_int8 import int8_product
from labkit.course.chapters.exercises_09_layout import pack_halves
from labkit.course.widgets_09_pictures import ladder, layouts, programs, roofline, speedups
from labkit.course.widgets_09_roofline import BITS, MACHINES, RooflineExplorer
from labkit.evaluate.roofline import Roof
from labkit.kernels import Int4Weight, Int8Weight
from labkit.quantize import rtn


@pytest.mark.parametrize(("group", "chunk"), [(128, 128), (32, 32)])
def test_the_exercise_asks_for_the_kernels_layout(group, chunk):
    torch.manual_seed(0)
    quantized = rtn.quantize(torch.randn(6, 256), QuantScheme(4, True, "group", group))
    packed = Int4Weight.from_quantized(quantized)
    assert packed.chunk == chunk
    codes = (quantized.codes + 8).to(torch.uint8)
    assert torch.equal(pack_halves(codes, chunk), packed.codes)


def test_the_exercise_asks_for_the_products_of_an_int8_weight():
    torch.manual_seed(0)
    weight = Int8Weight.from_quantized(rtn.quantize(torch.randn(64, 8), QuantScheme(8)))
    w_plus = weight.codes[0].transpose(0, 1).reshape(64, 8)
    x = torch.randint(-127, 128, (3, 8), dtype=torch.int8)
    assert torch.equal(int8_product(x, w_plus), (x.long() @ weight.rows().long().T).int())


def test_group_by_group_is_the_product_with_the_dequantized_weight():
    torch.manual_seed(0)
    scheme = QuantScheme(4, False, "group", 16)
    quantized, x = rtn.quantize(torch.randn(5, 64), scheme), torch.randn(64)
    y = group_gemv(quantized.codes, quantized.scale, quantized.zero_point, x)
    assert torch.allclose(y, quantized.dequantize() @ x, atol=1e-5)


def test_the_sliders_speak_of_the_layer():
    box = RooflineExplorer()
    seen = {box.picture.value}
    for control, value in ((box.bits, "4 bits, groups of 128"), (box.tokens, 2048),
                           (box.machine, "NVIDIA A100 80 GB")):  # fmt: skip
        control.value = value
        assert box.picture.value not in seen
        seen.add(box.picture.value)
    assert "arithmetic sets the pace" in box.text.value and box.speedup == 1
    box.tokens.value = 1
    assert "memory sets the pace" in box.text.value
    assert box.speedup == pytest.approx(16 / 4.125, rel=0.01)
    assert "2048" not in box.picture.value.split("src=")[0]


def test_makers_machines_have_their_ridge_where_their_papers_say():
    assert MACHINES["NVIDIA A100 80 GB"].ridge == pytest.approx(153, abs=1)
    assert set(BITS.values()) == {16.0, 4.125, 8 + 16 / 4096}


def test_a_roofline_has_its_roofs_and_points():
    roof = Roof(20e9, 100e9)
    points = {"decode, p": (1.0, 5e9), "decode, q": (2.0, 7e9), "prefill, p": (3.0, 9e9)}
    (ax,) = roofline({"a": roof, "b": Roof(20e9, 400e9)}, points).axes
    xs, ys = ax.lines[0].get_data()
    assert max(ys) == 100 and ys[0] == pytest.approx(20 * xs[0])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b", *points]
    p, q, r = ax.lines[2:]
    assert p.get_data() == ([1.0], [5.0])
    assert p.get_color() == r.get_color() != q.get_color()
    assert p.get_marker() == q.get_marker() != r.get_marker()


def test_rungs_keep_their_order_and_floors_their_place():
    (ax,) = ladder({"slow": (500.0, 32), "fast": (0.05, 4)}, {"bytes": 0.02}).axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["slow", "fast"]
    assert [bar.get_width() for bar in ax.patches] == [500.0, 0.05]
    assert ax.get_xlim()[0] < 0.02 < ax.get_xlim()[1]


def test_layouts_show_every_code_once_and_what_an_and_gives():
    for ax, low in zip(layouts(8).axes, ([0, 2, 4, 6], [0, 1, 2, 3]), strict=True):
        numbers = [int(text.get_text()) for text in ax.texts if text.get_text().isdigit()]
        assert sorted(numbers) == sorted([*range(8), *low])


def test_masked_places_are_those_outside_of_the_matrix():
    (ax,) = programs(5, 6, 4, 8).axes
    masked = [patch for patch in ax.patches if patch.get_hatch()]
    assert len(masked) == 8 * 8 - 5 * 6
    assert [t.get_text() for t in ax.texts] == ["program 0", "program 1"]


def test_speedups_mark_the_crossing_only_where_there_is_one():
    for crossing, lines in ((3.0, 4), (0.0, 3)):
        (ax,) = speedups([1, 2, 4], [4.0, 2.0, 0.5], [7.0, 3.0, 0.8], crossing).axes
        assert len(ax.lines) == lines
