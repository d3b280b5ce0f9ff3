"""README.md says what the results files say, and names nothing that is not there."""

import json
import re

from labkit.cli import COMMANDS
from labkit.readme import RESULTS, ROOT, filled

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_figures_come_from_the_results():
    assert filled(TEXT) == TEXT


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", TEXT):
        assert (ROOT / target).exists(), target


def test_commands_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`make ([a-z-]+)", TEXT):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for command in re.findall(r"`labkit ([a-z-]+)", TEXT):
        assert command in COMMANDS, command


def test_every_result_says_how_it_was_made():
    for path in RESULTS.glob("*.json"):
        result = json.loads(path.read_text(encoding="utf-8"))
        assert "command" in result or all("command" in row for row in result["rows"]), path


def test_every_chapter_is_on_the_map():
    for path in sorted((ROOT / "notebooks").rglob("[0-9p]*_*.ipynb")):
        assert path.relative_to(ROOT).as_posix() in TEXT, path.name
