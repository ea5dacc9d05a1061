"""Sentences that the counts allow; none is written by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator

from harness.reporting import numbers
from harness.studies.intervals.design import STRUCTURES, Point, Protocol
from harness.studies.intervals.measure import (
    ERRORS,
    HIGH,
    LOW,
    MANY,
    MET,
    METHODS,
    MOST,
    OPEN,
    POWER_HIGH,
    POWER_LOW,
    Cell,
    Findings,
    Power,
    Rate,
    Tallied,
    tallied,
)
from harness.studies.intervals.methods import (
    BOOTSTRAP,
    FLIPS,
    IGNORED,
    ITEMS,
    POOLED,
    SATTERTHWAITE,
    SEEDS,
    TWO_WAY,
    UNPAIRED,
)
from harness.studies.intervals.simulate import DIFFERENCE, EQUAL, FAMILY, MEAN, MOVED
from harness.studies.intervals.tried import FLOOR, FULL, GENERALISED, PARTS

OF = {MEAN: "a mean", DIFFERENCE: "a paired difference"}
STARTS = {
    EQUAL: "Two equal methods are told apart at 5%",
    FAMILY: "After Holm any of {family} equal methods is declared better or worse",
    MOVED: "After Holm any of {family} methods as good, but not item by item, is so declared",
}


def share(rate: Rate, digits: int = 1) -> str:
    """A share in percent with its Monte Carlo standard error in brackets."""
    error = numbers.number(100 * rate.error, digits)
    return f"{numbers.number(100 * rate.value, digits)} ({error})"


def percent(value: float) -> str:
    """A share in percent, one decimal."""
    return numbers.number(100 * value, 1) + "%"


def place(point: Point) -> str:
    """A point in words."""
    return (
        f"{point.seeds} seeds, {point.items:,} items, seed SD {100 * point.spread:g}, "
        f"{point.structure}"
    )


def counts(found: Findings, quantity: str, method: str, seeds: int | None = None) -> Tallied:
    """Marks of one method, with widths relative to the default's."""
    default = found.of(quantity, TWO_WAY, seeds)
    return tallied(found.of(quantity, method, seeds), default)


def sentences(found: Findings) -> dict[str, list[str]]:
    """What was found, by subject."""
    said = {
        title: [
            _default(found, quantity),
            _by_seeds(found, quantity),
            *_others(found, quantity),
            _least(found, quantity),
        ]
        for quantity, title in ((MEAN, "Means"), (DIFFERENCE, "Paired differences"))
    }
    equal = [*(_equal(found, quantity) for quantity in STARTS), _alarms_by_seeds(found)]
    tried = [_tried(found, name) for name in (SATTERTHWAITE, PARTS, FULL)]
    return said | {"Equal methods": equal, "Tried": tried, "Power": list(_powers(found))}


def _default(found: Findings, quantity: str) -> str:
    own = counts(found, quantity, TWO_WAY)
    text = (
        f"The default, two-way, for {OF[quantity]}: at {own.met} of {own.points} points its 95% "
        f"interval holds the truth in {100 * LOW:g} to {100 * HIGH:g}% of the tables"
    )
    parts = []
    if own.narrow:
        parts.append(f"too narrow at {own.narrow}, {_extreme('lowest', own.lowest)}")
    if own.wide:
        parts.append(f"too wide at {own.wide}, {_extreme('highest', own.highest)}")
    if own.near:
        parts.append(f"outside, but within the Monte Carlo error, at {own.near}")
    return text + "".join(f"; {part}" for part in parts) + "."


def _extreme(word: str, cell: Cell) -> str:
    return f"{word} {percent(cell.rate.value)} with {place(cell.point)}"


def _by_seeds(found: Findings, quantity: str) -> str:
    parts = []
    for seeds in found.protocol.seeds:
        own = counts(found, quantity, TWO_WAY, seeds)
        low, high = own.lowest.rate.value, own.highest.rate.value
        parts.append(f"{percent(low)} to {percent(high)} with {seeds} seeds ({_missed(own)})")
    return f"Two-way for {OF[quantity]}, by number of seeds: {numbers.listing(parts)}."


def _missed(own: Tallied) -> str:
    """Points on either side of the mark, in words."""
    if not own.missed:
        return "no point missed"
    said = [
        f"{count} of {own.points} too {word}"
        for count, word in ((own.narrow, "narrow"), (own.wide, "wide"))
        if count
    ]
    return ", ".join(said)


