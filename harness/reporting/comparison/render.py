"""A comparison as JSON, as tables of a terminal, and as one sentence that its numbers allow."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from harness.reporting.comparison import SECONDS, Comparison, Costs, ItemChange, Line, Side
from harness.reporting.numbers import interval, number, p_value, plural, points, seconds
from harness.reporting.outcomes.render import (
    DIFFERENCE_COLUMNS,
    compared,
    difference_cells,
    estimated,
    known,
    seeds_for,
    table_of,
)


def as_dict(comparison: Comparison) -> dict[str, Any]:
    """Everything, fit for JSON: shares of one; null where a number is unknown."""
    a, b = comparison.a, comparison.b
    return {
        "experiment": comparison.results.experiment,
        "arm": comparison.results.arm,
        "alpha": comparison.results.alpha,
        "a": _side(a),
        "b": _side(b),
        "mean": _line(comparison.mean),
        "tasks": {task: _line(line) for task, line in comparison.tasks.items()},
        "family": None if comparison.family is None else asdict(comparison.family),
        "flips": asdict(comparison.changes),
        "chosen": None if comparison.overlap is None else asdict(comparison.overlap),
        "score_goes_with": {"a": a.score_correlations(), "b": b.score_correlations()},
        "costs": {
            "a": _costs(a.costs),
            "b": _costs(b.costs),
            "a_minus_b": {
                name: known(getattr(a.costs, name) - getattr(b.costs, name))
                for name in (*SECONDS, "select_flops")
            },
        },
        "notes": [*comparison.notes, *footnotes(comparison)],
        "sentence": sentence(comparison),
    }


def _side(side: Side) -> dict[str, Any]:
    return {
        "row": side.row,
        "fraction": side.fraction,
        "cells": len(side.cells),
        "done": len(side.done),
    }


def _line(line: Line) -> dict[str, Any]:
    return {
        "a": estimated(line.a),
        "b": estimated(line.b),
        **compared(line.difference),
        "n_seeds": line.difference.n_seeds,
        "test": line.difference.test,
        "mde": known(line.difference.detectable),
        "seeds_needed": line.difference.seeds_needed,
    }


def _costs(costs: Costs) -> dict[str, Any]:
    return {n: value if n == "parts" else known(value) for n, value in vars(costs).items()}


def sentence(comparison: Comparison) -> str:
    """What may be claimed: the protocol's verdict, or that this pair was not planned for one."""
    diff, family = comparison.mean.difference, comparison.family
    a, b, basis = comparison.a.name, comparison.b.name, _basis(comparison)
    low, high = (-diff.ci_high, -diff.ci_low) if diff.diff < 0 else (diff.ci_low, diff.ci_high)
    size = f"{points(abs(diff.diff))} points {interval(low, high)}"
    gap = f"{a} is {size} {'above' if diff.diff > 0 else 'below'} {b}"
    gap = gap if diff.diff else f"{a} and {b} have the same mean"
    if family is None:
        decided = diff.p < comparison.results.alpha and not diff.ci_low <= 0 <= diff.ci_high
        finding = (
            "no finding, but worth a test of its own" if decided else "no detectable difference"
        )
        claim = (
            f"{gap} ({basis}; p {_equals(diff.p)}, unadjusted, in a comparison that the "
            f"protocol did not plan): {finding}"
        )
    else:
        holm = f"Holm p {_equals(family.p_holm)} over {plural(family.size, 'comparison')}"
        if family.verdict == "tie":
            claim = f"{gap} ({basis}; {holm}): a tie by the protocol's test"
        else:
            verb = "beats" if family.verdict == "better" else "falls short of"
            claim = f"{a} {verb} {b} by {size} ({basis}; {holm})"
    return f"{claim}{_cost_clause(comparison)}."


def _basis(comparison: Comparison) -> str:
    diff, n_tasks = comparison.mean.difference, len(comparison.tasks)
    tasks = f"mean over {plural(n_tasks, 'task')}, " if n_tasks > 1 else ""
    return f"{tasks}{plural(diff.n_seeds, 'seed')}, {plural(diff.n_items, 'item')}"


def _equals(p: float) -> str:
    text = p_value(p)
    return f"< {text[1:]}" if text.startswith("<") else f"= {text}"


def _cost_clause(comparison: Comparison) -> str:
    """What choosing cost more or less, per cell."""
    more = comparison.a.costs.select_seconds - comparison.b.costs.select_seconds
    if math.isnan(more):
        return ""
    if seconds(abs(more)) == seconds(0.0):
        return "; choosing cost about the same"
    return f"; choosing cost {seconds(abs(more))} s {'more' if more > 0 else 'less'} per cell"


