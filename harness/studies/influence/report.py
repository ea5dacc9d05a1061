"""Numbers, tables and figure of the influence study, from `results/validation/` alone."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from harness.reporting import numbers, sentences
from harness.studies.influence import metrics
from harness.studies.influence.metrics import ANCHOR, PEER, RANDOM, SHUFFLED, Floats, Interval
from harness.studies.page import Page, Table, forest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEM = "influence"
MET, OPEN, MISSED = "met", "not told apart", "missed"
LDS, LEAD, NOISE, CLAIM, DROP, AUROC = "lds", "lds minus ekfac", "noise", "claim", "drop", "auroc"
SEED = 41
LOGPROB = "log_probability"
NOISES = {
    "one seed": "one seed with another",
    "split half": "each seed with the mean of the others",
    "attainable": "attainable",
}

LDS_CAPTION = (
    "Spearman correlation, over the random subsets, between the outcome of retraining and the "
    "summed influence of the subset, mean over queries [95% interval over queries, which share the "
    "subsets and the reference model]; crossed: subsets and queries resampled. Differences are "
    "paired by query. Scores with another alpha are not comparable."
)
SETTINGS_CAPTION = (
    "As above. Damping: in units of each layer's mean eigenvalue; the default is 0.1. exact: the "
    "inverse of the damped Fisher matrix itself, between layers too, two label draws per example."
)
CLAIMS_CAPTION = (
    'Decided on the interval over queries: "above" is met when it lies above 0, "at least" when '
    "the difference is not negative, and missed when it lies below 0; 0 is met when it contains 0."
)
NOISE_CAPTION = (
    "Spearman correlation over the subsets, mean over queries [95%]. Attainable: what a prediction "
    "without error would be expected to reach against the mean of all seeds, stepped up from the "
    "first line by the formula of Spearman and Brown (1910); additive noise assumed."
)
CHANCE_CAPTION = (
    "The scores of ekfac, for every query in a random order. One such order is itself a random "
    "draw: LDS of further ones, and how many of them are farther from 0 than the one in the first "
    "table."
)
DROP_CAPTION = (
    "The examples with the highest influence on a query are removed and the model is retrained: "
    "drop of the query's log-probability, in nats, beyond that from as many random ones [95% over "
    "queries]."
)
AUROC_CAPTION = (
    "Probability that a planted error has a lower score than a correct example, by the mean "
    'influence over the queries or by negated self-influence ("self"); 0.5 is chance. [95%]: both '
    "groups resampled. In brackets: number of errors."
)
FIGURE_CAPTION = (
    "LDS of every method with its intervals over queries, and over queries and subsets; drop of "
    "the log-probability after removal; AUROC of finding planted errors."
)
NOTES = (
    "Ground truth: the base testbed:{base} fine-tuned by the shared fine-tuner ({steps} steps of "
    "{batch_size} at {learning_rate:g}) on {halves} random subsets of {size} of {pool_size} "
    "examples ({errors} errors), each with {n_seeds} seeds; outcome: mean log-probability of the "
    "reference response of {queries} queries, mean over the seeds.",
    "Removals: {removal_queries} queries, {n_removal_seeds} seeds, {removal_random} random "
    "removals of the same size with the same seeds.",
    "Intervals: {draws:,} resamples of the queries. gradcos: dot product over the length of the "
    "example's gradient. tracin: along the reference run.",
    sentences.TESTBED_NOTE,
)


@dataclass(frozen=True)
class Findings:
    """All numbers of a study: `rows` are those of the CSV, by table, method and case.

    `errors` counts the planted errors of each class, `correct` the correct examples.
    """

    protocol: Mapping[str, Any]
    facts: Mapping[str, Any]
    rows: pd.DataFrame
    errors: Mapping[str, int]
    correct: int

    def of(self, table: str) -> pd.DataFrame:
        """The rows of one table."""
        return self.rows[self.rows["table"] == table]

    def at(self, table: str, method: str = "", case: str = "") -> Any:
        """One row."""
        keys = self.rows[["table", "method", "case"]]
        (row,) = self.rows[(keys == [table, method, case]).all(axis=1)].itertuples()
        return row

    @property
    def methods(self) -> list[str]:
        """Methods with their default settings, best first."""
        return [method for method in self.of(LDS)["method"] if ", " not in method]

    @property
    def variants(self) -> list[str]:
        """Methods with another setting than the default, in the order of the study."""
        scored = set(self.of(LDS)["method"])
        return [name for name in self.facts["seconds"] if ", " in name and name in scored]


def measure(folder: Path) -> Findings:
    """Read `folder` and compute everything; the same files give the same numbers."""
    protocol = tomllib.loads((folder / "protocol.toml").read_text(encoding="utf-8"))
    facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    outcomes = _outcomes(pd.read_parquet(folder / "outcomes.parquet"), protocol)
    predictions = pd.read_parquet(folder / "predictions.parquet")
    predicted = {
        str(method): _wide(part, "half", "predicted")
        for method, part in predictions.groupby("method", sort=False)
    }
    removals = pd.read_parquet(folder / "removals.parquet")
    scores = pd.read_parquet(folder / "scores.parquet")
    correct = scores["quality"].isin(facts["correct_classes"])
    errors = scores["quality"][~correct].value_counts().sort_index()
    rows = [
        *_lds(predicted, outcomes.mean(axis=0)),
        (NOISE, "", "one seed", _interval(metrics.seed_agreement(outcomes), 0), None),
        (NOISE, "", "split half", _interval(metrics.split_half(outcomes), 0), None),
        (NOISE, "", "attainable", _interval(metrics.attainable(outcomes), 0), None),
        *_claims(predicted, outcomes.mean(axis=0)),
        *_drops(removals, protocol),
        *_auroc(scores, errors.index, correct),
    ]
    return Findings(protocol, facts, _frame(rows), errors.to_dict(), int(correct.sum()))


Row = tuple[str, str, str, Interval, Interval | None]
"""Table, method, case, interval over queries, interval over subsets and queries."""


def _frame(rows: Iterable[Row]) -> pd.DataFrame:
    columns = ["table", "method", "case", "estimate", "low", "high", "low_crossed", "high_crossed"]
    lines = [(*names, *own, *(wide[1:] if wide else (np.nan,) * 2)) for *names, own, wide in rows]
    return pd.DataFrame(lines, columns=columns)


def _rng(stream: int) -> np.random.Generator:
    """The same draws of queries for every method: differences are paired."""
    return np.random.default_rng([SEED, stream])


@cache
def _weights(stream: int, n: int) -> Floats:
    """Drawn once: most of an interval's time is in its draws."""
    return metrics.resample_weights(_rng(stream), metrics.DRAWS, n)


