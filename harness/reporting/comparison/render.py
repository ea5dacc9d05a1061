"""A comparison for programs, for readers, and as one sentence that its numbers allow."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from harness.reporting.comparison.compare import Flip, Line, Story
from harness.reporting.comparison.row import SECONDS, Side, Spent
from harness.reporting.numbers import (
    NONE,
    interval,
    listing,
    number,
    p_value,
    plural,
    points,
    seconds,
)
from harness.reporting.outcomes.as_json import compared, estimated


def as_dict(story: Story) -> dict[str, Any]:
    """Everything, fit for JSON: shares of one; null where a number is unknown."""
    overlap = None if story.overlap is None else asdict(story.overlap)
    return {
        "experiment": story.results.experiment,
        "arm": story.results.arm,
        "alpha": story.results.alpha,
        "a": _side(story.a),
        "b": _side(story.b),
        "mean": _line(story.mean),
        "tasks": {task: _line(line) for task, line in story.tasks.items()},
        "family": None if story.family is None else asdict(story.family),
        "flips": asdict(story.flips),
        "chosen": overlap,
        "score_goes_with": {"a": story.a.score_goes_with(), "b": story.b.score_goes_with()},
        "costs": {
            "a": _spent(story.a_spent),
            "b": _spent(story.b_spent),
            "a_minus_b": {
                name: _known(getattr(story.a_spent, name) - getattr(story.b_spent, name))
                for name in (*SECONDS, "select_flops")
            },
        },
        "notes": [*story.notes, *footnotes(story)],
        "sentence": sentence(story),
    }


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


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
        "mde": _known(line.detectable),
        "seeds_needed": line.seeds_needed,
    }


def _spent(spent: Spent) -> dict[str, Any]:
    return {
        name: value if name == "parts" else _known(value) for name, value in vars(spent).items()
    }


def sentence(story: Story) -> str:
    """What may be claimed: the protocol's verdict, or that this pair was not planned for one."""
    found, family = story.mean.difference, story.family
    a, b = story.a.name, story.b.name
    size = f"{points(abs(found.diff))} points {_turned(found.ci_low, found.ci_high, found.diff)}"
    side = "above" if found.diff > 0 else "below"
    stands = f"{a} is {size} {side} {b}" if found.diff else f"{a} and {b} have the same mean"
    basis = _basis(story)
    if family is None:
        decided = found.p < story.results.alpha and not found.ci_low <= 0 <= found.ci_high
        seen = "no finding, but worth a test of its own" if decided else "no detectable difference"
        said = (
            f"{stands} ({basis}; p {_equals(found.p)}, unadjusted, in a comparison that the "
            f"protocol did not plan): {seen}"
        )
    else:
        holm = f"Holm p {_equals(family.p_holm)} over {plural(family.size, 'comparison')}"
        if family.verdict == "tie":
            said = f"{stands} ({basis}; {holm}): a tie by the protocol's test"
        else:
            verb = "beats" if family.verdict == "better" else "falls short of"
            said = f"{a} {verb} {b} by {size} ({basis}; {holm})"
    return f"{said}{_cost_clause(story)}."


def _basis(story: Story) -> str:
    found = story.mean.difference
    tasks = f"mean over {plural(len(story.tasks), 'task')}, " if len(story.tasks) > 1 else ""
    return f"{tasks}{plural(found.n_seeds, 'seed')}, {plural(found.n_items, 'item')}"


def _equals(p: float) -> str:
    text = p_value(p)
    return f"< {text[1:]}" if text.startswith("<") else f"= {text}"


def _turned(low: float, high: float, diff: float) -> str:
    """The interval of a difference that is told without its sign."""
    return interval(-high, -low) if diff < 0 else interval(low, high)


def _cost_clause(story: Story) -> str:
    """What choosing cost more or less, per cell."""
    more = story.a_spent.select_seconds - story.b_spent.select_seconds
    if math.isnan(more):
        return ""
    if seconds(abs(more)) == seconds(0.0):
        return "; choosing cost about the same"
    return f"; choosing cost {seconds(abs(more))} s {'more' if more > 0 else 'less'} per cell"


def footnotes(story: Story) -> Iterator[str]:
    """What the numbers are."""
    found = story.mean.difference
    yield (
        f"p: {found.test}, not adjusted for other comparisons"
        + ("; single tasks are exploratory" if len(story.tasks) > 1 else "")
    )
    if found.n_seeds > 1:
        yield (
            f"flip p speaks about these items only and cannot go below {p_value(found.p_floor)} "
            f"with {plural(found.n_seeds, 'seed')}"
        )
    else:
        yield "one seed: the sign-flip test does not apply, and P(A > B) rests on one run of each"
    if story.mean.seeds_needed is None:
        yield "seeds needed: unknown with one seed"
    else:
        needed = story.mean.seeds_needed.items()
        yield "seeds needed for 80% power on these items: " + listing(
            f"{n} for {plural(int(delta), 'point')}" for delta, n in needed
        )
    if story.family is not None:
        family = story.family
        yield (
            f"in the protocol's family of {plural(family.size, 'comparison')}: {family.verdict}, "
            f"Holm p {_equals(family.p_holm)}, interval at Holm's level "
            f"{interval(family.low, family.high)}"
        )


