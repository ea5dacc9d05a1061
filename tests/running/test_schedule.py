"""The order of jobs: what most waits for first, tasks of a checkpoint together, cells finished."""

from dataclasses import dataclass

from harness.experiment.stage import Recipe, Stage
from harness.running.schedule import descendants, grouped


@dataclass(frozen=True)
class Step(Recipe):
    kind = "step"
    name: str


@dataclass(frozen=True)
class Samples(Recipe):
    kind = "samples"
    name: str


def step(name, *parents, recipe=Step):
    roles = {"model" if recipe is Samples else f"{n}": parent for n, parent in enumerate(parents)}
    return Stage(recipe(name), name, roles)


def by_key(*stages):
    return {stage.key: stage for stage in stages}


POOL, BASE = step("pool"), step("base")
FIRST, SECOND = (step(name, POOL, BASE) for name in ("first", "second"))
TASKS = [
    step(f"{task} of {model.label}", model, recipe=Samples)
    for model in (FIRST, SECOND)
    for task in ("core", "far")
]
LONE = step("lone")


def test_descendants_by_hand():
    waiting = descendants(by_key(POOL, BASE, FIRST, SECOND, *TASKS, LONE))
    counts = [waiting[stage.key] for stage in (POOL, BASE, FIRST, SECOND, TASKS[0], LONE)]
    assert counts == [6, 6, 2, 2, 0, 0]


def test_what_most_waits_for_goes_first_and_tasks_share_a_job():
    groups = grouped(by_key(LONE, POOL, BASE, FIRST, SECOND, *TASKS))
    labels = [[stage.label for stage in group] for group in groups]
    assert labels == [
        ["pool"],
        ["base"],
        # An evaluation goes before the next training, so that cells are finished one by one.
        ["core of first", "far of first"],
        ["core of second", "far of second"],
        ["first"],
        ["second"],
        ["lone"],
    ]
