"""Chapter 04: the alpha slider and the pictures show the numbers that labkit computes."""

from __future__ import annotations

import base64
import re

import pytest
import torch

from labkit.core.errors import ShapeError
from labkit.course import figures
from labkit.course import widgets_04_pictures as pictures
from labkit.course.widgets_04_alpha import AlphaSlider
from labkit.course.widgets_04_text import LENGTH, PASSAGES, passage_ids
from labkit.quantize.activation import Dynamic, levels_used
from labkit.quantize.smoothquant import A8_TENSOR, search_alpha


@pytest.fixture
def layers():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 32, generator=generator)
    x[:, 5] *= 40
    weight = torch.randn(16, 32, generator=generator)
    return {"loud": (x, weight), "quiet": (x / x.abs().amax(dim=0), weight)}


def png(slider):
    return base64.b64decode(re.search(r'base64,([^"]+)', slider.picture.value)[1])


def test_the_slider_shows_the_error_of_its_alpha(layers):
    slider = AlphaSlider(layers)
    expected = search_alpha(layers["loud"][0], [layers["loud"][1]])
    for alpha in (0.0, 0.35, 1.0):
        slider.alpha.value = alpha
        assert slider.error == expected.errors[round(alpha * 20)]
        assert f"alpha {alpha:.2f}" in slider.text and slider.text in slider.picture.value


def test_every_control_redraws(layers):
    slider = AlphaSlider(layers)
    seen = [png(slider)]
    slider.alpha.value = 0.9
    seen.append(png(slider))
    slider.layer.value = "quiet"
    seen.append(png(slider))
    assert len(set(seen)) == 3 and "quiet at alpha 0.90" in slider.text


def test_no_layers_are_refused():
    with pytest.raises(ShapeError):
        AlphaSlider({})


def test_the_channel_map_shows_the_maxima_and_names_the_loud():
    maxima = {"a": torch.ones(40), "b": torch.ones(40)}
    maxima["a"][7], maxima["b"][30] = 9.0, 5.0
    fig = pictures.channel_map(maxima)
    shown = fig.axes[0].images[0].get_array()
    assert shown.shape == (2, 80) and shown[0, 14] == shown[0, 15] == 9.0
    labels = [tick.get_text() for tick in fig.axes[0].get_xticklabels()]
    assert {"7", "30"} <= set(labels)


def test_the_crushed_grid_shows_ranges_and_codes(layers):
    x = layers["loud"][0]
    used = levels_used(Dynamic(A8_TENSOR)(x))
    fig = pictures.crushed(x, used, "a layer")
    top, bottom = fig.axes
    assert max(bar.get_height() for bar in top.patches) == pytest.approx(
        float((x.amax(dim=0) - x.amin(dim=0)).max()), rel=1e-5
    )
    assert [bar.get_height() for bar in bottom.patches] == used.tolist()
    assert any("channel 5" in text.get_text() for text in top.texts)


def test_histograms_share_an_axis_and_tell_the_kurtosis(layers):
    x = layers["loud"][0]
    fig = pictures.spread_histograms([("before", x), ("after", x / 2)])
    assert fig.axes[0].get_xlim() == fig.axes[1].get_xlim()
    assert all("kurtosis" in ax.get_title(loc="left") for ax in fig.axes)


def test_curves_and_bars_show_what_they_were_given():
    fig = pictures.alpha_curves({"a": ((0.0, 1.0), (0.1, 0.01), 0.05)})
    line, dotted = fig.axes[0].lines
    assert list(line.get_ydata()) == [0.1, 0.01]
    assert list(dotted.get_ydata()) == [0.05, 0.05]
    bars = pictures.price_bars({"naive": 600.0, "cured": 40.0}, 38.0).axes[0]
    ends = [bar.get_x() + bar.get_width() for bar in bars.patches]
    assert ends == pytest.approx([600.0, 40.0])


def test_passages_need_no_padding():
    from labkit.models.encoder import load_encoder

    model, tokenizer = load_encoder()
    ids = passage_ids(tokenizer)
    assert ids.shape == (len(PASSAGES), LENGTH) and not bool((ids == tokenizer.pad_token_id).any())
    assert model.config.hidden_size == 384


def test_pictures_can_be_shown(layers):
    x = layers["loud"][0]
    picture = figures.to_html(
        pictures.channel_map({"a": x.abs().amax(dim=0)}), "four words are here"
    )
    assert picture.startswith("<img ")
