"""An analysis for programs (JSON), and the sentences that say what its numbers rest on."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from harness.reporting.numbers import listing, percent, plural
from harness.reporting.outcomes.analyse import ALPHA, DELTAS, RANDOM, Analysis, Range, Section
from harness.reporting.outcomes.balance import LeftOut
from harness.stats import Difference, Estimate

_ESTIMATED = ("mean", "ci_low", "ci_high", "sd_seeds", "n_seeds", "n_items")
_COMPARED = ("diff", "ci_low", "ci_high", "p", "p_sign_flip", "p_floor")


def as_dict(analysis: Analysis) -> dict[str, Any]:
    """Everything, fit for JSON: shares of one; null where a number is unknown (`notes` say why)."""
    primary = analysis.primary
    return {
        "source": analysis.measured.source,
        "n_rows": analysis.measured.n_rows,
        "reference": analysis.reference,
        "alpha": ALPHA,
        "methods": {name: estimated(one) for name, one in primary.estimates.items()},
        "differences": {name: compared(one, "p_holm") for name, one in primary.differences.items()},
        "mde": largest_detectable(primary),
        "seeds_needed": most_seeds(primary),
        "tasks": {
            task: {
                "methods": {name: estimated(one) for name, one in section.estimates.items()},
                "differences": {
                    name: compared(one, "p_bh") for name, one in section.differences.items()
                },
                "mde": largest_detectable(section),
                "seeds_needed": most_seeds(section),
            }
            for task, section in analysis.tasks.items()
        },
        "details": {name: _details(analysis, name) for name in primary.differences},
        "interquartile_mean": _interquartile(analysis),
        "missing": dict(analysis.measured.gaps),
        "left_out": {name: _left_out(one) for name, one in primary.left_out.items()},
        "incomplete": {name: _left_out(one) for name, one in primary.incomplete.items()},
        "notes": list(notes(analysis)),
    }


def largest_detectable(section: Section) -> float | None:
    """The difference that every comparison finds with 80% power; None where none is known."""
    known = section.detectable.values()
    return max((value for value in known if not math.isnan(value)), default=None)


def most_seeds(section: Section) -> dict[str, int | None]:
    """Seeds with which every comparison finds 1, 2 and 3 points; None with one seed."""
    known = [found for found in section.seeds_needed.values() if found is not None]
    return {delta: max((found[delta] for found in known), default=None) for delta in DELTAS}


def estimated(found: Estimate) -> dict[str, Any]:
    """A mean; null where a number is unknown."""
    return {name: _number(getattr(found, name)) for name in _ESTIMATED}


def compared(found: Difference, adjusted: str | None = None) -> dict[str, Any]:
    """A difference, with its adjusted p and verdict where it has them."""
    entry: dict[str, Any] = {name: _number(getattr(found, name)) for name in _COMPARED}
    if found.n_seeds == 1:
        entry |= {"p_sign_flip": None, "p_floor": None}
    if adjusted is not None:
        entry |= {adjusted: _number(getattr(found, adjusted)), "verdict": found.verdict}
    return entry | {"p_improvement": found.p_improvement}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _details(analysis: Analysis, method: str) -> dict[str, Any]:
    found = analysis.primary.differences[method]
    resampled = analysis.resampled.get(method)
    low, high = resampled.difference if resampled else (None, None)
    return {
        "test": found.test,
        "n_seeds": found.n_seeds,
        "n_items": found.n_items,
        "sd_seeds": _number(found.sd_seeds),
        "adjusted_low": found.adjusted_low,
        "adjusted_high": found.adjusted_high,
        "bootstrap_low": low,
        "bootstrap_high": high,
        "mde": _number(analysis.primary.detectable[method]),
        "seeds_needed": analysis.primary.seeds_needed[method],
        "note": found.note,
    }


def _interquartile(analysis: Analysis) -> dict[str, Any]:
    """By method, on the cells that it has in common with the reference."""

    def spelt(one: Range) -> dict[str, float]:
        return {"value": one.value, "ci_low": one.low, "ci_high": one.high}

    return {
        name: {"mean": spelt(one.iqm), "difference": spelt(one.iqm_difference)}
        for name, one in analysis.resampled.items()
        if one.iqm is not None and one.iqm_difference is not None
    }


def _left_out(one: LeftOut) -> dict[str, Any]:
    return {"seeds": list(one.seeds), "items": dict(one.items)}


def notes(analysis: Analysis) -> Iterable[str]:
    """What every number is, what it rests on, and why some are unknown."""
    measured, primary = analysis.measured, analysis.primary
    if not analysis.chosen and analysis.reference != RANDOM:
        yield (
            f"reference: {analysis.reference}, the first method, since none is called {RANDOM!r}; "
            "--reference names another"
        )
    yield from measured.notes
    yield from _left_out_notes(analysis)
    yield from _interval_notes(analysis)
    if not primary.differences:
        yield "one method only: differences, mde and seeds_needed are unknown"
        return
    yield from _test_notes(primary)
    yield (
        f"p_holm: Holm over {plural(len(primary.differences), 'comparison')} with "
        f"{analysis.reference} on {over(primary)}; better or worse: p_holm < {ALPHA:g} and the "
        "interval at Holm's level excludes 0; anything else is a tie"
    )
    if len(analysis.tasks) > 1:
        yield "single tasks are exploratory: p_bh is Benjamini-Hochberg over methods x tasks"
    yield from _power_notes(primary)
    yield from _bootstrap_notes(analysis)


def over(section: Section) -> str:
    """What a section's means are over."""
    several = len(section.tasks) > 1
    return f"the mean over {plural(len(section.tasks), 'task')}" if several else "the mean accuracy"


