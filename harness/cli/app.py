"""The command `cotsieve` and its subcommands about experiments and selectors.

Exit codes: 0 done, 1 some cells failed or an overlap is refused, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from harness import __version__
from harness.cli import options, tools
from harness.cli.options import (
    argument,
    err,
    load_plan,
    open_store,
    option,
    out,
    print_json,
    print_lines,
    results_folder,
    resumable,
)
from harness.evaluation.benchmarks import titles
from harness.experiment.paths import EXPERIMENTS, REPORTS, RESULTS
from harness.selection import plugins

SECTIONS = ("selectors", "tasks", "experiments")

app = typer.Typer(
    name="cotsieve",
    help="Which chain-of-thought examples are worth fine-tuning on? Selectors choose subsets of a "
    "pool, one fine-tuner trains on each subset with several seeds, lm-eval on vLLM measures "
    "every checkpoint, and the report compares the selectors with confidence intervals.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> None:
    """Entry point: turns bad input into one clear message and exit code 2."""
    try:
        app()
    except (ValueError, FileNotFoundError) as error:
        print_lines([f"error: {error}"], "red", err)
        sys.exit(2)


def _version(wanted: bool) -> None:
    if wanted:
        out.print(__version__)
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool,
        option("Print the version and exit.", "--version", callback=_version, is_eager=True),
    ] = False,
) -> None:
    """Options of the command itself."""


@app.command("list")
def list_(
    what: Annotated[
        str, argument("selectors, tasks or experiments; all three by default.")
    ] = "all",
    as_json: options.AsJson = False,
) -> None:
    """List selectors, evaluation tasks and experiments."""
    if what not in ("all", *SECTIONS):
        raise ValueError(f"{what!r}; expected selectors, tasks or experiments")
    read = {"selectors": _selectors, "tasks": titles, "experiments": _experiments}
    sections = {name: read[name]() for name in SECTIONS if what in ("all", name)}
    if as_json:
        print_json(sections)
        return
    for title, entries in sections.items():
        table = Table(box=None, show_header=False, padding=(0, 2), title=title.capitalize())
        table.title_justify = "left"
        for name, text in sorted(entries.items()):
            table.add_row(Text(name, style="bold"), Text(text))
        out.print(table)
        if not entries:
            out.print("  none")


def _selectors() -> dict[str, str]:
    """Every selector with the first line of its file, without importing it."""
    lines = {}
    for name in plugins.names():
        file = plugins.source(name)
        text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) if file else None
        lines[name] = (text or "").partition("\n")[0]
    return lines


def _experiments() -> dict[str, str]:
    import tomllib

    return {
        path.stem: str(tomllib.loads(path.read_text(encoding="utf-8")).get("description", ""))
        for path in sorted(EXPERIMENTS.glob("*.toml"))
    }


@app.command("plan")
def plan_(
    experiment: options.ExperimentName,
    store: options.StoreFolder = None,
    task_data: options.TaskData = None,
    as_json: options.AsJson = False,
) -> None:
    """Show cells, what is stored already, and the cost of the rest."""
    from harness.running import forecast

    picture = forecast.forecast(load_plan(experiment, task_data), open_store(store))
    if as_json:
        print_json(picture)
        return
    table = Table(box=None, padding=(0, 2))
    for column in forecast.COLUMNS:
        table.add_column(column, no_wrap=column == "row")
    for row in picture["rows"]:
        table.add_row(*(str(row[name]) for name in forecast.COLUMNS))
    out.print(table)
    print_lines(picture["notes"])


@app.command("overlap")
def overlap_(
    experiment: options.ExperimentName,
    store: options.StoreFolder = None,
    task_data: options.TaskData = None,
    as_json: options.AsJson = False,
) -> None:
    """List questions that occur in more than one data set; trains nothing."""
    from harness.running import overlap
    from harness.running.display import LiveView
    from harness.running.run import Run

    plan, artefacts = load_plan(experiment, task_data), open_store(store)
    name = plan.experiment.name
    view = LiveView(err)
    with resumable(view):
        Run(plan, artefacts, RESULTS / name).compare(view)
    refused = bool(overlap.refusal(plan.checks, artefacts))
    if as_json:
        checks = overlap.picture(plan.checks, artefacts)
        print_json({"experiment": name, "refused": refused, "checks": checks})
    else:
        print_lines(overlap.listing(plan.checks, artefacts))
        if not plan.checks:
            out.print("Nothing to compare: every run proves that the testbed's sets are disjoint.")
    if refused:
        raise typer.Exit(1)


@app.command("run")
def run_(
    experiment: options.ExperimentName,
    only: Annotated[str | None, option("Run only some cells: selector=NAME or row=NAME.")] = None,
    executor: Annotated[str, option("Where jobs run: local.")] = "local",
    workers: Annotated[
        int | None,
        option("Worker processes; default: one per core, one on a GPU.", min=1),
    ] = None,
    report: Annotated[bool, option("Build the report at the end.")] = True,
    verbose: options.Verbose = False,
    store: options.StoreFolder = None,
    task_data: options.TaskData = None,
    task_limit: options.TaskLimit = options.FOUR_HOURS,
    engine_memory: options.EngineMemory = None,
    engine_sequences: options.EngineSequences = None,
    batch_invariant: options.BatchInvariant = False,
) -> None:
    """Run what an experiment still lacks, then build its report."""
    from harness.evaluation.environment import check_environment

    if executor != "local":
        raise ValueError(f"--executor {executor!r}; expected local")
    check_environment()
    from harness.cli.quotes import write_texts
    from harness.evaluation.settings import Limits
    from harness.experiment.progress import clock
    from harness.running.display import LiveView
    from harness.running.run import Run

    plan = load_plan(experiment, task_data, batch_invariant)
    name = plan.experiment.name
    job = Run(
        plan,
        open_store(store),
        RESULTS / name,
        workers=workers,
        only=only,
        verbose=verbose,
        limits=Limits(engine_memory, engine_sequences, task_limit),
    )
    view = LiveView(out)
    with resumable(view):
        summary = job.execute(view)
        write_texts(plan, job.store, job.results)
    if report:
        _report([name])
    out.print(
        f"{summary.cells - len(summary.failed)} of {summary.cells} cells done "
        f"({summary.stored} were stored); took {clock(summary.seconds)}."
    )
    if summary.failed:
        failures = (f"failed: {cell}: {message}" for cell, message in summary.failed.items())
        print_lines(failures, "red", err)
        raise typer.Exit(1)


@app.command("report")
def report_(
    experiments: Annotated[
        list[str],
        argument(
            "Names in experiments/ (such as quick) or paths of .toml files.",
            metavar="EXPERIMENT...",
        ),
    ],
) -> None:
    """Build tables, figures and an HTML page from stored records.

    Needs no GPU, no torch and no store.
    """
    _report([results_folder(experiment).name for experiment in experiments])


def _report(names: Sequence[str]) -> None:
    """Build reports; print each main table and where its page is."""
    from harness.reporting.report import build_all

    names = list(dict.fromkeys(names))
    reports = build_all([(RESULTS / name, REPORTS / name) for name in names])
    for name, files in zip(names, reports, strict=True):
        table = next(path for path in files if path.name == "main.md")
        out.print(table.read_text(encoding="utf-8"), markup=False, highlight=False, soft_wrap=True)
        page = REPORTS / name / "index.html"
        out.print(f"Report: {page} ({len(files)} files)", soft_wrap=True)


@app.command("subset")
def subset_(
    experiment: options.ExperimentName,
    selector: Annotated[str, argument("A row, such as influence/combined or random.")],
    fraction: Annotated[float, option("Fraction of the pool.")],
    out_file: Annotated[Path, option("A .jsonl or .parquet file to write.", "--out")],
    seed: Annotated[int, option("Seed of the cell.")] = 0,
    arm: options.Arm = "main",
    store: options.StoreFolder = None,
    task_data: options.TaskData = None,
) -> None:
    """Write the examples that a row selected, best first, to train on."""
    from harness.running.export import export

    plan = load_plan(experiment, task_data)
    count = export(plan, open_store(store), arm, selector, fraction, seed, out_file)
    out.print(f"{count} examples written to {out_file}", soft_wrap=True)


@app.command("explain")
def explain_(
    experiment: options.ExperimentName,
    cell: options.CellName,
    store: options.StoreFolder = None,
    task_data: options.TaskData = None,
    as_json: options.AsJson = False,
) -> None:
    """Show where a result comes from, or why it is missing or stale."""
    from harness.running.explain import explain

    plan = load_plan(experiment, task_data)
    folder = RESULTS / plan.experiment.name
    explanation = explain(plan, plan.cell(cell), open_store(store), folder)
    if as_json:
        print_json(explanation)
        return
    print_lines([f"{cell}: {explanation['state']}"], "bold")
    print_lines(explanation["lines"])


@app.command("check")
def check_(
    selector: Annotated[str, argument("A selector's name, as `cotsieve list` shows it.")],
    only: Annotated[list[str] | None, option("Check this property alone; may be repeated.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Run the conformance tests on a selector."""
    from harness.selection import conformance

    result = conformance.check(plugins.build(selector, {}), only=only or None)
    if as_json:
        print_json(result.as_dict())
    else:
        for entry in result.entries:
            mark = Text("FAILED", style="red")
            if entry.passed:
                mark = Text("ok    ", style="green") if entry.applies else Text("n/a   ")
            out.print(Text.assemble(mark, " ", entry.name, f"  {entry.detail}".rstrip()))
    if not result.passed:
        raise typer.Exit(1)


for command in (tools.influence, tools.grade, tools.stats, tools.compare, tools.noise):
    app.command()(command)


if __name__ == "__main__":
    main()