def _interval(values: Floats, stream: int) -> Interval:
    """Mean over n queries with its interval."""
    return metrics.weighted_mean(values, _weights(stream, len(values)))


def _wide(table: pd.DataFrame, index: str | list[str], values: str) -> Floats:
    """A column as [index, query], both sorted."""
    wide = table.pivot(index=index, columns="query", values=values).sort_index()
    array: Floats = wide.sort_index(axis=1).to_numpy(np.float64)
    return array


def _outcomes(table: pd.DataFrame, protocol: Mapping[str, Any]) -> Floats:
    """Log-probabilities [seeds, subsets, q]; ValueError where one is missing."""
    values = _wide(table, ["seed", "half"], "log_probability")
    shape = (len(protocol["seeds"]), protocol["halves"], protocol["queries"])
    if values.size != np.prod(shape) or not np.isfinite(values).all():
        raise ValueError(f"outcomes have shape {values.shape}; expected {shape}, none missing")
    return values.reshape(shape)


def _lds(predicted: Mapping[str, Floats], outcome: Floats) -> Iterator[Row]:
    """Score and lead over EK-FAC of every method, best first."""
    crossed = metrics.crossed(predicted, outcome, ANCHOR, _rng(1))
    scores = {method: metrics.spearman(values, outcome) for method, values in predicted.items()}
    for method in sorted(scores, key=lambda method: -scores[method].mean()):
        score, lead = crossed[method]
        yield LDS, method, "", _interval(scores[method], 0), score
        yield LEAD, method, "", _interval(scores[method] - scores[ANCHOR], 0), lead


