"""Guess first, then measure: a question whose answer is kept until the measurement is there.

    guess = predict("How many times does the error grow?", ["under 2", "2 to 10", "more"])

and, some cells later, when the figure is known:

    guess.compare(f"{ratio:.1f} times", correct="under 2" if ratio < 2 else "2 to 10")

In a kernel that nobody answered (Run All, a test), `compare` prints the measurement alone.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from labkit.course.figures import show_widget

_KEPT: dict[str, str] = {}
"""Answers by question, so that running a cell again does not lose them."""


class Prediction:
    """The question, and the learner's guess as soon as there is one."""

    def __init__(self, question: str, options: Sequence[str] | None = None) -> None:
        self.question = question
        self.options = tuple(options) if options is not None else None
        if self.options is not None and len(set(self.options)) < 2:
            raise ValueError(f"{question!r}: offer at least two different options")

    @property
    def guess(self) -> str | None:
        """What the learner chose or typed, or None."""
        return _KEPT.get(self.question)

    def keep(self, answer: str | None) -> None:
        """Keep a guess, as the widget does; None or an empty text forgets it.

        Raises:
            ValueError: `answer` is none of the options.
        """
        if not answer:
            _KEPT.pop(self.question, None)
            return
        if self.options is not None and answer not in self.options:
            raise ValueError(f"{answer!r} is none of {', '.join(self.options)}")
        _KEPT[self.question] = answer

    def compare(self, measured: object, correct: str | None = None) -> None:
        """Print the guess beside what was measured.

        Args:
            measured: the figure, rounded by the caller so that it reads the same everywhere.
            correct: the option that the measurement bears out, where there are options.

        Raises:
            ValueError: `correct` is none of the options.
        """
        if correct is not None and (self.options is None or correct not in self.options):
            raise ValueError(f"{correct!r} is no option of {self.question!r}")
        if self.guess is None:
            print(f"no guess kept; measured: {measured}")
            return
        print(f"your guess: {self.guess}")
        print(f"measured:   {measured}")
        if correct is not None:
            print("as you said" if self.guess == correct else f"not as you said: {correct}")

    def _widget(self) -> Any:
        import ipywidgets as widgets

        if self.options is None:
            field = widgets.Text(value=self.guess or "", placeholder="your guess")
        else:
            field = widgets.RadioButtons(
                options=self.options, value=self.guess, layout=widgets.Layout(width="max-content")
            )
        kept = widgets.HTML("guess kept" if self.guess else "")

        def remember(change: dict[str, Any]) -> None:
            self.keep(change["new"])
            kept.value = "guess kept" if self.guess else ""

        field.observe(remember, names="value")
        question = widgets.HTML(f"<b>Your guess:</b> {html.escape(self.question)}")
        return widgets.VBox([question, field, kept])


def predict(question: str, options: Sequence[str] | None = None) -> Prediction:
    """Ask `question` below the cell (choices, or a text field without `options`); keep the guess.

    Raises:
        ValueError: fewer than two different options.
    """
    prediction = Prediction(question, options)
    choices = f" ({' / '.join(prediction.options)})" if prediction.options else ""
    show_widget(prediction._widget(), alt=f"your guess, please: {question}{choices}")
    return prediction
