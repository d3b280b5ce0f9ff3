"""Rules for what a run left: nothing failed, nothing is blind, nothing belongs to one machine."""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import nbformat
from nbformat import NotebookNode

from labkit.course.figures import FEWEST_ALT_WORDS
from labkit.notebooks.cleaning import VIEW, text_of
from labkit.notebooks.findings import Finding, Subject, emoji_in
from labkit.notebooks.solving import tags

MOST_BYTES = 1_500_000
ADDRESS = re.compile(r"\bat 0x[0-9a-fA-F]{6,}")
PATH = re.compile(r"(?<![\w.])(/(home|root|tmp|Users|var|usr|opt|mnt|work)/\w|[A-Z]:\\\w)")
TIME = re.compile(
    r"\b\d+\.\d+ ?(ns|us|µs|ms|s|sec|seconds|min|minutes)\b|\b\d+(\.\d+)? (ms|µs|us)\b"
)
PROGRESS_BAR = re.compile(r"\d+%\|.*\| *\d+/\d+")
IMG = re.compile(r"<img\b[^>]*>")
BARE_PICTURES = {"image/png", "image/jpeg", "image/svg+xml"}


def executed(subject: Subject) -> Iterator[Finding]:
    """Every code cell ran once, in order; nbval compares nothing below a null count."""
    counts = [(number, cell.execution_count) for number, cell in subject.cells("code")]
    for wanted, (number, count) in enumerate(counts, 1):
        if count != wanted:
            yield subject.finding(number, "executed", f"execution count {count}, not {wanted}")


def outputs_of(subject: Subject) -> Iterator[tuple[int, NotebookNode, dict[str, Any]]]:
    """Cell number, cell and output, for every output."""
    for number, cell in subject.cells("code"):
        for output in cell.outputs:
            yield number, cell, output


def no_failure(subject: Subject) -> Iterator[Finding]:
    """No error, no warning."""
    for number, _, output in outputs_of(subject):
        if output.output_type == "error":
            yield subject.finding(number, "error", f"{output.ename}: {output.evalue}")
        elif output.get("name") == "stderr":
            line = output.text.strip().splitlines()[:1]
            yield subject.finding(number, "stderr", f"writes to stderr: {' '.join(line)[:100]}")


def pictures(subject: Subject) -> Iterator[Finding]:
    """Whoever cannot see a figure or a widget is told what it shows, each time something else."""
    texts: Counter[str] = Counter()
    for number, _, output in outputs_of(subject):
        data = output.get("data", {})
        if BARE_PICTURES & set(data):
            yield subject.finding(number, "alt-text", "a bare picture: use figures.show(fig, alt=)")
        for element in IMG.findall(data.get("text/html", "")):
            alt = html.unescape(next(iter(re.findall(r'\balt="([^"]*)"', element)), ""))
            texts[alt] += 1
            if len(alt.split()) < FEWEST_ALT_WORDS:
                yield subject.finding(number, "alt-text", f"alt text {alt!r} says nothing")
            elif texts[alt] > 1:
                yield subject.finding(number, "alt-text", f"the same alt text again: {alt!r}")
        if text_of(output).startswith("<IPython.core.display"):
            yield subject.finding(
                number, "blind-output", "nbval compares nothing of this: print it, or give it text"
            )
        if VIEW in data:
            yield subject.finding(number, "alt-text", "a bare widget: use figures.show_widget")


def any_machine(subject: Subject) -> Iterator[Finding]:
    """Nothing that is true of the author's machine alone."""
    for number, cell, output in outputs_of(subject):
        text = text_of(output)
        if found := PATH.search(text):
            yield subject.finding(number, "path", f"a path of one machine: {found[0]!r}...")
        if PROGRESS_BAR.search(text):
            yield subject.finding(number, "progress-bar", "a progress bar stays in the output")
        if found := ADDRESS.search(text):
            yield subject.finding(number, "address", f"an object's address: {found[0]!r}")
        if "nbval-ignore-output" not in tags(cell) and (found := TIME.search(text)):
            yield subject.finding(
                number, "time", f"{found[0]!r} is compared; tag the cell nbval-ignore-output"
            )
        if signs := emoji_in(text):
            yield subject.finding(number, "emoji", f"emoji {signs} in the output")


def whole(subject: Subject) -> Iterator[Finding]:
    """Small enough to load at once, and with a kernel, or JupyterLab asks for one."""
    size = len(nbformat.writes(subject.notebook).encode("utf-8"))
    if size > MOST_BYTES:
        yield subject.finding(None, "size", f"{size / 1e6:.2f} MB; {MOST_BYTES / 1e6} at most")
    if subject.notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        yield subject.finding(None, "kernelspec", "no python3 kernelspec in the metadata")


RULES = (executed, no_failure, pictures, any_machine, whole)
