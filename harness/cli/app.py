"""The command `cotsieve`: list, plan, overlap, run, report, subset, explain, check, influence,
grade, stats, compare, noise.

Exit codes: 0 done, 1 some cells failed or an overlap is refused, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness import __version__
from harness.cli.tools import (
    AsJson,
    BatchInvariant,
    EngineMemory,
    EngineSequences,
    ExperimentName,
    ExperimentNames,
    Store,
    TaskData,
    TaskLimit,
    Verbose,
    artefacts,
    compare,
    grade,
    influence,
    noise,
    planned,
    stats,
)
from harness.evaluation.benchmarks import titles
from harness.experiment import config
from harness.experiment.paths import EXPERIMENTS
from harness.selection import plugins

app = typer.Typer(
    name="cotsieve",
    help="Which chain-of-thought examples are worth fine-tuning on? Selectors choose subsets of a "
    "pool, one fine-tuner trains on each with several seeds, lm-eval on vLLM measures them, and "
    "the report says with confidence intervals which way of choosing works.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
out = Console()
err = Console(stderr=True)


def main() -> None:
    """Entry point: turns bad input into one clear message and exit code 2."""
    try:
        app()
    except (ValueError, FileNotFoundError) as error:
        refuse(error)


def refuse(error: Exception) -> NoReturn:
    """Say what is wrong and leave with exit code 2."""
    err.print(Text(f"error: {error}", style="red"), soft_wrap=True)
    sys.exit(2)


def say_json(value: Any) -> None:
    """Print a value as JSON, whatever the width of the terminal."""
    sys.stdout.write(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def _version(wanted: bool) -> None:
    if wanted:
        out.print(__version__)
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of the command itself."""


@app.command("list")
def list_(
    what: Annotated[
        str, typer.Argument(help="selectors, tasks or experiments; all three by default.")
    ] = "all",
    as_json: AsJson = False,
) -> None:
    """List selectors, evaluation tasks and experiments."""
    sections: dict[str, dict[str, str]] = {}
    if what not in ("all", "selectors", "tasks", "experiments"):
        raise ValueError(f"{what!r}; expected selectors, tasks or experiments")
    if what in ("all", "selectors"):
        sections["selectors"] = {name: _first_line(name) for name in plugins.names()}
    if what in ("all", "tasks"):
        sections["tasks"] = titles()
    if what in ("all", "experiments"):
        sections["experiments"] = _experiments()
    if as_json:
        say_json(sections)
        return
    for title, entries in sections.items():
        table = Table(box=None, show_header=False, padding=(0, 2), title=title.capitalize())
        table.title_justify = "left"
        for name, text in sorted(entries.items()):
            table.add_row(Text(name, style="bold"), Text(text))
        out.print(table)
        if not entries:
            out.print("  none")


def _first_line(selector: str) -> str:
    """What a selector's file says of itself, without importing it."""
    file = plugins.source(selector)
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) if file else None
    return (text or "").partition("\n")[0]


def _experiments() -> dict[str, str]:
    import tomllib

    found = {}
    for path in sorted(EXPERIMENTS.glob("*.toml")):
        found[path.stem] = str(tomllib.loads(path.read_text()).get("description", ""))
    return found


@app.command()
def plan(
    experiment: ExperimentName,
    store: Store = None,
    task_data: TaskData = None,
    as_json: AsJson = False,
) -> None:
    """Show the cells of an experiment, what is stored already, and what is left to do."""
    from harness.running import forecast

    made = planned(experiment, task_data)
    picture = forecast.forecast(made, artefacts(store))
    if as_json:
        say_json(picture)
        return
    table = Table(box=None, padding=(0, 2))
    for column in forecast.COLUMNS:
        table.add_column(column, no_wrap=column == "row")
    for line in picture["rows"]:
        table.add_row(*(str(line[name]) for name in forecast.COLUMNS))
    out.print(table)
    for text in picture["notes"]:
        out.print(Text(text), soft_wrap=True)


@app.command()
def overlap(
    experiment: ExperimentName,
    store: Store = None,
    task_data: TaskData = None,
    as_json: AsJson = False,
) -> None:
    """List questions that stand in two data sets of an experiment; nothing is trained."""
    from harness.cli.inspection import inspect
    from harness.experiment.paths import RESULTS

    made = planned(experiment, task_data)
    try:
        refused = inspect(made, artefacts(store), RESULTS / made.experiment.name, as_json)
    except KeyboardInterrupt:
        err.print("Stopped. What is finished is stored; the same command continues from there.")
        raise typer.Exit(130) from None
    if refused:
        raise typer.Exit(1)