def _claims(predicted: Mapping[str, Floats], outcome: Floats) -> Iterator[Row]:
    """What the study was to show; decided on the interval over queries."""
    scores = {method: metrics.spearman(values, outcome) for method, values in predicted.items()}
    pairs = ((ANCHOR, PEER, False), ("ekfac+cg", ANCHOR, True), (ANCHOR, "identity", True))
    for better, worse, strict in pairs:
        if better in scores and worse in scores:
            gap = _interval(scores[better] - scores[worse], 0)
            text = f"LDS of {better} {'above' if strict else 'at least'} that of {worse}"
            yield CLAIM, "", f"{text}: {verdict(gap, strict)}", gap, None
    null = _interval(scores[SHUFFLED], 0)
    judged = MET if null.low <= 0 <= null.high else MISSED
    yield CLAIM, "", f"LDS of shuffled scores is 0: {judged}", null, None


def verdict(gap: Interval, strict: bool) -> str:
    """`strict`: a lead is met when its interval lies above 0, otherwise when it is not negative."""
    if gap.high < 0:
        return MISSED
    return MET if (gap.low > 0 if strict else gap.mean >= 0) else OPEN


def _drops(table: pd.DataFrame, protocol: Mapping[str, Any]) -> Iterator[Row]:
    """Drop of a query beyond a random removal, by method and share."""
    queries = sorted(table["query"].unique())
    own_set = table["set"].map(dict(enumerate(queries))) == table["query"]
    for share in protocol["removed"]:
        chosen = table["share"] == share
        random = _wide(table[chosen & (table["method"] == RANDOM)], ["set", "seed"], LOGPROB)
        random = random.reshape(-1, len(protocol["removal_seeds"]), len(queries))
        for method in protocol["removal_methods"]:
            own = table[chosen & own_set & (table["method"] == method)]
            drops = metrics.drops(_wide(own, "seed", LOGPROB), random)
            yield DROP, method, f"{share:g}", _interval(drops, 2), None


def _auroc(scores: pd.DataFrame, errors: Iterable[str], correct: pd.Series) -> Iterator[Row]:
    methods = scores.columns.drop(["id", "quality"])
    values = {str(method): scores[method].to_numpy(np.float64) for method in methods}
    right = correct.to_numpy()
    areas = {
        name: metrics.auroc(values, (scores["quality"] == name).to_numpy(), right, _rng(3))
        for name in errors
    }
    for method in values:
        for name, area in areas.items():
            yield AUROC, method, name, area[method], None


def build(results: Path, reports: Path) -> list[Path]:
    """Write the report of `results` into `reports`; the same results give the same bytes."""
    findings = measure(results)
    return page(findings).write(reports, lambda: draw(findings))


def page(findings: Findings) -> Page:
    """Texts and numbers of the report."""
    protocol = findings.protocol
    alpha = f"(alpha = {protocol['alpha']:g})"
    settings = [ANCHOR, *findings.variants]
    auroc_title = f"AUROC of finding planted errors against {findings.correct} correct examples"
    contents = (
        (f"Linear datamodeling score {alpha}", LDS_CAPTION, _scores(findings, findings.methods)),
        (f"One setting changed at a time {alpha}", SETTINGS_CAPTION, _scores(findings, settings)),
        ("What was to be shown", CLAIMS_CAPTION, _verdicts(findings)),
        ("Noise of the ground truth", NOISE_CAPTION, _noise(findings)),
        ("Shuffled scores", CHANCE_CAPTION, _chance(findings.facts["chance"])),
        ("Leave-out brittleness", DROP_CAPTION, _removals(findings)),
        (auroc_title, AUROC_CAPTION, _detection(findings)),
    )
    values = {
        **protocol,
        **protocol["recipe"],
        "size": round(protocol["alpha"] * protocol["pool_size"]),
        "n_seeds": len(protocol["seeds"]),
        "n_removal_seeds": len(protocol["removal_seeds"]),
        "draws": metrics.DRAWS,
    }
    return Page(
        stem=STEM,
        title="Does influence predict what retraining does?",
        figure_caption=FIGURE_CAPTION,
        tables=[Table(title, caption, pd.DataFrame(lines)) for title, caption, lines in contents],
        notes=[note.format(**values) for note in NOTES],
        numbers=findings.rows,
    )


