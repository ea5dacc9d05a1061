"""Tables and figure of the influence study, from its results alone: Markdown, CSV and LaTeX."""

from __future__ import annotations

from pathlib import Path

from harness.reporting import numbers, sentences
from harness.studies.influence import figure, layout
from harness.studies.influence.bootstrap import DRAWS, Interval
from harness.studies.influence.layout import Table
from harness.studies.influence.measure import ANCHOR, Findings, Line, measure

STEM = "influence"
CSV_COLUMNS = ("table", "method", "case", "estimate", "low", "high", "low_crossed", "high_crossed")


def build(results: Path, reports: Path) -> list[Path]:
    """Write the report of `results` into `reports`; the same results give the same bytes."""
    found = measure(results)
    texts = {
        "md": markdown(found),
        "csv": csv(found),
        "tex": layout.tex(content(found), notes(found)),
    }
    return layout.write(reports, STEM, texts, lambda: figure.draw(found))


def content(found: Findings) -> list[Table]:
    """The tables, in the order of the page."""
    alpha = f"alpha = {found.protocol['alpha']:g}"
    made = [
        (f"Linear datamodeling score ({alpha})", _headings(), [*map(_lds, found.methods)]),
        (f"One setting changed at a time ({alpha})", _headings(), _settings(found)),
        ("What was to be shown", ["Claim", "Difference or score", "Verdict"], _claims(found)),
    ]
    shares = found.protocol["removed"]
    methods = dict.fromkeys(method for method, _ in found.drops)
    fallen = [[m, *(_text(found.drops[m, share]) for share in shares)] for m in methods]
    heads = ["Method", *(f"top {numbers.percent(share)} removed" for share in shares)]
    made.append(
        ("Leave-out brittleness: fall of the query beyond random removal, nats", heads, fallen)
    )
    names = [f"{name} ({count})" for name, count in found.classes.items()]
    rows = [
        [method, *(_text(found.auroc[method, name], 2) for name in found.classes)]
        for method in dict.fromkeys(method for method, _ in found.auroc)
        if ", " not in method
    ]
    title = f"AUROC of finding planted errors against {found.correct} correct examples"
    return [*made, (title, ["Score", *names], rows)]


def notes(found: Findings) -> list[str]:
    """What each number is, and what it rests on."""
    p, chance = found.protocol, found.facts["chance"]
    recipe = p["recipe"]
    size = round(p["alpha"] * p["pool_size"])
    seeds = numbers.plural(len(p["seeds"]), "seed")
    return [
        f"Ground truth: the base testbed:{p['base']} fine-tuned by the shared fine-tuner "
        f"({recipe['steps']} steps of {recipe['batch_size']} at {recipe['learning_rate']:g}) on "
        f"{p['halves']} random subsets of {size} of {p['pool_size']} examples "
        f"({p['errors']} errors), each with {seeds}; outcome: mean log-probability of the "
        f"reference response of {p['queries']} queries, mean over the seeds. Scores with another "
        "alpha do not compare.",
        "Score: Spearman correlation over subsets between outcome and summed influence, mean over "
        f"queries. [95% interval]: {DRAWS:,} resamples of the queries, which share the subsets and "
        'the reference model, so it speaks of these alone; "crossed" resamples subsets and '
        "queries. Differences are paired by query.",
        f"Noise: one seed against another {_text(found.single)}; each seed against the mean of "
        f"the others (split half) {_text(found.half)}. From the first follows what a prediction "
        f"without error would be expected to reach against the mean of {seeds}: "
        f"{_text(found.attainable)} (stepped up by the formula of Spearman and Brown, 1910; "
        "additive noise assumed).",
        'Claims are decided on the interval over queries: "above" is met when it lies above 0, '
        '"at least" when the difference is not negative.',
        f"Brittleness: for {p['removal_queries']} queries, the examples with the highest influence "
        f"on that query are removed and the model is retrained, {len(p['removal_seeds'])} seeds, "
        f"against {p['removal_random']} random removals of the same size with the same seeds.",
        "AUROC: chance that a planted error has a lower score than a correct example, by the mean "
        'influence over the queries or by negated self-influence ("self"); 0.5 is chance. '
        "Interval: resamples of both groups.",
        "shuffled: the scores of ekfac, for every query in an order of chance. One such order is a "
        f"draw itself: {chance['shuffles']} others have LDS "
        f"{numbers.number(chance['mean'], 3, signed=True)} on average with a standard deviation of "
        f"{numbers.number(chance['sd'], 3)}, and {chance['farther']} of them lie farther from 0 "
        "than the one in the table. gradcos: dot "
        "product over the length of the example's gradient. tracin: along the reference run. "
        "Damping: in units of each layer's mean eigenvalue; the default is 0.1. exact: the inverse "
        "of the damped Fisher matrix itself, between layers too, two label draws per example.",
        sentences.TESTBED_NOTE,
    ]


def _headings() -> list[str]:
    lead = f"Minus {ANCHOR}"
    return ["Method", "LDS [95%]", "crossed", lead, f"{lead}, crossed", "Seconds"]


def _lds(line: Line) -> list[str]:
    own = line.method == ANCHOR
    return [
        line.method,
        _text(line.score),
        _range(line.wide),
        numbers.NONE if own else _text(line.lead, signed=True),
        numbers.NONE if own else _range(line.wide_lead),
        numbers.seconds(line.seconds),
    ]


def _settings(found: Findings) -> list[list[str]]:
    default = next(line for line in found.lines if line.method == ANCHOR)
    return [_lds(default), *map(_lds, found.variants)]


def _claims(found: Findings) -> list[list[str]]:
    return [[c.text, _text(c.found, signed=True), c.verdict] for c in found.claims]


def _text(found: Interval, digits: int = 3, *, signed: bool = False) -> str:
    return f"{numbers.number(found.mean, digits, signed=signed)} {_range(found, digits)}"


def _range(found: Interval, digits: int = 3) -> str:
    return f"[{numbers.number(found.low, digits)}, {numbers.number(found.high, digits)}]"


def markdown(found: Findings) -> str:
    """influence.md."""
    parts = ["# Does influence foretell what retraining does?", ""]
    parts += [f"![Score, brittleness and detection of every method]({STEM}.png)", ""]
    for table in content(found):
        parts += layout.markdown_table(table)
    return "\n".join([*parts, *layout.markdown_list("Notes", notes(found))]) + "\n"


def csv(found: Findings) -> str:
    """influence.csv: every number, one line each, ten digits, empty where undefined."""
    lines: list[tuple[str, str, str, Interval, Interval | None]] = []
    for line in found.lines:
        lines.append(("lds", line.method, "", line.score, line.wide))
        lines.append(("lds minus ekfac", line.method, "", line.lead, line.wide_lead))
    noise = {"one seed": found.single, "split half": found.half, "attainable": found.attainable}
    lines += [("noise", "", name, value, None) for name, value in noise.items()]
    lines += [("claim", "", f"{c.text}: {c.verdict}", c.found, None) for c in found.claims]
    lines += [("drop", m, f"{share:g}", value, None) for (m, share), value in found.drops.items()]
    lines += [("auroc", m, name, value, None) for (m, name), value in found.auroc.items()]
    texts = [",".join(CSV_COLUMNS)]
    for table, method, case, value, wide in lines:
        numbers = [value.mean, value.low, value.high, *((wide.low, wide.high) if wide else ())]
        cells = [f"{number:.10g}" for number in numbers] + [""] * (5 - len(numbers))
        texts.append(",".join([table, layout.quoted(method), layout.quoted(case), *cells]))
    return "\n".join(texts) + "\n"
