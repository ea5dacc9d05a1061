"""An analysis as JSON, as tables of a terminal, and the notes that say what its numbers rest on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from harness.reporting.numbers import (
    NONE,
    interval,
    listing,
    number,
    p_value,
    percent,
    plural,
    points,
)
from harness.reporting.outcomes import ALPHA, RANDOM, Analysis, Section
from harness.reporting.outcomes.reader import of_task, seeds_named
from harness.stats import DELTAS, Difference, Estimate, LeftOut

_ESTIMATED = ("mean", "ci_low", "ci_high", "sd_seeds", "n_seeds", "n_items")
_COMPARED = ("diff", "ci_low", "ci_high", "p", "p_sign_flip", "p_floor")
DIFFERENCE_COLUMNS = ("95% interval", "p", "Flip p", "P(A>B)", "MDE")


def as_dict(analysis: Analysis) -> dict[str, Any]:
    """Everything, fit for JSON: shares of one; null where a number is unknown (`notes` say why)."""
    table, primary = analysis.table, analysis.primary
    return {
        "source": table.source,
        "n_rows": table.n_rows,
        "reference": analysis.reference,
        "alpha": ALPHA,
        **_section(primary, "p_holm"),
        "tasks": {task: _section(section, "p_bh") for task, section in analysis.tasks.items()},
        "details": {name: _details(one) for name, one in primary.differences.items()},
        "missing": dict(table.gaps),
        "left_out": {name: _left_out(one) for name, one in primary.left_out.items()},
        "incomplete": {name: _left_out(one) for name, one in primary.incomplete.items()},
        "notes": list(notes(analysis)),
    }


def _section(section: Section, adjusted: str) -> dict[str, Any]:
    differences = section.differences.items()
    return {
        "methods": {name: estimated(one) for name, one in section.estimates.items()},
        "differences": {name: compared(one, adjusted) for name, one in differences},
        "mde": largest_detectable(section),
        "seeds_needed": most_seeds(section),
    }


def largest_detectable(section: Section) -> float | None:
    """The difference that every comparison finds with 80% power; None where none is known."""
    known = [one.detectable for one in section.differences.values()]
    return max((value for value in known if not math.isnan(value)), default=None)


def most_seeds(section: Section) -> dict[str, int | None]:
    """Seeds with which every comparison finds 1, 2 and 3 points; None with one seed."""
    known = [one.seeds_needed for one in section.differences.values() if one.seeds_needed]
    return {delta: max((needed[delta] for needed in known), default=None) for delta in DELTAS}


def estimated(estimate: Estimate) -> dict[str, Any]:
    """A mean; null where a number is unknown."""
    return {name: known(getattr(estimate, name)) for name in _ESTIMATED}


def compared(difference: Difference, adjusted: str | None = None) -> dict[str, Any]:
    """A difference, with its adjusted p and verdict where it has them."""
    entry: dict[str, Any] = {name: known(getattr(difference, name)) for name in _COMPARED}
    if difference.n_seeds == 1:
        entry |= {"p_sign_flip": None, "p_floor": None}
    if adjusted is not None:
        entry |= {adjusted: known(getattr(difference, adjusted)), "verdict": difference.verdict}
    return entry | {"p_improvement": difference.p_improvement}


def known(value: float) -> float | None:
    """A number, or None where it is undefined: JSON has no nan."""
    return None if math.isnan(value) else value


def _details(one: Difference) -> dict[str, Any]:
    return {
        "test": one.test,
        "n_seeds": one.n_seeds,
        "n_items": one.n_items,
        "sd_seeds": known(one.sd_seeds),
        "adjusted_low": one.adjusted_low,
        "adjusted_high": one.adjusted_high,
        "mde": known(one.detectable),
        "seeds_needed": one.seeds_needed,
        "note": one.note,
    }


def _left_out(one: LeftOut) -> dict[str, Any]:
    return {"seeds": list(one.seeds), "items": dict(one.items)}


def notes(analysis: Analysis) -> Iterator[str]:
    """What every number is, what it rests on, and why some are unknown."""
    primary = analysis.primary
    if not analysis.reference_named and analysis.reference != RANDOM:
        yield (
            f"reference: {analysis.reference}, the first method, because none is called "
            f"{RANDOM!r}; --reference names another"
        )
    yield from analysis.table.notes
    yield from _left_out_notes(analysis)
    yield from _interval_notes(analysis)
    if not primary.differences:
        yield "one method only: differences, mde and seeds_needed are unknown"
        return
    yield from _test_notes(primary.differences)
    yield (
        f"p_holm: Holm over {plural(len(primary.differences), 'comparison')} with "
        f"{analysis.reference} on {over(primary)}; better or worse: p_holm < {ALPHA:g} and the "
        "interval at Holm's level excludes 0; anything else is a tie"
    )
    if len(analysis.tasks) > 1:
        yield "single tasks are exploratory: p_bh is Benjamini-Hochberg over methods x tasks"
    yield from _power_notes(primary)


def over(section: Section) -> str:
    """What a section's means are over."""
    several = len(section.tasks) > 1
    return f"the mean over {plural(len(section.tasks), 'task')}" if several else "the mean accuracy"