def _left_out_notes(analysis: Analysis) -> Iterable[str]:
    measured, primary = analysis.measured, analysis.primary
    for name, left in primary.incomplete.items():
        found = primary.estimates[name]
        yield (
            f"{name}: its own mean is over {plural(found.n_seeds, 'seed')} and "
            f"{plural(found.n_items, 'item')} that are complete; left out: {left.said(measured)}"
        )
    for name, left in primary.left_out.items():
        one = primary.differences[name]
        yield (
            f"{name} against {analysis.reference}: on {plural(one.n_seeds, 'common seed')} and "
            f"{plural(one.n_items, 'common item')}; left out: {left.said(measured)}"
        )
    for name in primary.estimates:
        lost = [task for task, one in analysis.tasks.items() if name not in one.estimates]
        if lost:
            yield (
                f"{name}: no result in {listing(lost)}: its mean and its difference are over the "
                "other tasks"
            )


def _interval_notes(analysis: Analysis) -> Iterable[str]:
    estimates = analysis.primary.estimates
    level = percent(1 - ALPHA)
    if any(one.n_seeds > 1 for one in estimates.values()):
        yield (
            f"intervals: {level}, two-way random-effects t over seeds and items; they speak about "
            "new seeds and new items of the same kind"
        )
    said: dict[str, list[str]] = {}
    for name, one in estimates.items():
        if one.note:
            said.setdefault(f"{one.note} ({one.method})", []).append(name)
    for note, names in said.items():
        yield f"{listing(names) if len(said) > 1 or len(names) < len(estimates) else 'all'}: {note}"
    if analysis.measured.clusters is not None:
        yield (
            "cluster: items of one cluster are not independent; intervals and p are "
            "cluster-robust (clusters take the place of items)"
        )
    if any(one.n_seeds == 1 for one in estimates.values()):
        yield "sd_seeds is null with one seed: the spread over seeds cannot be seen"


def _test_notes(primary: Section) -> Iterable[str]:
    tests: dict[str, list[str]] = {}
    for name, one in primary.differences.items():
        tests.setdefault(one.test, []).append(name)
    for test, names in tests.items():
        yield f"p: {test}" + (f" ({listing(names)})" if len(tests) > 1 else "")
    single = [name for name, one in primary.differences.items() if one.n_seeds == 1]
    if single:
        yield (
            f"{listing(single)}: one seed: p_sign_flip and p_floor are null (flipping needs "
            "seeds), and P(A > B) rests on one run of each"
        )
    floors = sorted({one.p_floor for one in primary.differences.values() if one.n_seeds > 1})
    if floors:
        yield (
            "p_sign_flip speaks about these items only and cannot go below "
            f"{listing(f'{floor:.2g}' for floor in floors)} (2/2^seeds)"
        )


def _power_notes(primary: Section) -> Iterable[str]:
    largest = largest_detectable(primary)
    if largest is None:
        yield "mde is null: no spread was seen in any difference"
    else:
        yield (
            f"mde: a true difference of {100 * largest:.1f} points would be found with 80% power "
            "in every comparison, before correction"
        )
    needed = most_seeds(primary)
    if needed["1"] is None:
        yield "seeds_needed is null with one seed: the spread over seeds is unknown"
    else:
        yield (
            "seeds needed for 80% power in every comparison on these items: "
            + listing(f"{n} for {plural(int(delta), 'point')}" for delta, n in needed.items())
        )


def _bootstrap_notes(analysis: Analysis) -> Iterable[str]:
    if not analysis.resampled:
        yield "bootstrap intervals are null: clusters span tasks, and draws are made by task"
        return
    yield (
        f"bootstrap (in --json): {analysis.draws} crossed draws of seeds and "
        f"{'items' if analysis.measured.clusters is None else 'clusters'}; the second method, too "
        "narrow with few seeds"
    )
