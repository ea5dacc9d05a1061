"""An analysis for readers: tables of a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from harness.reporting.numbers import NONE, interval, number, p_value, points
from harness.reporting.outcomes.analyse import Analysis, Section
from harness.reporting.outcomes.as_json import notes, over

HOLM = "Holm"


def pictures(analysis: Analysis) -> Iterator[RenderableType]:
    """The mean over tasks first, then single tasks, then what the numbers rest on."""
    primary = analysis.primary
    yield Text(f"Accuracy: {over(primary)}", style="bold")
    yield _accuracy(primary)
    if primary.differences:
        yield Text(f"Difference to {analysis.reference}: {over(primary)}", style="bold")
        yield _differences(primary, HOLM)
    if len(analysis.tasks) > 1:
        for task, section in analysis.tasks.items():
            yield Text(f"{task} (exploratory)", style="bold")
            yield _accuracy(section)
            if section.differences:
                yield _differences(section, "BH")
    if primary.incomplete or primary.left_out:
        yield Text("* on a part of what was measured; see the notes")
    for note in notes(analysis):
        yield Text(f"- {note}")


def _accuracy(section: Section) -> Table:
    table = _table("Mean, %", "95% interval", "SD of seeds", "Seeds", "Items")
    for method, one in section.estimates.items():
        table.add_row(
            Text(method + ("*" if method in section.incomplete else "")),
            points(one.mean),
            Text(interval(one.ci_low, one.ci_high)),
            points(one.sd_seeds),
            str(one.n_seeds),
            str(one.n_items),
        )
    return table


def _differences(section: Section, adjusted: str) -> Table:
    table = _table(
        "Points", "95% interval", "p", f"{adjusted} p", "Flip p", "P(A>B)", "MDE", "Verdict"
    )
    for method, one in section.differences.items():
        alone = one.n_seeds == 1
        table.add_row(
            Text(method + ("*" if method in section.left_out else "")),
            points(one.diff, signed=True),
            Text(interval(one.ci_low, one.ci_high)),
            p_value(one.p),
            p_value(one.p_holm if adjusted == HOLM else one.p_bh),
            NONE if alone else p_value(one.p_sign_flip),
            NONE if alone else number(one.p_improvement, 2),
            points(section.detectable[method]),
            Text(one.verdict, style="bold" if one.verdict in ("better", "worse") else ""),
        )
    return table


def _table(*columns: str) -> Table:
    """Numbers stay on one line each; long names of methods are folded."""
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("Method", min_width=12, overflow="fold")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table