def _others(found: Findings, quantity: str) -> Iterator[str]:
    for method in METHODS[quantity]:
        if method == TWO_WAY or not found.of(quantity, method):
            continue
        own = counts(found, quantity, method)
        text = f"{method[0].upper()}{method[1:]}: {_missed(own)}"
        if own.narrow:
            text += f", {_extreme('lowest', own.lowest)}"
        yield text + "."


def _least(found: Findings, quantity: str) -> str:
    """Which method misses least, whoever that is."""
    order = {
        method: counts(found, quantity, method) for method in METHODS[quantity] if method != IGNORED
    }
    ranked = sorted(order, key=lambda method: order[method].missed)
    said = [f"{m} {order[m].missed} ({order[m].narrow} too narrow)" for m in ranked]
    least = [m for m in ranked if order[m].missed == order[ranked[0]].missed]
    narrow = min(one.narrow for one in order.values())
    safest = [m for m in order if order[m].narrow == narrow]
    text = f"Points missed for {OF[quantity]}: {numbers.listing(said)}."
    if TWO_WAY in least:
        return text + " The default misses least."
    text += f" The default does not miss least: {numbers.listing(least)} does."
    if TWO_WAY in safest:
        text += " It is too narrow at the fewest points: where it misses it claims too little."
    return text


def _equal(found: Findings, quantity: str) -> str:
    """Tests of equal methods: how often each tells them apart."""
    parts = []
    for method in METHODS[quantity]:
        cells = found.of(quantity, method)
        if method == IGNORED or not cells:
            continue
        most = max(cells, key=lambda cell: cell.rate.value)
        missed = sum(cell.mark == MANY for cell in cells)
        near = sum(cell.mark == MANY + OPEN for cell in cells)
        text = f"{method} at most {percent(most.rate.value)}"
        if missed:
            text += f" with {place(most.point)} (above {100 * MOST:g}% at {missed} of {len(cells)})"
        elif near:
            text += f" (above {100 * MOST:g}% at {near}, within the Monte Carlo error)"
        parts.append(text)
    start = STARTS[quantity].format(family=found.protocol.family)
    return f"{start} by {'; '.join(parts)}."


def _alarms_by_seeds(found: Findings) -> str:
    """The default's highest rate of wrong verdicts for every number of seeds."""
    parts = []
    for seeds in found.protocol.seeds:
        rates = [_highest(found, quantity, TWO_WAY, seeds) for quantity in (FAMILY, MOVED)]
        parts.append(f"{percent(rates[0])} and {percent(rates[1])} with {seeds} seeds")
    return (
        "Wrong verdicts of two-way after Holm, at most, for equal methods and for methods that "
        f"differ item by item: {numbers.listing(parts)}."
    )


def _highest(found: Findings, quantity: str, method: str, seeds: int) -> float:
    return max(cell.rate.value for cell in found.of(quantity, method, seeds))


def _tried(found: Findings, method: str) -> str:
    """What another interval would change with the fewest seeds."""
    seeds = min(found.protocol.seeds)
    parts = []
    for quantity, name in OF.items():
        own, new = (counts(found, quantity, m, seeds) for m in (TWO_WAY, method))
        ends = [
            f"{percent(one.lowest.rate.value)} to {percent(one.highest.rate.value)}"
            for one in (own, new)
        ]
        parts.append(
            f"for {name} {ends[1]} ({_missed(new)}) instead of {ends[0]} ({_missed(own)}), "
            f"{_change(new.width)}"
        )
    wrong = [
        f"{percent(_highest(found, quantity, method, seeds))} instead of "
        f"{percent(_highest(found, quantity, TWO_WAY, seeds))}"
        for quantity in (FAMILY, MOVED)
    ]
    return (
        f'With "{method}" for both and {seeds} seeds, intervals cover {"; ".join(parts)}. Wrong '
        f"verdicts after Holm: at most {wrong[0]} for equal methods, {wrong[1]} for methods that "
        "differ item by item."
    )


def _change(ratio: float) -> str:
    """A ratio of widths in words."""
    size = numbers.number(100 * abs(ratio - 1.0), 1)
    return f"{size}% {'wider' if ratio >= 1.0 else 'narrower'} on average"


