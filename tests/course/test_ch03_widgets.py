"""Chapter 03: the granularity picker and the pictures show the numbers that labkit computes."""

from __future__ import annotations

import base64
import re

import numpy as np
import pytest
import torch

from labkit.core.errors import SchemeError
from labkit.core.metrics import sqnr_db
from labkit.core.scheme import QuantScheme
from labkit.course import figures
from labkit.course import widgets_03_pictures as pictures
from labkit.course.widgets_03_granularity import (
    GranularityPicker,
    measure,
    picker_figure,
    scheme_for,
    sharings_for,
)
from labkit.quantize import rtn


@pytest.fixture
def weights():
    generator = torch.Generator().manual_seed(0)
    loudness = torch.linspace(0.1, 2, 24)[:, None]
    return {
        "m.layers.0.up": torch.randn(24, 64, generator=generator) * loudness,
        "m.layers.0.down": torch.randn(24, 32, generator=generator),
    }


def png(picker):
    return base64.b64decode(re.search(r'base64,([^"]+)', picker.picture.value)[1])


@pytest.mark.parametrize(
    ("sharing", "scheme"),
    [
        ("tensor", QuantScheme(4, granularity="tensor")),
        ("channel", QuantScheme(4, granularity="channel")),
        ("group 32", QuantScheme(4, granularity="group", group_size=32)),
    ],
)
def test_sharing_names_a_scheme(sharing, scheme):
    assert scheme_for(sharing, 4) == scheme
    assert scheme_for(sharing, 4, symmetric=False).symmetric is False


@pytest.mark.parametrize("sharing", ["row", "group", "group x", ""])
def test_a_sharing_that_is_none_is_refused(sharing):
    with pytest.raises(SchemeError):
        scheme_for(sharing, 4)


@pytest.mark.parametrize("sharing", ["tensor", "channel", "group 16"])
def test_measured_is_what_round_to_nearest_does(weights, sharing):
    weight = weights["m.layers.0.up"]
    found = measure(weight, scheme_for(sharing, 4))
    quantized = rtn.quantize(weight, scheme_for(sharing, 4))
    assert found.bits_per_weight == quantized.bits_per_weight
    assert found.sqnr_db == sqnr_db(weight, quantized.dequantize())
    assert found.step.shape == found.error.shape == weight.shape
    # Half a step, and what the scale lost when it was stored in float16.
    assert bool((found.error <= found.step * 0.51).all())
    row_max = weight.abs().amax(dim=1)
    if sharing == "channel":
        torch.testing.assert_close(found.step[:, 5] * 7, row_max, rtol=1e-3, atol=0)


def test_every_control_redraws_picture_and_text(weights):
    picker = GranularityPicker(weights)
    seen = {(png(picker), picker.text)}
    for control, value in (
        (picker.sharing, "channel"), (picker.bits, 3), (picker.layer, "m.layers.0.down"),
    ):  # fmt: skip
        control.value = value
        seen.add((png(picker), picker.text))
        expected = measure(
            weights[picker.layer.value], scheme_for(picker.sharing.value, picker.bits.value)
        )
        assert picker.measured.sqnr_db == expected.sqnr_db
        assert f"{expected.sqnr_db:.1f} dB" in picker.text
        assert f'alt="{picker.text}"' in picker.picture.value
    assert len({picture for picture, _ in seen}) == len({text for _, text in seen}) == 4


def test_sharings_that_do_not_divide_a_row_are_not_offered(weights):
    assert GranularityPicker(weights).sharing.options == ("tensor", "channel", "group 32",
                                                          "group 16")  # fmt: skip


def test_a_row_of_576_has_no_groups_of_128():
    names = sharings_for({"a": torch.zeros(2, 576), "b": torch.zeros(2, 1536)})
    assert names == ["tensor", "channel", "group 64", "group 32", "group 16"]


def test_no_matrices_is_an_error():
    with pytest.raises(SchemeError, match="no matrices"):
        GranularityPicker({})


def test_colours_mean_the_same_for_every_sharing(weights):
    everyone = {
        s: measure(weights["m.layers.0.up"], scheme_for(s, 4)) for s in ("tensor", "channel")
    }
    limits = [
        [ax.images[0].get_clim() for ax in picker_figure(everyone, chosen).axes[:2]]
        for chosen in everyone
    ]
    assert limits[0] == limits[1]


def test_pooling_misses_no_element():
    matrix = torch.arange(130.0 * 7).reshape(130, 7)
    largest = pictures.pooled(matrix, torch.amax)
    assert largest.shape == (64, 7)
    assert largest[-1].tolist() == matrix[-1].tolist()
    assert pictures.pooled(matrix[:4], torch.mean).tolist() == matrix[:4].tolist()


def test_maxima_beside_the_heat_map_are_those_of_rows_and_columns(weights):
    weight = weights["m.layers.0.up"]
    fig = pictures.weight_with_maxima(weight, "up")
    top, _, heat, side = fig.axes[:4]
    np.testing.assert_allclose(top.lines[0].get_ydata(), weight.abs().amax(dim=0))
    np.testing.assert_allclose(side.lines[0].get_xdata(), weight.abs().amax(dim=1))
    assert heat.images[0].get_array().max() == pytest.approx(float(weight.abs().max()))


def test_sharing_maps_count_the_scales():
    titles = [ax.get_title(loc="left") or ax.get_title() for ax in pictures.sharing_maps().axes]
    assert [int(re.search(r": (\d+) scale", title)[1]) for title in titles] == [1, 6, 24, 6]


def test_neighbours_in_a_sharing_map_differ_where_their_scales_do():
    _, rows, groups, _ = (ax.images[0].get_array() for ax in pictures.sharing_maps().axes)
    assert (rows[:-1] != rows[1:]).all() and (rows == rows[:, :1]).all()
    assert (groups[:, 3] != groups[:, 4]).all() and (groups[:, 0] == groups[:, 3]).all()


def test_layers_are_sorted_into_kinds_and_blocks():
    values = {
        "model.layers.10.mlp.up": 3.0,
        "model.layers.9.attn.q": 1.0,
        "model.layers.9.mlp.up": 2.0,
    }
    kinds, blocks, table = pictures.by_block(values)
    assert (kinds, blocks) == (["mlp.up", "attn.q"], ["9", "10"])
    np.testing.assert_array_equal(table, [[2.0, 3.0], [1.0, np.nan]])


def test_the_middle_block():
    values = {f"h.{block}.{kind}": block for block in range(12) for kind in ("a", "b")}
    assert pictures.middle_block(values) == {"h.6.a": 6, "h.6.b": 6}


def test_the_maps_of_a_model_share_their_colours():
    fig = pictures.model_maps(
        [("before", {"l.0.q": 10.0, "l.1.q": 12.0}), ("after", {"l.0.q": 18.0, "l.1.q": 20.0})],
        label="SQNR (dB)",
    )
    assert [ax.images[0].get_clim() for ax in fig.axes[:2]] == [(10.0, 20.0)] * 2


def test_a_plain_logarithmic_axis_writes_numbers_out():
    fig, ax = figures.new()
    ax.plot([0, 1], [40, 700])
    pictures.plain_log(ax, "perplexity")
    fig.canvas.draw()
    assert {"50", "100", "200", "500"} <= {label.get_text() for label in ax.get_yticklabels()}
    assert ax.get_ylabel() == "perplexity"
