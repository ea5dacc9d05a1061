"""What the results of a study say: every number of its report, from `results/validation/` alone."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.studies.influence import metrics
from harness.studies.influence.bootstrap import DRAWS, Floats, Interval, shares, weighted
from harness.studies.influence.brittle import drops
from harness.studies.influence.detect import auroc_intervals

ANCHOR, PEER, RANDOM, SHUFFLED = "ekfac", "kronfluence", "random", "shuffled"
MET, OPEN, MISSED = "met", "not told apart", "missed"
SEED = 41


@dataclass(frozen=True)
class Line:
    """The score of one method, and its lead over EK-FAC.

    `score`, `lead`: intervals over queries; `wide`, `wide_lead`: over queries and subsets.
    """

    method: str
    score: Interval
    wide: Interval
    lead: Interval
    wide_lead: Interval
    seconds: float


@dataclass(frozen=True)
class Claim:
    """Something that was to be shown, and whether it was."""

    text: str
    found: Interval
    verdict: str


@dataclass(frozen=True)
class Findings:
    """All numbers of a study. `drops` is by method and share, `auroc` by method and class."""

    protocol: Mapping[str, Any]
    facts: Mapping[str, Any]
    lines: tuple[Line, ...]
    single: Interval
    half: Interval
    attainable: Interval
    claims: tuple[Claim, ...]
    drops: Mapping[tuple[str, float], Interval]
    auroc: Mapping[tuple[str, str], Interval]
    classes: Mapping[str, int]
    correct: int

    @property
    def methods(self) -> tuple[Line, ...]:
        """Lines of methods with their default settings, best first."""
        return tuple(line for line in self.lines if ", " not in line.method)

    @property
    def variants(self) -> tuple[Line, ...]:
        """Lines with another setting than the default, in the order of the study."""
        order = list(self.facts["seconds"])
        found = (line for line in self.lines if ", " in line.method)
        return tuple(sorted(found, key=lambda line: order.index(line.method)))


def measure(folder: Path) -> Findings:
    """Read `folder` and compute everything; the same files give the same numbers."""
    protocol = tomllib.loads((folder / "protocol.toml").read_text(encoding="utf-8"))
    facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    outcomes = _outcomes(pd.read_parquet(folder / "outcomes.parquet"), protocol)
    predicted = _predictions(pd.read_parquet(folder / "predictions.parquet"))
    lines = _lines(predicted, outcomes.mean(axis=0), facts["seconds"])
    scores = pd.read_parquet(folder / "scores.parquet")
    planted = scores["quality"]
    wrong = sorted(set(planted) - set(facts["correct_classes"]))
    one = np.mean(
        [
            metrics.spearman(outcomes[i], outcomes[j])
            for i in range(len(outcomes))
            for j in range(i + 1, len(outcomes))
        ],
        axis=0,
    )
    return Findings(
        protocol=protocol,
        facts=facts,
        lines=lines,
        single=_over(one, 0),
        half=_over(metrics.split_half(outcomes), 0),
        attainable=_over(metrics.attainable(outcomes), 0),
        claims=claims({line.method: line for line in lines}, predicted, outcomes.mean(axis=0)),
        drops=_drops(pd.read_parquet(folder / "removals.parquet"), protocol),
        auroc=_auroc(scores, wrong, facts["correct_classes"]),
        classes={name: int((planted == name).sum()) for name in wrong},
        correct=int(planted.isin(facts["correct_classes"]).sum()),
    )


def claims(
    lines: Mapping[str, Line], predicted: Mapping[str, Floats], outcome: Floats
) -> tuple[Claim, ...]:
    """What the study was to show; decided on the interval over queries."""
    score = {name: metrics.spearman(values, outcome) for name, values in predicted.items()}
    found = []
    for better, worse, strict in (
        (ANCHOR, PEER, False),
        ("ekfac+cg", ANCHOR, True),
        (ANCHOR, "identity", True),
    ):
        if better in score and worse in score:
            gap = _over(score[better] - score[worse], 0)
            text = f"LDS of {better} {'above' if strict else 'at least'} that of {worse}"
            found.append(Claim(text, gap, verdict(gap, strict)))
    null = lines[SHUFFLED].score
    inside = null.low <= 0 <= null.high
    found.append(Claim("LDS of shuffled scores is 0", null, MET if inside else MISSED))
    return tuple(found)


def verdict(gap: Interval, strict: bool) -> str:
    """`strict`: a lead is met when its interval lies above 0, otherwise when it is not negative."""
    if gap.high < 0:
        return MISSED
    if strict:
        return MET if gap.low > 0 else OPEN
    return MET if gap.mean >= 0 else OPEN


def _rng(number: int) -> np.random.Generator:
    """The same draws of queries for every method: differences are paired."""
    return np.random.default_rng([SEED, number])


@cache
def _weights(number: int, n: int) -> Floats:
    """Drawn once: most of an interval's time is in its draws."""
    return shares(_rng(number), DRAWS, n)


