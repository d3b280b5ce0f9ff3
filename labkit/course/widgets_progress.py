"""The learner's progress as a widget: bars, a button to read it again, and plain text beside it.

The text form is what a notebook saved without widget state shows, and what its tests compare.
"""

from __future__ import annotations

from typing import Any

import ipywidgets as widgets

from labkit.course import progress
from labkit.course.standing import ChapterStanding, course_standing, standing_text


class ProgressView(widgets.VBox):
    """A bar a chapter. `text` is the same as plain text, as it was when last read."""

    def __init__(self) -> None:
        self._button = widgets.Button(description="Refresh", tooltip="Read the progress again")
        self._button.on_click(lambda _: self.refresh())
        self._rows = widgets.VBox()
        super().__init__([self._rows, self._button])
        self.refresh()

    def refresh(self) -> None:
        """Read the progress again and redraw."""
        standings = course_standing(progress.store().events())
        self.text = standing_text(standings)
        self._rows.children = [_row(standing) for standing in standings]

    def __repr__(self) -> str:
        return self.text

    def _repr_mimebundle_(self, **options: Any) -> Any:
        bundle = super()._repr_mimebundle_(**options)
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        data["text/plain"] = self.text
        return bundle


def _row(standing: ChapterStanding) -> widgets.HBox:
    total = len(standing.exercises)
    left = f", about {standing.minutes_left} min left" if standing.minutes_left else ""
    wide, narrow = widgets.Layout(width="14em"), widgets.Layout(width="18em")
    return widgets.HBox(
        [
            widgets.Label(standing.chapter.notebook, layout=wide),
            widgets.IntProgress(value=standing.passed, max=max(1, total), layout=narrow),
            widgets.Label(f"{standing.passed} of {total} exercises{left}"),
        ]
    )


def course_progress() -> ProgressView:
    """The widget for notebook 00; let it be the last line of a cell."""
    return ProgressView()
