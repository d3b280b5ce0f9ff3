"""`labkit doctor`: one table of what the course found on this machine."""

from __future__ import annotations

from importlib import metadata

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from labkit.environment.finding import Finding, State
from labkit.environment.machine import check_machine
from labkit.environment.packages import check_packages
from labkit.environment.parts import check_optional, check_parts

app = typer.Typer(add_completion=False)

STYLES = {State.FINE: "green", State.NOTE: "yellow", State.STOPS: "bold red"}


def examine() -> dict[str, list[Finding]]:
    """Every finding, under the title of its part of the table."""
    try:
        packages = check_packages()
    except metadata.PackageNotFoundError:
        packages = [Finding("labkit", "not installed", State.STOPS, "make setup")]
    return {
        "Machine": check_machine(),
        "Packages": packages,
        "Course": check_parts(),
        "Optional": check_optional(),
    }


def table(sections: dict[str, list[Finding]]) -> Table:
    """The findings as one table; what is not fine has its remedy in the last column."""
    drawn = Table("", "found", "", "what to do", box=None, padding=(0, 2, 0, 0))
    drawn.columns[1].overflow = drawn.columns[3].overflow = "fold"
    for title, findings in sections.items():
        drawn.add_row(f"[bold]{escape(title)}[/bold]", "", "", "")
        for finding in findings:
            state = f"[{STYLES[finding.state]}]{finding.state.value}[/]"
            words = map(escape, (f"  {finding.subject}", finding.found, finding.advice))
            subject, found, advice = words
            drawn.add_row(subject, found, state, advice)
    return drawn


@app.command()
def doctor() -> None:
    """Check that this machine can run the course; the exit code is 1 if it cannot."""
    sections = examine()
    console = Console()
    console.print(table(sections))
    stopping = [
        finding.subject
        for findings in sections.values()
        for finding in findings
        if finding.state is State.STOPS
    ]
    if stopping:
        console.print(f"\n[bold red]The course cannot run:[/] {escape(', '.join(stopping))}.")
        raise typer.Exit(1)
    console.print("\nThe course can run.")


if __name__ == "__main__":
    app(prog_name="labkit doctor")
