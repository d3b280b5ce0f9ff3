from __future__ import annotations

import base64
import re

import matplotlib.pyplot as plt
import pytest

from labkit.course import figures

ALT = "A line that rises from <0> to 1."


@pytest.fixture
def shown(monkeypatch):
    """The bundles that were handed to the notebook."""
    bundles = []
    monkeypatch.setattr(figures, "display", lambda bundle, raw: bundles.append(bundle))
    return bundles


def drawn():
    fig, ax = figures.new()
    ax.plot([0, 1], [0, 1])
    return fig


def test_picture_and_alt_text_are_one_element():
    element = figures.to_html(drawn(), ALT)
    assert 'alt="A line that rises from &lt;0&gt; to 1."' in element
    png = base64.b64decode(re.search(r"base64,([^\"]+)", element)[1])
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = (int.from_bytes(png[i : i + 4], "big") for i in (16, 20))
    assert (width, height) == (640, 340)


def test_the_same_figure_gives_the_same_bytes():
    assert figures.to_html(drawn(), ALT) == figures.to_html(drawn(), ALT)


def test_show_carries_the_alt_text_as_plain_text(shown):
    figures.show(drawn(), "  Two   lines that\ncross once. ")
    assert shown[0]["text/plain"] == "Figure: Two lines that cross once."
    assert shown[0]["text/html"].startswith("<img ")


@pytest.mark.parametrize("alt", ["", "   ", "a plot", "error of formats"])
def test_an_alt_text_that_says_nothing_is_refused(alt):
    with pytest.raises(ValueError, match="what the picture shows"):
        figures.show(drawn(), alt)


def test_a_pyplot_figure_is_not_left_open(shown):
    fig, _ = plt.subplots()
    figures.show(fig, ALT)
    assert not plt.fignum_exists(fig.number)


def test_what_is_drawn_later_has_the_style_too():
    _, ax = figures.new()
    ax.plot([0, 1], [0, 1], label="a line")
    assert ax.get_lines()[0].get_linewidth() == figures.STYLE["lines.linewidth"]
    assert not ax.legend().get_frame_on()
    assert ax.imshow([[0, 1]]).get_cmap().name == figures.HEAT


def test_a_widget_keeps_its_view_and_gains_a_text(shown):
    import ipywidgets

    figures.show_widget(ipywidgets.IntSlider(), "A slider for the bits.")
    assert shown[0]["text/plain"] == "Widget: A slider for the bits."
    assert "application/vnd.jupyter.widget-view+json" in shown[0]
    assert "text/html" not in shown[0]


def test_a_widget_that_cannot_be_drawn_is_stood_for_by_its_picture(shown):
    import ipywidgets

    picture = figures.to_html(drawn(), ALT)
    inner = ipywidgets.VBox([ipywidgets.HTML("<b>words</b>"), ipywidgets.HTML(picture)])
    figures.show_widget(ipywidgets.HBox([ipywidgets.IntSlider(), inner]), "A slider and a line.")
    assert shown[0]["text/html"] == picture


def test_levels_are_drawn_where_they_are():
    _, ax = figures.new()
    figures.levels(ax, [-1.0, 0.0, 2.0])
    assert list(ax.lines[0].get_xdata()) == [-1.0, 0.0, 2.0]