def _powers(found: Findings) -> Iterator[str]:
    """Whether formulas keep what they promise."""
    for start, chosen in (
        ("With the seeds that seeds_needed asks for", [p for p in found.powers if p.aim.delta]),
        ("At the difference that detectable names", [p for p in found.powers if p.aim.seeds]),
    ):
        if not chosen:
            continue
        powers = [power.rates[power.test].value for power in chosen]
        kept = sum(power.mark == MET for power in chosen)
        text = (
            f"{start}, {chosen[0].test} finds it in {percent(min(powers))} to "
            f"{percent(max(powers))} of the tables where 80% are promised; "
            f"{100 * POWER_LOW:g} to {100 * POWER_HIGH:g}% at {kept} of {len(chosen)}"
        )
        off = [power for power in chosen if power.mark in ("low", "high")]
        if off:
            text += f"; missed with {numbers.listing(_short(power) for power in off)}"
        yield text + "."


def _short(power: Power) -> str:
    return (
        f"{power.seeds} seeds and {power.aim.items:,} items "
        f"({percent(power.rates[power.test].value)})"
    )


def notes(found: Findings) -> list[str]:
    """What each number is, and what it rests on."""
    p = found.protocol
    return [*_design_notes(p), *_method_notes(p)]


def _design_notes(p: Protocol) -> list[str]:
    kinds = "; ".join(f"{name}: {STRUCTURES[name].text}" for name in p.structures)
    errors = [percent(math.sqrt(0.95 * 0.05 / n)) for n in (p.tables_fewest, p.tables)]
    return [
        "Simulated accuracies of R seeds on n items, whose population mean is known exactly. "
        f"{p.tables_fewest:,} tables a point with {min(p.seeds)} seeds, {p.tables:,} elsewhere and "
        "for power; the Monte Carlo standard error (in brackets in the full tables) is "
        f"{errors[0]} and {errors[1]} at 95%. Items: {kinds}. Seed SD: standard deviation, in "
        "points, of a seed's effect on the accuracy; hard and easy items move less.",
        f"Marks: coverage within {100 * LOW:g} to {100 * HIGH:g}%, equal methods told apart in at "
        f'most {100 * MOST:g}%. "narrow", "wide", "many": beyond by {ERRORS:g} standard errors or '
        f'more; with "{OPEN}": beyond by less. Half-width: mean over tables, in points; relative '
        "to the default it is the geometric mean over points.",
        f"Differences: the other method finds {100 * p.moved:g}% of the items (or clusters) as "
        "hard as new items would be, so that the truth over new items is 0. Equal methods: the "
        "same chances, seeds of their own. After Holm: a family against one reference.",
        f"Power: uniform items; {100 * POWER_LOW:g} to {100 * POWER_HIGH:g}% counts as 80%. "
        "seeds_needed is asked with the standard deviation over seeds of the paired difference "
        f"and speaks of these items ({SEEDS}); detectable is averaged over tables of equally good "
        f"methods and speaks of new items as well ({TWO_WAY}).",
    ]


def _method_notes(p: Protocol) -> list[str]:
    return [
        f"{TWO_WAY}: the suite's default: variances of seeds V_r, items V_i and residual V_e, each "
        "part with a t quantile of its own; half-width for a mean: square root of t_i^2 V_i + "
        "t_r^2 max(V_r - V_e, 0); for a difference: of t_r^2 V_r + t_i^2 max(V_i - V_e, 0). "
        f"{SATTERTHWAITE}: the largest of V_r + V_i - V_e, V_r and V_i as one variance, the "
        f"default before this study. {BOOTSTRAP}: percentile, B = {p.draws:,} here (10,000 in "
        "the suite); "
        f"{p.batch} tables share draws. {SEEDS}: t over the means of seeds; paired for a "
        f"difference. {POOLED}: all answers as if independent. {ITEMS}: 1.96 standard errors over "
        f"items, as lm-eval has it. {FLIPS}: over seeds; p cannot fall below 2/2^R. {UNPAIRED}: "
        f"variances of both intervals added. {IGNORED}: two-way as if items were independent. "
        f'"{SEEDS}" and "{FLIPS}" for a difference speak about these items only: that they miss a '
        "truth about new items is no fault of theirs.",
        f"Tried: {FLOOR}: {SATTERTHWAITE} with at least R - 1 degrees of freedom. {PARTS}: the "
        f"default for means. {FULL}: the default for differences. {GENERALISED}: Weerahandi's "
        "pivotal quantity (1993).",
    ]
