"""The conformance suite: does a selector, built in or third-party, keep the contract?

`check(selector)` runs it on a small made-up pool with everything that a context can offer: a random
two-layer model, a query set with made-up answers, graded decodes drawn from a fixed seed. What it
chooses there means nothing; how it behaves does.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import random
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.data.pool import Pool
from harness.selection.context import Context
from harness.selection.selector import Positions, ScoreSelector, Selector, check_scores
from harness.selection.toy import SIZE, Fixture, make_pool

BUDGETS = (1, 12, 24, SIZE)
HALF = 24


@dataclass(frozen=True)
class Entry:
    """One property: kept or broken, and what was seen; one that does not apply is not broken."""

    name: str
    passed: bool
    detail: str = ""
    applies: bool = True

    def __str__(self) -> str:
        word = ("ok" if self.passed else "BROKEN") if self.applies else "n/a"
        return f"{word:6} {self.name}" + (f": {self.detail}" if self.detail else "")


@dataclass(frozen=True)
class Report:
    """Every property of one selector."""

    selector: str
    entries: tuple[Entry, ...]

    @property
    def passed(self) -> bool:
        """No property is broken."""
        return all(entry.passed for entry in self.entries)

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        properties = [dataclasses.asdict(entry) for entry in self.entries]
        return {"selector": self.selector, "passed": self.passed, "properties": properties}

    def __getitem__(self, name: str) -> Entry:
        return next(entry for entry in self.entries if entry.name == name)

    def __str__(self) -> str:
        return "\n".join([self.selector, *(f"  {entry}" for entry in self.entries)])


class Broken(Exception):
    """A property does not hold; the message says what was seen."""


class Skipped(Exception):
    """A property does not apply to this selector; the message says why."""


def check(selector: Selector, *, seed: int = 0, only: Iterable[str] | None = None) -> Report:
    """Run every property, or `only` the named ones, on `selector`.

    A property that raises counts as broken, with its error. ValueError for an unknown name.
    """
    names = list(PROPERTIES if only is None else only)
    for name in names:
        if name not in PROPERTIES:
            known = ", ".join(map(repr, PROPERTIES))
            raise ValueError(f"property {name!r} does not exist; expected one of {known}")
    trial = Trial(selector, seed)
    entries = [_entry(name, PROPERTIES[name], trial) for name in names]
    return Report(repr(selector), tuple(entries))


def _entry(name: str, test: Callable[[Trial], None], trial: Trial) -> Entry:
    try:
        test(trial)
    except Skipped as reason:
        return Entry(name, True, str(reason), applies=False)
    except Broken as problem:
        return Entry(name, False, str(problem))
    except Exception as error:
        return Entry(name, False, f"raised {type(error).__name__}: {error}")
    return Entry(name, True)


class Trial:
    """One selector on the made-up pool; costly signals are shared between its runs."""

    def __init__(self, selector: Selector, seed: int) -> None:
        self.selector = selector
        self.seed = seed
        self.pool = make_pool()
        self._fixture = Fixture()
        self._subsets: dict[int, npt.NDArray[Any]] = {}

    def run(self, budget: int, *, pool: Pool | None = None, seed: int | None = None) -> Positions:
        """What the selector returns, unchecked."""
        pool = self.pool if pool is None else pool
        return self.selector.select(pool, budget, self.context(pool, budget, seed))

    def subset(self, budget: int) -> npt.NDArray[Any]:
        """The first answer for `budget`, as an array."""
        if budget not in self._subsets:
            self._subsets[budget] = np.asarray(self.run(budget))
        return self._subsets[budget]

    @cached_property
    def scores(self) -> npt.NDArray[np.float64]:
        """Checked scores of a score selector; Skipped for any other."""
        if not isinstance(self.selector, ScoreSelector):
            raise Skipped("not a ScoreSelector")
        scores = self.selector.score(self.pool, self.context(self.pool, HALF))
        return check_scores(scores, self.pool, type(self.selector).__name__)

    def context(self, pool: Pool, budget: int, seed: int | None = None) -> Context:
        """A new context with the selector's requests."""
        seed = self.seed if seed is None else seed
        rng = np.random.default_rng(seed) if self.selector.stochastic else None
        load = partial(self._fixture.load, pool=pool, budget=budget)
        return Context(self.selector.requests(), load, rng=rng)


def _count(trial: Trial) -> None:
    for budget in BUDGETS:
        subset = trial.subset(budget)
        if subset.shape != (budget,):
            raise Broken(f"shape {subset.shape} for a budget of {budget}")


def _distinct(trial: Trial) -> None:
    for budget in BUDGETS:
        subset = trial.subset(budget)
        repeated = subset.size - len(np.unique(subset))
        if repeated:
            raise Broken(f"{repeated} repeated for a budget of {budget}")


def _in_range(trial: Trial) -> None:
    for budget in BUDGETS:
        subset = trial.subset(budget)
        if not np.issubdtype(subset.dtype, np.integer):
            raise Broken(f"positions are {subset.dtype}; expected integers")
        if subset.size and (subset.min() < 0 or subset.max() >= SIZE):
            raise Broken(f"from {subset.min()} to {subset.max()}; expected 0 to {SIZE - 1}")


