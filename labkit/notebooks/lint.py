"""All rules over one notebook."""

from __future__ import annotations

from labkit.notebooks import rules_code, rules_outputs, rules_text
from labkit.notebooks.findings import Finding, Subject
from labkit.notebooks.source import Pair, differences

RULES = (*rules_text.RULES, *rules_code.RULES, *rules_outputs.RULES)


def lint(pair: Pair) -> list[Finding]:
    """Everything that is wrong with a built notebook, out of step with its source included.

    Raises:
        NotebookError: the notebook was never built.
    """
    stale = [Finding(pair.name, None, "in-step", problem) for problem in differences(pair)]
    notebook = pair.read()
    if not notebook.cells:
        return [*stale, Finding(pair.name, None, "header", "the notebook is empty")]
    subject = Subject(pair.name, notebook, pair.notebook)
    return stale + [finding for rule in RULES for finding in rule(subject)]
