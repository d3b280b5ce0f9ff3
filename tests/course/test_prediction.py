from __future__ import annotations

import pytest

from labkit.course import prediction
from labkit.course.prediction import Prediction, predict

QUESTION = "How many times does the error grow?"
OPTIONS = ["under 2", "2 to 10", "over 10"]


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch):
    monkeypatch.setattr(prediction, "_KEPT", {})


@pytest.fixture
def shown(monkeypatch):
    widgets = []
    monkeypatch.setattr(
        prediction, "show_widget", lambda widget, alt: widgets.append((widget, alt))
    )
    return widgets


def test_without_a_guess_the_measurement_stands_alone(shown, capsys):
    predict(QUESTION, OPTIONS).compare("3.1 times", correct="2 to 10")
    assert capsys.readouterr().out == "no guess kept; measured: 3.1 times\n"


@pytest.mark.parametrize(
    ("chosen", "verdict"), [("2 to 10", "as you said"), ("over 10", "not as you said: 2 to 10")]
)
def test_a_chosen_guess_is_shown_beside_the_measurement(shown, capsys, chosen, verdict):
    guess = predict(QUESTION, OPTIONS)
    box, alt = shown[0]
    assert QUESTION in alt and "2 to 10" in alt
    box.children[1].value = chosen
    assert box.children[2].value == "guess kept"
    guess.compare("3.1 times", correct="2 to 10")
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"your guess: {chosen}", "measured:   3.1 times", verdict]


def test_a_typed_guess_can_be_withdrawn(shown, capsys):
    guess = predict(QUESTION)
    field = shown[0][0].children[1]
    field.value = "7"
    assert guess.guess == "7"
    field.value = ""
    guess.compare(3)
    assert capsys.readouterr().out == "no guess kept; measured: 3\n"


def test_running_the_cell_again_keeps_the_guess(shown):
    predict(QUESTION, OPTIONS).keep("over 10")
    assert predict(QUESTION, OPTIONS).guess == "over 10"
    assert shown[1][0].children[1].value == "over 10"
    assert Prediction("another question").guess is None


def test_wrong_declarations_are_refused():
    with pytest.raises(ValueError, match="two different"):
        Prediction(QUESTION, ["same", "same"])
    with pytest.raises(ValueError, match="none of"):
        Prediction(QUESTION, OPTIONS).keep("42")
    with pytest.raises(ValueError, match="no option"):
        Prediction(QUESTION, OPTIONS).compare(3, correct="3")
    with pytest.raises(ValueError, match="no option"):
        Prediction(QUESTION).compare(3, correct="3")