@app.command()
def run(
    experiment: ExperimentName,
    only: Annotated[
        str | None, typer.Option(help="Run only some cells: selector=NAME or row=NAME.")
    ] = None,
    executor: Annotated[str, typer.Option(help="Where jobs run: local.")] = "local",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Worker processes; default: one per core, one on GPU.")
    ] = None,
    report: Annotated[bool, typer.Option(help="Build the report at the end.")] = True,
    verbose: Verbose = False,
    store: Store = None,
    task_data: TaskData = None,
    task_limit: TaskLimit = 4 * 3600,
    engine_memory: EngineMemory = None,
    engine_sequences: EngineSequences = None,
    batch_invariant: BatchInvariant = False,
) -> None:
    """Run what an experiment still lacks, then build its report."""
    from harness.evaluation.environment import check_environment

    if executor != "local":
        raise ValueError(f"--executor {executor!r}; expected local")
    try:
        check_environment()
    except RuntimeError as error:
        refuse(error)
    from harness.cli.quotes import write_texts
    from harness.evaluation.settings import Limits
    from harness.experiment.paths import RESULTS
    from harness.experiment.progress import clock
    from harness.running.display import Progress
    from harness.running.run import Run

    made = planned(experiment, task_data, batch_invariant)
    name = made.experiment.name
    job = Run(
        made,
        artefacts(store),
        RESULTS / name,
        workers=workers,
        only=only,
        verbose=verbose,
        limits=Limits(engine_memory, engine_sequences, task_limit),
    )
    view = Progress(out)
    try:
        summary = job.execute(view)
        write_texts(made, job.store, job.results)
    except KeyboardInterrupt:
        view.end()
        err.print("Stopped. What is finished is stored; the same command continues from there.")
        raise typer.Exit(130) from None
    finally:
        view.end()
    if report:
        _report([name])
    out.print(
        f"{summary.cells - len(summary.failed)} of {summary.cells} cells done "
        f"({summary.found} were stored), {clock(summary.seconds)} min for running."
    )
    for cell, message in summary.failed.items():
        err.print(Text(f"failed: {cell}: {message}", style="red"), soft_wrap=True)
    if summary.failed:
        raise typer.Exit(1)


@app.command()
def report(experiments: ExperimentNames) -> None:
    """Build tables, figures and page from the stored records; needs no torch and no store."""
    _report([_name(experiment) for experiment in experiments])


def _report(names: Sequence[str]) -> None:
    """Build reports; show each main table, and where its page is."""
    from harness.experiment.paths import REPORTS, RESULTS
    from harness.reporting.report import build_all

    names = list(dict.fromkeys(names))
    built = build_all([(RESULTS / name, REPORTS / name) for name in names])
    for name, written in zip(names, built, strict=True):
        table = next(path for path in written if path.name == "main.md")
        out.print(table.read_text(encoding="utf-8"), markup=False, highlight=False, soft_wrap=True)
        page = REPORTS / name / "index.html"
        out.print(f"Report: {page} ({len(written)} files)", soft_wrap=True)


@app.command()
def subset(
    experiment: ExperimentName,
    selector: Annotated[str, typer.Argument(help="A row, such as influence/combined or random.")],
    fraction: Annotated[float, typer.Option(help="Fraction of the pool.")],
    out_file: Annotated[Path, typer.Option("--out", help="A .jsonl or .parquet file to write.")],
    seed: Annotated[int, typer.Option(help="Seed of the cell.")] = 0,
    arm: Annotated[str, typer.Option(help="Variant of the pool.")] = "main",
    store: Store = None,
    task_data: TaskData = None,
) -> None:
    """Write the examples that a finished row chose, best first, ready to train on."""
    from harness.running.export import export

    count = export(
        planned(experiment, task_data), artefacts(store), arm, selector, fraction, seed, out_file
    )
    out.print(f"{count} examples written to {out_file}", soft_wrap=True)


@app.command()
def explain(
    experiment: ExperimentName,
    cell: Annotated[str, typer.Argument(help="A cell, such as influence/combined@0.5#0.")],
    store: Store = None,
    task_data: TaskData = None,
    as_json: AsJson = False,
) -> None:
    """Show where a cell comes from, and why it is missing, stale or failed."""
    from harness.experiment.paths import RESULTS
    from harness.running.explain import explain as explained

    made = planned(experiment, task_data)
    story = explained(made, made.cell(cell), artefacts(store), RESULTS / made.experiment.name)
    if as_json:
        say_json(story)
        return
    out.print(Text(f"{cell}: {story['state']}", style="bold"), soft_wrap=True)
    for line in story["lines"]:
        out.print(Text(line), soft_wrap=True)


@app.command()
def check(
    selector: Annotated[str, typer.Argument(help="A selector's name, as `cotsieve list` has it.")],
    as_json: AsJson = False,
) -> None:
    """Run the conformance suite on a selector."""
    from harness.selection import conformance

    found = conformance.check(plugins.build(selector, {}))
    if as_json:
        say_json(found.as_dict())
    else:
        for entry in found.entries:
            mark = Text("FAILED", style="red")
            if entry.passed:
                mark = Text("ok    ", style="green") if entry.applies else Text("n/a   ")
            out.print(Text.assemble(mark, " ", entry.name, f"  {entry.detail}".rstrip()))
    if not found.passed:
        raise typer.Exit(1)


app.command()(influence)
app.command()(grade)
app.command()(stats)
app.command()(compare)
app.command()(noise)


def _name(experiment: str) -> str:
    """The experiment's own name; a results folder without an experiment file will do."""
    from harness.experiment.paths import RESULTS

    if not experiment.endswith(".toml") and (RESULTS / experiment / "protocol.toml").exists():
        return experiment
    return config.load(config.find(experiment)).name


if __name__ == "__main__":
    main()