Lines = Iterator[dict[str, Any]]
"""Rows of a table, by heading."""


def _scores(findings: Findings, methods: Iterable[str]) -> Lines:
    for method in methods:
        score, lead = findings.at(LDS, method), findings.at(LEAD, method)
        gap = _text(lead, signed=True), _range(lead.low_crossed, lead.high_crossed)
        if method == ANCHOR:
            gap = numbers.NONE, numbers.NONE
        yield {
            "Method": method,
            "LDS [95%]": _text(score),
            "crossed": _range(score.low_crossed, score.high_crossed),
            f"Minus {ANCHOR}": gap[0],
            f"Minus {ANCHOR}, crossed": gap[1],
            "Seconds": numbers.seconds(findings.facts["seconds"].get(method, np.nan)),
        }


def _verdicts(findings: Findings) -> Lines:
    for row in findings.of(CLAIM).itertuples():
        claim, judged = row.case.rsplit(": ", 1)
        yield {"Claim": claim, "Difference or score": _text(row, signed=True), "Verdict": judged}


def _noise(findings: Findings) -> Lines:
    for row in findings.of(NOISE).itertuples():
        yield {"Compared": NOISES[row.case], "Correlation": _text(row)}


def _chance(chance: Mapping[str, Any]) -> Lines:
    yield {
        "Shuffles": chance["shuffles"],
        "Mean LDS": numbers.number(chance["mean"], 3, signed=True),
        "Standard deviation": numbers.number(chance["sd"], 3),
        "Farther from 0": chance["farther"],
    }


def _removals(findings: Findings) -> Lines:
    for method, rows in findings.of(DROP).groupby("method", sort=False):
        shares = [f"top {numbers.percent(float(share))} removed" for share in rows["case"]]
        yield {"Method": method, **dict(zip(shares, map(_text, rows.itertuples()), strict=True))}


def _detection(findings: Findings) -> Lines:
    for method, rows in findings.of(AUROC).groupby("method", sort=False):
        if ", " not in method:
            heads = [f"{name} ({findings.errors[name]})" for name in rows["case"]]
            texts = [_text(row, 2) for row in rows.itertuples()]
            yield {"Score": method, **dict(zip(heads, texts, strict=True))}


def _text(row: Any, digits: int = 3, *, signed: bool = False) -> str:
    estimate = numbers.number(row.estimate, digits, signed=signed)
    return f"{estimate} {_range(row.low, row.high, digits)}"


def _range(low: float, high: float, digits: int = 3) -> str:
    return f"[{numbers.number(low, digits)}, {numbers.number(high, digits)}]"


def draw(findings: Findings) -> Figure:
    """The figure; same findings, same picture."""
    from matplotlib.figure import Figure

    plain = findings.rows[~findings.rows["method"].str.contains(", ")]
    lds = plain[plain["table"] == LDS].assign(label=plain["method"], group="queries")
    crossed = lds.assign(
        group="queries and subsets", low=lds["low_crossed"], high=lds["high_crossed"]
    )
    drops = plain[plain["table"] == DROP].assign(label=plain["method"])
    drops["group"] = [f"top {numbers.percent(float(share))}" for share in drops["case"]]
    auroc = plain[plain["table"] == AUROC].assign(label=plain["method"], group=plain["case"])
    ceiling = findings.at(NOISE, case="attainable")
    figure = Figure(figsize=(10.2, 5), layout="constrained")
    axes = figure.subplots(1, 3)
    alpha = f"LDS, alpha = {findings.protocol['alpha']:g} (grey: attainable)"
    band = (ceiling.low, ceiling.high)
    forest(axes[0], pd.concat([lds, crossed]), "Predicting retraining", alpha, band)
    quantity = "drop beyond random removal, nats"
    forest(axes[1], drops, "Brittleness: top of the pool removed", quantity, (0, 0))
    forest(axes[2], auroc, "Finding planted errors", "AUROC: error below correct", (0.5, 0.5))
    return figure
