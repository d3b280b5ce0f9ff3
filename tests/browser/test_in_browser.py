"""A learner in JupyterLab: run a notebook, move a slider, answer an exercise wrong, then right."""

from __future__ import annotations

from labkit.course.registry import get

from .lab_page import failures

EXERCISE = "02.1"


def run_all_without_error(notebook_page):
    """Run All Cells; every cell ran once and in order, and none failed."""
    cells = notebook_page.run_all()
    assert failures(cells) == []
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert sum(bool(cell["outputs"]) for cell in cells) > len(cells) / 2
    assert not notebook_page.page.locator(".jp-Dialog").count()


def test_the_first_notebook_runs_from_top_to_bottom_by_the_menu(notebook_page, screenshots):
    notebook_page.open("notebooks/00_start_here.ipynb")
    notebook_page.page.screenshot(path=screenshots / "00-opened.png")
    run_all_without_error(notebook_page)
    notebook_page.page.screenshot(path=screenshots / "00-ran.png")
    notebook_page.scroll_to(".jp-OutputArea-output img")
    notebook_page.page.screenshot(path=screenshots / "00-picture.png")


def test_a_slider_moves_the_picture_and_a_check_tells_wrong_from_right(notebook_page, screenshots):
    notebook_page.open("notebooks/02_scale_zero_point.ipynb")
    run_all_without_error(notebook_page)

    before, after = notebook_page.press_on_slider("ArrowRight", times=3)
    notebook_page.page.screenshot(path=screenshots / "slider.png")
    for picture in (before, after):
        assert picture["src"].startswith("data:image/png;base64,")
        assert len(picture["alt"].split()) > 3
    assert after["src"] != before["src"]

    exercise = get(EXERCISE)
    mutant = exercise.mutants[0]
    check = f'\n\ncheck("{EXERCISE}", {exercise.name})'
    said = notebook_page.answer(EXERCISE, mutant.text(exercise.solution) + check)
    notebook_page.page.screenshot(path=screenshots / "wrong.png")
    assert f"{EXERCISE} {exercise.title}: not yet" in said
    assert " ".join(mutant.message.split()) in said

    said = notebook_page.answer(EXERCISE, exercise.solution + check)
    notebook_page.page.screenshot(path=screenshots / "right.png")
    assert said == f"{EXERCISE} {exercise.title}: passed"
