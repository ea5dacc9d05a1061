"""What the evaluation bench shows: whether answers are equal, what the seconds come to, a table.

Pure functions of what was measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

PHASES = ("begin", "import", "engine", "decoding", "grading", "store", "end")
MEANING = {
    "begin": "process",
    "import": "packages",
    "engine": "engine",
    "decoding": "decoding",
    "grading": "rest of lm-eval, grading",
    "store": "files",
    "end": "end",
}
SIDES = {"kept": "one process that stays", "fresh": "a fresh process for each"}
TARGET = 5.0


def different(left: pd.DataFrame, right: pd.DataFrame) -> int:
    """Rows that differ in any column, or that only one of the two has; nulls are equal."""
    if list(left.columns) != list(right.columns):
        raise ValueError(f"columns {list(left.columns)}; expected {list(right.columns)}")
    ours, theirs = _values(left), _values(right)
    apart = sum(a != b for a, b in zip(ours, theirs, strict=False))
    return apart + abs(len(ours) - len(theirs))


def _values(frame: pd.DataFrame) -> list[tuple[Any, ...]]:
    objects = frame.astype(object)
    return list(objects.where(frame.notna(), None).itertuples(index=False, name=None))


def summary(repetitions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Medians over repetitions: totals, their ratio, phases, and a checkpoint after the first."""
    found: dict[str, Any] = {}
    totals: dict[str, list[float]] = {}
    for side in SIDES:
        totals[side] = [sum(map(_sum, run[side])) for run in repetitions]
        found[side] = {
            "total_s": median(totals[side]),
            "processor_s": median(run["processor_s"][side] for run in repetitions),
            "phases": {
                phase: median(sum(seconds[phase] for seconds in run[side]) for run in repetitions)
                for phase in PHASES
            },
            "later_checkpoint_s": median(
                _sum(seconds) for run in repetitions for seconds in run[side][1:]
            ),
            "later_phases": {
                phase: median(seconds[phase] for run in repetitions for seconds in run[side][1:])
                for phase in PHASES
            },
        }
    pairs = zip(totals["kept"], totals["fresh"], strict=True)
    found["ratios"] = [fresh / kept for kept, fresh in pairs]
    found["ratio"] = median(found["ratios"])
    found["ratio_processor"] = median(
        run["processor_s"]["fresh"] / run["processor_s"]["kept"] for run in repetitions
    )
    return found


def _sum(seconds: Mapping[str, float]) -> float:
    return sum(seconds[phase] for phase in PHASES)


def problems(report: Mapping[str, Any]) -> list[str]:
    """What must not be, in sentences; speed is none of it."""
    found = []
    for number, run in enumerate(report["repetitions"]):
        for kind in ("rows", "ids"):
            if run[f"different_{kind}"]:
                found.append(
                    f"repetition {number}: {run[f'different_{kind}']} {kind} differ between the "
                    "process that stays and fresh processes"
                )
        if run["distinct_checkpoints"] != report["checkpoints"]:
            found.append(
                f"repetition {number}: {run['distinct_checkpoints']} of {report['checkpoints']} "
                "checkpoints answer otherwise than the rest"
            )
    killed = report["killed"]
    if killed["deaths"] != 1 or not killed["finished_before"]:
        found.append(f"{killed['deaths']} deaths after {killed['finished_before']} finished cells")
    if killed["lost"] or killed["finished_after"] != killed["cells"]:
        found.append(
            f"after a kill {killed['lost']} finished cells are lost or changed and "
            f"{killed['finished_after']} of {killed['cells']} finished"
        )
    if killed["done_twice"] > killed["tasks"]:
        found.append(f"{killed['done_twice']} cells done twice; expected one checkpoint's at most")
    if killed["different_rows"]:
        found.append(f"{killed['different_rows']} rows differ in the pass with a kill")
    return found


def markdown(report: Mapping[str, Any]) -> str:
    """Where the time goes on both sides, and what was compared."""
    machine, found = report["machine"], report["summary"]
    count, tasks = report["checkpoints"], len(report["tasks"])
    loads = [value for run in report["repetitions"] for value in run["load"]]
    lines = [
        f"{machine['processor']}, {machine['cores']} cores, {report['threads']} "
        f"{'thread' if report['threads'] == 1 else 'threads'}, vLLM {machine['vllm']}, torch "
        f"{machine['torch']}, lm-eval {machine['lm_eval']}; medians of {report['repeats']} "
        f"repetitions, both sides in turns; load {min(loads):.1f} to {max(loads):.1f} (the "
        "measurement itself is 1 of it, the rest were other programs).",
        "",
        f"{count} checkpoints (the testbed's base model `{report['base']}`, "
        f"{report['parameters']:,} parameters, perturbed) on {tasks} tasks of {report['items']} "
        "items:",
        "",
        "| seconds | total | per checkpoint | a later checkpoint | "
        + " | ".join(MEANING[phase] for phase in PHASES)
        + " |",
        "|:--" + "|--:" * (len(PHASES) + 3) + "|",
    ]
    for side, title in SIDES.items():
        own = found[side]
        cells = [own["total_s"], own["total_s"] / count, own["later_checkpoint_s"]]
        cells += [own["phases"][phase] for phase in PHASES]
        lines.append(f"| {title} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |")
    cells = [found["kept"]["later_phases"][phase] for phase in PHASES]
    lines.append("| … a later checkpoint | | | | " + " | ".join(f"{c:.2f}" for c in cells) + " |")
    return "\n".join([*lines, "", *_sentences(report)]) + "\n"


def _sentences(report: Mapping[str, Any]) -> list[str]:
    found, killed = report["summary"], report["killed"]
    every = ", ".join(f"{ratio:.2f}" for ratio in found["ratios"])
    kept, fresh = (found[side]["processor_s"] for side in SIDES)
    rows = sum(run["rows"] for run in report["repetitions"])
    apart = sum(run["different_rows"] + run["different_ids"] for run in report["repetitions"])
    return [
        f"- fresh processes take {found['ratio']:.2f} times as long (by repetition {every}; target "
        f"{TARGET:g}), {found['ratio_processor']:.2f} times in processor time "
        f"({fresh:.1f} s against {kept:.1f} s)",
        f"- {rows:,} rows compared in all columns and by token ids: {apart} differ",
        f"- killed in the middle: {killed['finished_before']} of {killed['cells']} cells were "
        f"finished, {killed['lost']} of them lost or changed, {killed['finished_after']} finished "
        f"in the end, {killed['done_twice']} begun twice (the checkpoint in hand), "
        f"{killed['different_rows']} rows differ; of those begun twice, which are answered with "
        f"fewer sequences together, {killed['different_rows_done_twice']}",
    ]