def _finite(trial: Trial) -> None:
    _ = trial.scores


def _repeatable(trial: Trial) -> None:
    again = np.asarray(trial.run(HALF))
    if not np.array_equal(again, trial.subset(HALF)):
        raise Broken("a second run with the same seed gave something else")


def _redrawn(trial: Trial) -> None:
    if not trial.selector.stochastic:
        raise Skipped("declared deterministic")
    if set(np.asarray(trial.run(HALF, seed=trial.seed + 1))) == set(trial.subset(HALF)):
        raise Broken("declared stochastic, but another seed gave the same subset")


def _order_free(trial: Trial) -> None:
    if trial.selector.stochastic:
        raise Skipped("stochastic")
    shuffled = trial.pool.take(np.random.default_rng(7).permutation(SIZE))
    chosen = {shuffled.ids[p] for p in trial.run(HALF, pool=shuffled)}
    expected = {trial.pool.ids[p] for p in trial.subset(HALF)}
    if isinstance(trial.selector, ScoreSelector):
        # Ties keep pool order, so only the ids clearly above the cut have to agree.
        scores = trial.scores
        cut = np.sort(scores)[-HALF:][0]
        if (scores >= cut).sum() > HALF:
            expected = {trial.pool.ids[p] for p in np.flatnonzero(scores > cut)}
    if not expected <= chosen:
        raise Broken(f"{len(expected - chosen)} of {HALF} ids changed with the order of the pool")


def _pool_untouched(trial: Trial) -> None:
    pool = make_pool()
    before = copy.deepcopy((pool.ids, pool.input_ids, pool.labels, dict(pool.columns)))
    trial.run(HALF, pool=pool)
    same = (
        pool.ids == before[0]
        and all(map(np.array_equal, pool.input_ids, before[1]))
        and all(map(np.array_equal, pool.labels, before[2]))
        and dict(pool.columns) == before[3]
    )
    if not same:
        raise Broken("ids, tokens, labels or columns changed")


def _generators_untouched(trial: Trial) -> None:
    trial.subset(HALF)  # lazy imports and the first build of the model are over
    before = _generators()
    trial.run(HALF)
    moved = [name for name, state in _generators().items() if before.get(name, state) != state]
    if moved:
        raise Broken(f"the global generator of {', '.join(moved)} moved; expected context.rng only")


def _generators() -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    states = {"random": random.getstate(), "numpy": (kind, np.asarray(keys).tobytes(), *rest)}
    if "torch" in sys.modules:
        states["torch"] = sys.modules["torch"].get_rng_state().numpy().tobytes()
    return states


def _fields_only(trial: Trial) -> None:
    selector, kind = trial.selector, type(trial.selector)
    dataclass_params = vars(kind).get("__dataclass_params__")
    if dataclass_params is None or not dataclass_params.frozen:
        raise Broken(f"{kind.__name__} is not decorated with @dataclass(frozen=True)")
    trial.subset(HALF)
    names = {field.name for field in dataclasses.fields(kind)}
    extra = sorted(set(vars(selector)) - names)
    if extra:
        raise Broken(f"attributes {extra} are not fields")
    if dataclasses.replace(selector) != selector:
        raise Broken("an instance made from its own fields is not equal to it")


def spawned(value: Any) -> Any:
    """`value` as it comes back, pickled, from a new process; Broken where that cannot load it."""
    code = (
        "import json, pickle, sys\n"
        "sys.path[:] = json.loads(sys.stdin.buffer.readline())\n"
        "sys.stdout.buffer.write(pickle.dumps(pickle.load(sys.stdin.buffer)))"
    )
    message = json.dumps(sys.path).encode() + b"\n" + pickle.dumps(value)
    process = subprocess.run(
        [sys.executable, "-c", code], input=message, capture_output=True, check=False
    )
    if process.returncode:
        raise Broken(f"a new process cannot load it: {process.stderr.decode().splitlines()[-1]}")
    return pickle.loads(process.stdout)


def _travels(trial: Trial) -> None:
    if spawned(trial.selector) != trial.selector:
        raise Broken("it comes back different from a new process")


def _nested(trial: Trial) -> None:
    _ = trial.scores  # skips other selectors
    for small, large in pairwise(BUDGETS):
        if not set(trial.subset(small)) <= set(trial.subset(large)):
            raise Broken(f"the subset of {small} is not inside the subset of {large}")


def _best_first(trial: Trial) -> None:
    scores = trial.scores
    expected = np.argsort(-scores, kind="stable")
    for budget in BUDGETS:
        if not np.array_equal(trial.subset(budget), expected[:budget]):
            raise Broken(f"for a budget of {budget}: not the highest scores in falling order")


PROPERTIES: dict[str, Callable[[Trial], None]] = {
    "count": _count,
    "distinct": _distinct,
    "in range": _in_range,
    "finite scores": _finite,
    "same seed, same subset": _repeatable,
    "another seed, another subset": _redrawn,
    "pool order does not matter": _order_free,
    "pool is not changed": _pool_untouched,
    "global generators are not touched": _generators_untouched,
    "hyper-parameters are fields": _fields_only,
    "survives a spawned process": _travels,
    "nested budgets": _nested,
    "best first": _best_first,
}