def _left_out_notes(analysis: Analysis) -> Iterator[str]:
    primary = analysis.primary

    def named(left_out: LeftOut) -> str:
        grid = analysis.table.grid
        items = (f"{plural(n, 'item')}{of_task(grid, task)}" for task, n in left_out.items.items())
        return "; ".join([*([seeds_named(left_out.seeds)] if left_out.seeds else []), *items])

    for name, left_out in primary.incomplete.items():
        own = primary.estimates[name]
        yield (
            f"{name}: its own mean is over the {plural(own.n_seeds, 'seed')} and "
            f"{plural(own.n_items, 'item')} that are complete; left out: {named(left_out)}"
        )
    for name, left_out in primary.left_out.items():
        one = primary.differences[name]
        yield (
            f"{name} against {analysis.reference}: on {plural(one.n_seeds, 'common seed')} and "
            f"{plural(one.n_items, 'common item')}; left out: {named(left_out)}"
        )
    for name in primary.estimates:
        lost = [task for task, section in analysis.tasks.items() if name not in section.estimates]
        if lost:
            yield (
                f"{name}: no result in {listing(lost)}: its mean and its difference are over the "
                "other tasks"
            )


def _interval_notes(analysis: Analysis) -> Iterator[str]:
    estimates = analysis.primary.estimates
    if any(one.n_seeds > 1 for one in estimates.values()):
        yield (
            f"intervals: {percent(1 - ALPHA)}, two-way random-effects t over seeds and items; they "
            "hold for new seeds and new items of the same kind"
        )
    methods: dict[str, list[str]] = {}
    for name, one in estimates.items():
        if one.note:
            methods.setdefault(f"{one.note} ({one.method})", []).append(name)
    for note, names in methods.items():
        some = len(methods) > 1 or len(names) < len(estimates)
        yield f"{listing(names) if some else 'all'}: {note}"
    if analysis.table.grid.clusters is not None:
        yield (
            "cluster: items of one cluster are not independent; intervals and p are "
            "cluster-robust (clusters take the place of items)"
        )
    if any(one.n_seeds == 1 for one in estimates.values()):
        yield "sd_seeds is null with one seed: the spread over seeds is unknown"


def _test_notes(differences: Mapping[str, Difference]) -> Iterator[str]:
    tests: dict[str, list[str]] = {}
    for name, one in differences.items():
        tests.setdefault(one.test, []).append(name)
    for test, names in tests.items():
        yield f"p: {test}" + (f" ({listing(names)})" if len(tests) > 1 else "")
    single = [name for name, one in differences.items() if one.n_seeds == 1]
    if single:
        yield (
            f"{listing(single)}: one seed: p_sign_flip and p_floor are null (sign flips need "
            "several seeds), and P(A > B) rests on one run of each"
        )
    floors = sorted({one.p_floor for one in differences.values() if one.n_seeds > 1})
    if floors:
        yield (
            "p_sign_flip holds for these items only and cannot go below "
            f"{listing(f'{floor:.2g}' for floor in floors)} (2/2^seeds)"
        )


def _power_notes(primary: Section) -> Iterator[str]:
    largest = largest_detectable(primary)
    if largest is None:
        yield "mde is null: no spread was seen in any difference"
    else:
        yield (
            f"mde: a true difference of {100 * largest:.1f} points would be found with 80% power "
            "in every comparison, before correction"
        )
    needed = {delta: n for delta, n in most_seeds(primary).items() if n is not None}
    if needed:
        yield f"seeds needed for 80% power in every comparison on these items: {seeds_for(needed)}"
    else:
        yield "seeds_needed is null with one seed: the spread over seeds is unknown"


def seeds_for(needed: Mapping[str, int]) -> str:
    """`34 for 1 point, 10 for 2 points and 6 for 3 points`."""
    return listing(f"{n} for {plural(int(delta), 'point')}" for delta, n in needed.items())


def tables(analysis: Analysis) -> Iterator[RenderableType]:
    """The mean over tasks first, then single tasks, then what the numbers rest on."""
    primary = analysis.primary
    yield Text(f"Accuracy: {over(primary)}", style="bold")
    yield _accuracy(primary)
    if primary.differences:
        yield Text(f"Difference to {analysis.reference}: {over(primary)}", style="bold")
        yield _differences(primary, "Holm p")
    if len(analysis.tasks) > 1:
        for task, section in analysis.tasks.items():
            yield Text(f"{task} (exploratory)", style="bold")
            yield _accuracy(section)
            if section.differences:
                yield _differences(section, "BH p")
    if primary.incomplete or primary.left_out:
        yield Text("* on part of the results only; see the notes")
    for note in notes(analysis):
        yield Text(f"- {note}")


def _accuracy(section: Section) -> Table:
    table = table_of("Method", "Mean, %", "95% interval", "SD of seeds", "Seeds", "Items")
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
    bounds, p, *tests = DIFFERENCE_COLUMNS
    table = table_of("Method", "Points", bounds, p, adjusted, *tests, "Verdict")
    for method, one in section.differences.items():
        diff, ends, nominal, *others = difference_cells(one)
        table.add_row(
            Text(method + ("*" if method in section.left_out else "")),
            diff,
            ends,
            nominal,
            Text(p_value(one.p_holm if adjusted == "Holm p" else one.p_bh)),
            *others,
            Text(one.verdict, style="bold" if one.verdict in ("better", "worse") else ""),
        )
    return table


def difference_cells(one: Difference) -> tuple[Text, ...]:
    """The difference in points, then `DIFFERENCE_COLUMNS`; a dash where one seed cannot tell."""
    cells = (
        points(one.diff, signed=True),
        interval(one.ci_low, one.ci_high),
        p_value(one.p),
        NONE if one.n_seeds == 1 else p_value(one.p_sign_flip),
        NONE if one.n_seeds == 1 else number(one.p_improvement, 2),
        points(one.detectable),
    )
    return tuple(map(Text, cells))


def table_of(first: str, *columns: str) -> Table:
    """Numbers stay on one line each; long names in the first column are folded."""
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column(first, min_width=12, overflow="fold")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table
