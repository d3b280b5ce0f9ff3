"""All rules over one notebook."""

from __future__ import annotations

from labkit.notebooks import rules_code, rules_outputs, rules_text
from labkit.notebooks.findings import Finding, Subject
from labkit.notebooks.source import Pair, differences, notebook_from

SOURCE_RULES = (*rules_text.RULES, *rules_code.RULES)
RULES = (*SOURCE_RULES, *rules_outputs.RULES)


def lint(pair: Pair) -> list[Finding]:
    """Everything that is wrong with a notebook; not built, or out of step with its source, too."""
    stale = [Finding(pair.name, None, "in-step", problem) for problem in differences(pair)]
    if not pair.notebook.exists():
        return stale + lint_source(pair)
    subject = Subject(pair.name, pair.read(), pair.notebook)
    return stale + [finding for rule in RULES for finding in rule(subject)]


def lint_source(pair: Pair) -> list[Finding]:
    """What can be seen without running anything: the rules of texts and of code."""
    subject = Subject(pair.name, notebook_from(pair.source), pair.notebook)
    return [finding for rule in SOURCE_RULES for finding in rule(subject)]
