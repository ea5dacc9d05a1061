"""The study from nothing to its counts: what is not counted yet is simulated, in processes."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
from rich.console import Console

from harness.experiment.records import provenance, write_atomic
from harness.running.drain import drain
from harness.running.workers import Outcome, Report
from harness.studies.intervals.design import Aim, Point, Protocol
from harness.studies.intervals.power import answer
from harness.studies.intervals.simulate import simulate

HEAD = "# The protocol of this study as it was run; written before the first table.\n"
PROTOCOL, COUNTS, FACTS = "protocol.toml", "counts.jsonl", "facts.json"
PLACES = ("structures", "seeds", "items", "spreads", "aims")
"""Settings that say which points there are; what one point counts follows from the others."""


@dataclass(frozen=True)
class Task:
    """A point or a question about power, for a worker."""

    place: Point | Aim
    protocol: Protocol


def make(task: Task, report: Report) -> dict[str, Any]:
    """Simulate one task; called inside a worker."""

    def told(done: int, total: int) -> None:
        report("tables", done, total)

    if isinstance(task.place, Aim):
        return answer(task.place, task.protocol, told)
    return simulate(task.place, task.protocol, told)


def run(protocol: Protocol, folder: Path, workers: int, console: Console) -> None:
    """Simulate what `folder` has no counts of; every finished point is written at once."""
    made = provenance(Path(__file__).parents[3], "cpu", {})  # of the code that starts
    places: list[Point | Aim] = [*protocol.points, *protocol.aims]
    counted = _counted(protocol, folder)
    write_atomic(folder / PROTOCOL, (HEAD + tomli_w.dumps(protocol.as_dict())).encode())
    missing = [place for place in places if place not in counted]
    found = len(places) - len(missing)
    console.print(f"simulating: {len(missing)} to do, {found} found", highlight=False)

    def take(ended: Outcome) -> None:
        if ended.error is not None:
            raise RuntimeError(f"{ended.job.place}: {ended.error['message']}")
        counted[ended.job.place] = ended.result
        _write(folder, {place: counted[place] for place in places if place in counted})

    # The longest first: the rest fills the other cores.
    order = sorted(missing, key=lambda place: -place.size)
    drain([Task(place, protocol) for place in order], workers, make, take, "simulating", console)
    if missing or not (folder / FACTS).exists():
        facts = {"study": "statistics", "made": made}
        write_atomic(folder / FACTS, (json.dumps(facts, indent=1) + "\n").encode())


def read(folder: Path) -> dict[Point | Aim, dict[str, Any]]:
    """The counts of `folder` by point and aim."""
    path, found = folder / COUNTS, {}
    if not path.exists():
        return {}
    for line in path.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        kind: type[Point | Aim] = Aim if "aim" in entry else Point
        found[kind(**entry["aim" if kind is Aim else "point"])] = entry["counts"]
    return found


def _counted(protocol: Protocol, folder: Path) -> dict[Point | Aim, dict[str, Any]]:
    """What `folder` holds of this protocol; counts of another one are taken away."""
    path = folder / PROTOCOL
    before = tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if _settings(before) == _settings(protocol.as_dict()):
        return read(folder)
    (folder / COUNTS).unlink(missing_ok=True)
    return {}


def _settings(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in PLACES}


def _write(folder: Path, counted: Mapping[Point | Aim, Mapping[str, Any]]) -> None:
    lines = [
        json.dumps(
            {
                "aim" if isinstance(place, Aim) else "point": dataclasses.asdict(place),
                "counts": counts,
            }
        )
        for place, counts in counted.items()
    ]
    write_atomic(folder / COUNTS, ("\n".join(lines) + "\n").encode())