def pictures(story: Story) -> Iterator[RenderableType]:
    """Tables and lines of a terminal; the sentence comes last."""
    arm = "" if story.results.arm == "main" else f", {story.results.arm}"
    yield Text(f"A = {story.a.name}, B = {story.b.name} ({story.results.experiment}{arm})", "bold")
    lines = {f"mean over {plural(len(story.tasks), 'task')}": story.mean, **story.tasks}
    if len(story.tasks) == 1:
        lines = dict(story.tasks)
    yield _accuracies(lines)
    yield _differences(lines)
    yield from _flips(story)
    yield from _chosen(story)
    yield Text("Cost per cell", style="bold")
    yield _costs(story)
    for note in (*story.notes, *footnotes(story)):
        yield Text(f"- {note}")
    yield Text(sentence(story), style="bold")


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0))
    for at, name in enumerate(columns):
        table.add_column(name, justify="right" if at else "left", no_wrap=True)
    return table


def _accuracies(lines: dict[str, Line]) -> Table:
    table = _table("Accuracy, %", "A", "95% interval", "B", "95% interval", "Items")
    for name, line in lines.items():
        sides = (
            text
            for one in (line.a, line.b)
            for text in (points(one.mean), interval(one.ci_low, one.ci_high))
        )
        table.add_row(*map(Text, (name, *sides, str(line.a.n_items))))
    return table


def _differences(lines: dict[str, Line]) -> Table:
    table = _table("A - B, points", "", "95% interval", "p", "Flip p", "P(A>B)", "MDE")
    for name, line in lines.items():
        one = line.difference
        alone = one.n_seeds == 1
        texts = (
            name,
            points(one.diff, signed=True),
            interval(one.ci_low, one.ci_high),
            p_value(one.p),
            NONE if alone else p_value(one.p_sign_flip),
            NONE if alone else number(one.p_improvement, 2),
            points(line.detectable),
        )
        table.add_row(*map(Text, texts))
    return table


def _flips(story: Story) -> Iterator[RenderableType]:
    flips = story.flips
    yield Text(
        f"Items: A better on {flips.gained}, B better on {flips.lost}, the same on {flips.same}",
        style="bold",
    )
    for who, some, as_much in (
        ("A", flips.most_gained, flips.gained_as_much),
        ("B", flips.most_lost, flips.lost_as_much),
    ):
        if some:
            most = number(100 * abs(some[0].a - some[0].b), 0)
            named = ", ".join(map(_flip, some))
            yield Text(f"{who} ahead by {most} points on {as_much}; most: {named}")


def _flip(one: Flip) -> str:
    return f"{one.item} ({number(100 * one.a, 0)}% and {number(100 * one.b, 0)}%)"


def _chosen(story: Story) -> Iterator[RenderableType]:
    for name, side in (("A", story.a), ("B", story.b)):
        if known := side.score_goes_with():
            said = ", ".join(f"{other} {number(value, 2)}" for other, value in known.items())
            yield Text(f"Rank correlation of {name}'s scores with {said}")
    if (overlap := story.overlap) is None:
        return
    own = [
        f"{name}'s own seeds {value:.2f}"
        for name, value in (("A", overlap.a_seeds), ("B", overlap.b_seeds))
        if value is not None
    ]
    yield Text("Chosen examples, Jaccard overlap", style="bold")
    parts = [f"A and B {overlap.between:.2f}", f"random sets {overlap.random:.2f}", *own]
    yield Text(", ".join(parts))


def _costs(story: Story) -> Table:
    table = _table("Seconds", "A", "B", "A - B")
    a, b = story.a_spent, story.b_spent
    names = dict(zip(SECONDS, ("select", "train", "evaluate"), strict=True))
    for key, name in names.items():
        table.add_row(name, *_amounts(getattr(a, key), getattr(b, key), 1.0))
        for part in dict.fromkeys((*a.parts, *b.parts)) if name == "select" else ():
            spent = (a.parts.get(part, 0.0), b.parts.get(part, 0.0))
            table.add_row(f"  of it {part}", *_amounts(*spent, 1.0))
    table.add_row("TFLOP, select", *_amounts(a.select_flops, b.select_flops, 1e12))
    return table


def _amounts(a: float, b: float, unit: float) -> tuple[str, str, str]:
    more = number((a - b) / unit, 1, signed=True)
    return seconds(a / unit), seconds(b / unit), more
