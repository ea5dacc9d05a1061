import pytest

from harness.data.testbed.chains import canonical, parse
from harness.data.testbed.sets import (
    TASKS,
    PoolSpec,
    check_disjoint,
    make_pool,
    make_queries,
    make_task,
)

HOPS = {
    "chain_core": {3, 4, 5},
    "chain_long": {6},
    "chain_distract": {3, 4},
    "chain_far": {3, 4, 5},
}


@pytest.mark.parametrize("name", TASKS)
def test_items_are_what_the_task_says(name: str, verify) -> None:
    rows = make_task(name, 60, seed=0)
    assert rows == make_task(name, 60, seed=0)
    assert rows != make_task(name, 60, seed=1)
    assert len({row["id"] for row in rows}) == len({canonical(r["prompt"]) for r in rows}) == 60
    steps = {row["steps"] for row in rows}
    assert steps == HOPS[name]
    for row in rows:
        problem = parse(row["prompt"])
        assert verify(row["prompt"], row["response"]).steps_ok
        assert row["answer"] == str(problem.answer)
        assert ("*" in row["prompt"]) or name == "chain_far"
        assert "*" not in row["prompt"] or name != "chain_far"
        spare = len(problem.definitions) - len(problem.needed)
        assert spare == (1 if name == "chain_distract" else 0)


def test_unknown_task_is_refused() -> None:
    with pytest.raises(ValueError, match="'chain'"):
        make_task("chain", 1, 0)


@pytest.mark.parametrize("seed", [0, 1])
def test_generated_sets_are_disjoint(seed: int) -> None:
    pool = make_pool(PoolSpec(400, "random", seed))
    tasks = {name: make_task(name, 100, seed) for name in TASKS}
    check_disjoint(pool, make_queries(150, seed), tasks)


@pytest.mark.parametrize("holder", ["queries", "chain_core", "chain_distract"])
def test_planted_overlap_is_found_under_other_names(holder: str) -> None:
    pool = make_pool(PoolSpec(100, "systematic", 0))
    sets = {name: make_task(name, 20, 0) for name in TASKS} | {"queries": make_queries(20, 0)}
    victim = next(row for row in pool if row["quality"] == "wrong-step")
    names = dict(zip("abcdefghkm", "bcdefghkma", strict=True))
    sets[holder].append({"id": "planted", "prompt": parse(victim["prompt"]).renamed(names).prompt})
    with pytest.raises(ValueError, match=f"'planted' of {holder} is item '{victim['id']}' of pool"):
        check_disjoint(pool, sets.pop("queries"), sets)


def test_overlap_between_queries_and_a_task_is_found() -> None:
    queries = make_queries(5, 0)
    with pytest.raises(ValueError, match="'copy' of chain_core is item 'q0002' of queries"):
        check_disjoint([], queries, {"chain_core": [queries[2] | {"id": "copy"}]})
