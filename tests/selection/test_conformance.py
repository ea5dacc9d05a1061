"""Every selector keeps the contract, and each property can be broken."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest

from harness.selection import conformance, plugins, toy
from harness.selection.context import Context
from harness.selection.requests import Features
from harness.selection.selector import Positions, Scores, ScoreSelector, Selector

CASES: list[tuple[str, dict[str, Any]]] = [
    *[(name, {}) for name in plugins.names()],
    ("random", {"stratify": "source"}),
    ("random", {"match": "length", "of": "length"}),
    ("length", {"order": "shortest"}),
    ("length", {"order": "middle"}),
    ("difficulty", {"k": 5, "band": [0.2, 0.8]}),
    ("difficulty", {"column": "steps"}),
    ("perplexity", {"band": "top"}),
    ("perplexity", {"band": "bottom"}),
    ("perplexity", {"band": "from-third"}),
    ("embedding", {"pool": "mean", "aggregate": "mean-max"}),
    ("embedding", {"pool": "last"}),
    ("influence", {"strategy": "correct", "curvature": "identity"}),
    ("influence", {"strategy": "incorrect", "curvature": "identity"}),
    ("influence", {"mix": "rank", "curvature": "identity"}),
    ("influence", {"whose": "contrast", "curvature": "ekfac", "replicates": 10}),
    ("tracin", {"loss": "sum"}),
    ("less", {"layers": "mlp"}),
    ("self_influence", {"order": "high", "curvature": "identity"}),
    ("self_influence", {"curvature": "ekfac"}),
]


SPAWNED = "survives a spawned process"


@pytest.mark.parametrize(("name", "params"), CASES, ids=str)
def test_every_selector_conforms(name: str, params: dict[str, Any]) -> None:
    inside = [name for name in conformance.PROPERTIES if name != SPAWNED]
    report = conformance.check(plugins.build(name, params), only=inside)
    assert report.passed, f"\n{report}"
    assert len(report.entries) == len(conformance.PROPERTIES) - 1


def test_every_selector_survives_a_spawned_process() -> None:
    """All in one process, as each would spend its time on importing torch."""
    selectors = {f"{case}": plugins.build(*case) for case in CASES}
    assert conformance.spawned(selectors) == selectors
    assert conformance.check(selectors["('length', {})"], only=[SPAWNED]).passed


def positions(budget: int) -> Positions:
    return np.arange(budget, dtype=np.int64)


@dataclass(frozen=True)
class TooFew(Selector):
    def select(self, pool: Any, budget: int, context: Context) -> Positions:
        return positions(budget - 1)


@dataclass(frozen=True)
class Repeats(Selector):
    def select(self, pool: Any, budget: int, context: Context) -> Positions:
        return positions(budget) // 2


@dataclass(frozen=True)
class OutOfRange(Selector):
    def select(self, pool: Any, budget: int, context: Context) -> Positions:
        return positions(budget) + 1


@dataclass(frozen=True)
class Booleans(Selector):
    def select(self, pool: Any, budget: int, context: Context) -> Positions:
        return np.ones(budget, dtype=bool)  # type: ignore[return-value]


@dataclass(frozen=True)
class NotFinite(ScoreSelector):
    def score(self, pool: Any, context: Context) -> Scores:
        return np.full(len(pool), np.nan)


CALLS: list[int] = []


@dataclass(frozen=True)
class Remembers(Selector):
    def select(self, pool: Any, budget: int, context: Context) -> Positions:
        CALLS.append(0)
        return np.roll(np.arange(len(pool)), len(CALLS))[:budget]


@dataclass(frozen=True)
class NotRandom(Selector):
    stochastic: ClassVar[bool] = True

    def select(self, pool: Any, budget: int, context: Context) -> Positions:
        return positions(budget)


@dataclass(frozen=True)
class FirstOnes(Selector):
    def select(self, pool: Any, budget: int, context: Context) -> Positions:
        return positions(budget)


@dataclass(frozen=True)
class Mutates(Selector):
    def select(self, pool: Any, budget: int, context: Context) -> Positions:
        pool.labels[0][:] = 3
        return positions(budget)


@dataclass(frozen=True)
class GlobalPython(Selector):
    def select(self, pool: Any, budget: int, context: Context) -> Positions:
        return np.array(random.sample(range(len(pool)), budget))


@dataclass(frozen=True)
class GlobalNumpy(Selector):
    def select(self, pool: Any, budget: int, context: Context) -> Positions:
        return np.random.permutation(len(pool))[:budget]


@dataclass(frozen=True)
class GlobalTorch(Selector):
    def select(self, pool: Any, budget: int, context: Context) -> Positions:
        import torch

        order: Positions = torch.randperm(len(pool)).numpy()
        return order[:budget]


class Plain(Selector):
    def __init__(self, k: int) -> None:
        self.__dict__["k"] = k

    def select(self, pool: Any, budget: int, context: Context) -> Positions:
        return positions(budget)


@dataclass(frozen=True)
class Fitted(Selector):
    def select(self, pool: Any, budget: int, context: Context) -> Positions:
        self.__dict__["fitted"] = True
        return positions(budget)


@dataclass(frozen=True)
class Stuck(Selector):
    function: Any = field(default=lambda: 0)

    def select(self, pool: Any, budget: int, context: Context) -> Positions:
        return positions(budget)


@dataclass(frozen=True)
class NotNested(ScoreSelector):
    def score(self, pool: Any, context: Context) -> Scores:
        return np.arange(len(pool), dtype=float)

    def select(self, pool: Any, budget: int, context: Context) -> Positions:
        return (np.arange(budget) + budget) % len(pool)


@dataclass(frozen=True)
class WorstFirst(ScoreSelector):
    def score(self, pool: Any, context: Context) -> Scores:
        return pool.response_lengths.astype(float)  # type: ignore[no-any-return]

    def select(self, pool: Any, budget: int, context: Context) -> Positions:
        return super().select(pool, budget, context)[::-1]


@dataclass(frozen=True)
class Undeclared(ScoreSelector):
    def score(self, pool: Any, context: Context) -> Scores:
        return context.get(Features()).losses[0]  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("selector", "name", "detail"),
    [
        (TooFew(), "count", "shape (0,) for a budget of 1"),
        (Repeats(), "distinct", "6 repeated for a budget of 12"),
        (OutOfRange(), "in range", "from 1 to 48; expected 0 to 47"),
        (Booleans(), "in range", "positions are bool"),
        (NotFinite(), "finite scores", "expected finite numbers"),
        (Remembers(), "same seed, same subset", "something else"),
        (NotRandom(), "another seed, another subset", "the same subset"),
        (FirstOnes(), "pool order does not matter", "ids changed"),
        (Mutates(), "pool is not changed", "changed"),
        (GlobalPython(), "global generators are not touched", "of random moved"),
        (GlobalNumpy(), "global generators are not touched", "of numpy moved"),
        (GlobalTorch(), "global generators are not touched", "of torch moved"),
        (Plain(3), "hyper-parameters are fields", "not decorated"),
        (Fitted(), "hyper-parameters are fields", "['fitted'] are not fields"),
        (Stuck(), "survives a spawned process", "raised"),
        (NotNested(), "nested budgets", "not inside"),
        (WorstFirst(), "best first", "falling order"),
        (Undeclared(), "count", "without requesting it"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Selector) else None,
)
def test_each_property_can_be_broken(selector: Selector, name: str, detail: str) -> None:
    report = conformance.check(selector, only=[name])
    assert not report[name].passed
    assert detail in report[name].detail
    assert not report.passed
    assert f"BROKEN {name}: " in str(report)


def test_ties_at_the_cut_are_allowed_to_follow_pool_order() -> None:
    @dataclass(frozen=True)
    class Ties(ScoreSelector):
        def score(self, pool: Any, context: Context) -> Scores:
            return (pool.response_lengths > np.median(pool.response_lengths) + 9).astype(float)  # type: ignore[no-any-return]

    report = conformance.check(Ties(), only=["pool order does not matter"])
    assert report["pool order does not matter"].passed


def test_only_the_named_properties_are_checked() -> None:
    report = conformance.check(TooFew(), only=["distinct", "in range"])
    assert [entry.name for entry in report.entries] == ["distinct", "in range"]
    assert report.passed  # what was not checked is not judged
    whole = conformance.check(FirstOnes())
    assert [entry.name for entry in whole.entries] == list(conformance.PROPERTIES)
    with pytest.raises(ValueError, match="property 'counts' does not exist; expected one of 'c"):
        conformance.check(TooFew(), only=["counts"])


def test_what_does_not_apply_is_said() -> None:
    report = conformance.check(plugins.build("random", {}))
    assert not report["nested budgets"].applies
    assert report["nested budgets"].detail == "not a ScoreSelector"
    assert "n/a    nested budgets: not a ScoreSelector" in str(report)
    assert report.passed
    assert report.as_dict()["properties"][0] == {
        "name": "count",
        "passed": True,
        "detail": "",
        "applies": True,
    }


def test_the_made_up_pool_is_sound() -> None:
    pool, queries = toy.make_pool(), toy.make_queries()
    assert len(set(pool.response_lengths)) == len(pool) == 48
    assert queries.C.tolist() == [0, 1, 2]
    assert queries.I.tolist() == [3, 4]
    tokenizer = toy.tokenizer()
    text = pool.column("prompt")[5] + pool.column("response")[5]
    assert [*tokenizer(text)["input_ids"], 1] == pool.input_ids[5].tolist()
    assert tokenizer.decode(pool.input_ids[5][:-1]) == text