def _over(values: Floats, number: int) -> Interval:
    """Mean over n queries with its interval."""
    return weighted(values, _weights(number, len(values)))


def _outcomes(table: pd.DataFrame, protocol: Mapping[str, Any]) -> Floats:
    """Log-probabilities [seeds, subsets, q]; ValueError where one is missing."""
    wide = table.pivot(index=["seed", "half"], columns="query", values="log_probability")
    shape = (len(protocol["seeds"]), protocol["halves"], protocol["queries"])
    values: Floats = wide.sort_index().sort_index(axis=1).to_numpy(np.float64)
    if values.size != np.prod(shape) or not np.isfinite(values).all():
        raise ValueError(f"outcomes have shape {values.shape}; expected {shape}, none missing")
    return values.reshape(shape)


def _predictions(table: pd.DataFrame) -> dict[str, Floats]:
    found = {}
    for name in table["method"].unique():
        part = table[table["method"] == name].pivot(
            index="half", columns="query", values="predicted"
        )
        found[str(name)] = part.sort_index().sort_index(axis=1).to_numpy(np.float64)
    return found


def _lines(
    predicted: Mapping[str, Floats], outcome: Floats, seconds: Mapping[str, float]
) -> tuple[Line, ...]:
    wide = metrics.crossed(predicted, outcome, ANCHOR, _rng(1))
    score = {name: metrics.spearman(values, outcome) for name, values in predicted.items()}
    lines = [
        Line(
            method=name,
            score=_over(values, 0),
            wide=wide[name][0],
            lead=_over(values - score[ANCHOR], 0),
            wide_lead=wide[name][1],
            seconds=float(seconds.get(name, np.nan)),
        )
        for name, values in score.items()
    ]
    return tuple(sorted(lines, key=lambda line: -line.score.mean))


def _drops(table: pd.DataFrame, protocol: Mapping[str, Any]) -> dict[tuple[str, float], Interval]:
    """Fall of a query beyond a random removal, by method and share, over queries."""
    queries = sorted(table["query"].unique())
    seeds, found = len(protocol["removal_seeds"]), {}
    for share in protocol["removed"]:
        part = table[table["share"] == share]
        wide = part[part["method"] == RANDOM].pivot(
            index=["set", "seed"], columns="query", values="log_probability"
        )
        random = wide.sort_index()[queries].to_numpy(np.float64).reshape(-1, seeds, len(queries))
        for method in protocol["removal_methods"]:
            own = part[part["method"] == method]
            own = own[own["set"].map(dict(enumerate(queries))) == own["query"]]
            without = own.pivot(index="seed", columns="query", values="log_probability")
            values = without.sort_index()[queries].to_numpy(np.float64)
            found[method, share] = _over(drops(values, random), 2)
    return found


def _auroc(
    scores: pd.DataFrame, wrong: list[str], correct: list[str]
) -> dict[tuple[str, str], Interval]:
    planted = scores["quality"]
    right = planted.isin(correct).to_numpy()
    methods = {
        str(m): scores[m].to_numpy(np.float64) for m in scores.columns.drop(["id", "quality"])
    }
    found = {
        name: auroc_intervals(methods, (planted == name).to_numpy(), right, _rng(3))
        for name in wrong
    }
    return {(method, name): found[name][method] for method in methods for name in wrong}
