"""Rules for what is read: the header, the length of a text, the order of the last sections."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from labkit.notebooks.findings import Finding, Subject, emoji_in
from labkit.notebooks.solving import tags
from labkit.notebooks.source import source_of

TEXT_WORDS, STATEMENT_WORDS, ANSWER_WORDS = 60, 120, 180
FEWEST_INTERVIEW_CELLS = 3
INTERVIEW, READING = "Explain it in an interview", "What to read"
KNOWN_TAGS = re.compile(r"nbval-ignore-output|exercise-text|interview|exercise-\d\d\.\d{1,2}")

FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]*)[^)]*\)")
HEADING = re.compile(r"^(#{1,6}) +(.+?) *$", re.MULTILINE)


def words(markdown: str) -> int:
    """Words that a reader reads: no markup, no address of a link, no sign without a letter."""
    text = LINK.sub(r"\2", markdown)
    text = re.sub(r"<[^>]+>", " ", text)
    return sum(any(sign.isalnum() for sign in word) for word in text.split())


def prose(markdown: str) -> str:
    """The text without fenced code."""
    return FENCE.sub("", markdown)


def header(subject: Subject) -> Iterator[Finding]:
    """The first cell says what one will be able to do, how long it takes, what comes before."""
    first = next(iter(subject.notebook.cells), None)
    if first is None or first.cell_type != "markdown":
        yield subject.finding(None, "header", "the first cell must be the header")
        return
    number = subject.chapter.upper()
    needed = {
        f"a title `# {number} · ...`": rf"\A# {number} · \S",
        "`**You will be able to**` and a list": r"^\*\*You will be able to\*\*\s*\n+(- \S.*\n?)+",
        "`**Time:** N minutes`": r"^\*\*Time:\*\* \d+ minutes",
        "`**Before this:** ...`": r"\*\*Before this:\*\* \S",
    }
    for what, pattern in needed.items():
        if not re.search(pattern, first.source, re.MULTILINE):
            yield subject.finding(0, "header", f"the header lacks {what}")


def length(subject: Subject) -> Iterator[Finding]:
    """A text cell says one thing."""
    for number, cell in subject.cells("markdown"):
        limit = TEXT_WORDS
        if number == 0 or "exercise-text" in tags(cell):
            limit = STATEMENT_WORDS
        elif "interview" in tags(cell):
            limit = ANSWER_WORDS
        count = words(cell.source)
        if count > limit:
            yield subject.finding(number, "text-length", f"{count} words; {limit} at most")


def sections(subject: Subject) -> Iterator[Finding]:
    """One title; at the end the interview with folded model answers, then the reading list."""
    found = [
        (len(marks), title, number)
        for number, cell in subject.cells("markdown")
        for marks, title in HEADING.findall(prose(cell.source))
    ]
    for level, title, number in found[1:]:
        if level == 1:
            yield subject.finding(number, "title", f"a second title: {title!r}; use ##")
    second = [title for level, title, _ in found if level == 2]
    if second[-2:] != [INTERVIEW, READING]:
        yield subject.finding(
            None, "last-sections", f"the last two ## sections must be {INTERVIEW!r}, {READING!r}"
        )
        return
    reading = next(n for level, title, n in reversed(found) if (level, title) == (2, READING))
    rest = "\n".join(c.source for n, c in subject.cells("markdown") if n >= reading)
    if not re.search(r"^- .*\]\(", rest, re.MULTILINE):
        yield subject.finding(reading, "last-sections", f"{READING!r} needs a list with links")


def interview(subject: Subject) -> Iterator[Finding]:
    """Questions with a model answer that stays folded until the reader wants it."""
    cells = [(n, c) for n, c in subject.cells("markdown") if "interview" in tags(c)]
    if subject.chapter != "00" and len(cells) < FEWEST_INTERVIEW_CELLS:
        yield subject.finding(
            None, "interview", f"{len(cells)} interview cells; {FEWEST_INTERVIEW_CELLS} at least"
        )
    for number, cell in cells:
        if not re.search(r"<details>.*<summary>.*</details>", cell.source, re.DOTALL):
            yield subject.finding(number, "interview", "the answer must be in <details><summary>")


def links(subject: Subject) -> Iterator[Finding]:
    """Links lead somewhere, pictures have an alt text."""
    for number, cell in subject.cells("markdown"):
        for picture, text, target in LINK.findall(prose(cell.source)):
            if picture and len(text.split()) < 4:
                yield subject.finding(number, "alt-text", f"the picture {target} has no alt text")
            local = target.split("#")[0]
            if ":" in target or not local:
                continue
            file = Path(os.path.normpath(subject.path.parent / local))
            unbuilt = file.suffix == ".ipynb" and source_of(file).exists()
            if not file.exists() and not unbuilt:
                yield subject.finding(number, "link", f"{target} does not exist")
        if re.search(r"<img(?![^>]*\balt=\"[^\"]+\")", cell.source):
            yield subject.finding(number, "alt-text", "an <img> without alt text")


def plain_signs(subject: Subject) -> Iterator[Finding]:
    """No pictographs, no notes to oneself; tags that mean something."""
    for number, cell in enumerate(subject.notebook.cells):
        if signs := emoji_in(cell.source):
            yield subject.finding(number, "emoji", f"emoji {signs}")
        if note := re.search(r"\b(TODO|FIXME|XXX)\b", cell.source):
            yield subject.finding(number, "unfinished", f"{note[0]} in the text")
        for tag in tags(cell):
            if not KNOWN_TAGS.fullmatch(tag):
                yield subject.finding(number, "tag", f"unknown tag {tag!r}")


RULES = (header, length, sections, interview, links, plain_signs)