def footnotes(comparison: Comparison) -> Iterator[str]:
    """What the numbers are."""
    diff, family = comparison.mean.difference, comparison.family
    single = "; single tasks are exploratory" if len(comparison.tasks) > 1 else ""
    yield f"p: {diff.test}, not adjusted for other comparisons{single}"
    if diff.n_seeds > 1:
        yield (
            f"flip p holds for these items only and cannot go below {p_value(diff.p_floor)} "
            f"with {plural(diff.n_seeds, 'seed')}"
        )
    else:
        yield "one seed: the sign-flip test does not apply, and P(A > B) rests on one run of each"
    if diff.seeds_needed is None:
        yield "seeds needed: unknown with one seed"
    else:
        yield f"seeds needed for 80% power on these items: {seeds_for(diff.seeds_needed)}"
    if family is not None:
        yield (
            f"in the protocol's family of {plural(family.size, 'comparison')}: {family.verdict}, "
            f"Holm p {_equals(family.p_holm)}, interval at Holm's level "
            f"{interval(family.low, family.high)}"
        )


def tables(comparison: Comparison) -> Iterator[RenderableType]:
    """Tables and lines of a terminal; the sentence comes last."""
    a, b, results = comparison.a, comparison.b, comparison.results
    arm = "" if results.arm == "main" else f", {results.arm}"
    yield Text(f"A = {a.name}, B = {b.name} ({results.experiment}{arm})", "bold")
    lines = dict(comparison.tasks)
    if len(lines) > 1:
        lines = {f"mean over {plural(len(lines), 'task')}": comparison.mean, **lines}
    yield _accuracies(lines)
    table = table_of("A - B, points", "", *DIFFERENCE_COLUMNS)
    for name, line in lines.items():
        table.add_row(name, *difference_cells(line.difference))
    yield table
    yield from _changes(comparison)
    yield from _chosen(comparison)
    yield Text("Cost per cell", style="bold")
    yield _cost_table(a.costs, b.costs)
    for note in (*comparison.notes, *footnotes(comparison)):
        yield Text(f"- {note}")
    yield Text(sentence(comparison), style="bold")


def _accuracies(lines: Mapping[str, Line]) -> Table:
    table = table_of("Accuracy, %", "A", "95% interval", "B", "95% interval", "Items")
    for name, line in lines.items():
        sides = [
            text
            for one in (line.a, line.b)
            for text in (points(one.mean), interval(one.ci_low, one.ci_high))
        ]
        table.add_row(*map(Text, (name, *sides, str(line.a.n_items))))
    return table


def _changes(comparison: Comparison) -> Iterator[RenderableType]:
    changes = comparison.changes
    counts = f"A better on {changes.gained}, B better on {changes.lost}, the same on {changes.same}"
    yield Text(f"Items: {counts}", style="bold")
    for side, most, as_much in (
        ("A", changes.most_gained, changes.gained_as_much),
        ("B", changes.most_lost, changes.lost_as_much),
    ):
        if most:
            largest = number(100 * abs(most[0].a - most[0].b), 0)
            items = ", ".join(map(_item, most))
            on = plural(as_much, "item")
            yield Text(f"{side} is ahead by up to {largest} points (on {on}); largest: {items}")


def _item(one: ItemChange) -> str:
    return f"{one.item} ({number(100 * one.a, 0)}% and {number(100 * one.b, 0)}%)"


def _chosen(comparison: Comparison) -> Iterator[RenderableType]:
    for name, side in (("A", comparison.a), ("B", comparison.b)):
        if correlations := side.score_correlations():
            each = ", ".join(f"{other} {number(rho, 2)}" for other, rho in correlations.items())
            yield Text(f"Rank correlation of {name}'s scores with {each}")
    if (overlap := comparison.overlap) is not None:
        yield Text("Chosen examples, Jaccard overlap", style="bold")
        own = {"A": overlap.a_seeds, "B": overlap.b_seeds}.items()
        seeds = [f"{name}'s own seeds {value:.2f}" for name, value in own if value is not None]
        parts = [f"A and B {overlap.between:.2f}", f"random sets {overlap.random:.2f}", *seeds]
        yield Text(", ".join(parts))


def _cost_table(a: Costs, b: Costs) -> Table:
    table = table_of("Seconds", "A", "B", "A - B")
    for key, name in zip(SECONDS, ("select", "train", "evaluate"), strict=True):
        table.add_row(name, *_amounts(getattr(a, key), getattr(b, key)))
        for part in dict.fromkeys((*a.parts, *b.parts)) if name == "select" else ():
            amounts = _amounts(a.parts.get(part, 0.0), b.parts.get(part, 0.0))
            table.add_row(f"  of which {part}", *amounts)
    table.add_row("TFLOP, select", *_amounts(a.select_flops / 1e12, b.select_flops / 1e12))
    return table


def _amounts(a: float, b: float) -> tuple[str, str, str]:
    return seconds(a), seconds(b), number(a - b, 1, signed=True)
