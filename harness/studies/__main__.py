"""`python -m harness.studies STUDY`: run a study, or rebuild its report."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from harness.experiment.paths import REPORTS, RESULTS, default_store
from harness.running.workers import available_cores

NAME, STATISTICS = "validation", "statistics"
app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Studies with a ground truth: what is claimed, compared with what is known.",
)
WorkersOption = Annotated[
    int | None, typer.Option(min=1, help="Processes; one thread each. [default: all cores]")
]
ResultsOption = Annotated[Path, typer.Option("--results", help="Folder of the results.")]
ReportsOption = Annotated[Path, typer.Option("--reports", help="Folder of the report.")]


@app.command()
def influence(
    workers: WorkersOption = None,
    peer: Annotated[
        bool, typer.Option(help="Compare with kronfluence's EK-FAC, which must be installed.")
    ] = True,
    results: ResultsOption = RESULTS / NAME,
    reports: ReportsOption = REPORTS / NAME,
) -> None:
    """Retrain on random halves and without the top examples; did influence predict the outcome?

    Stop it at any time: the same command continues.
    """
    from harness.experiment.store import Store
    from harness.studies.influence.study import Protocol, Study

    if peer and find_spec("kronfluence") is None:
        raise typer.BadParameter(
            "kronfluence is not installed; expected `python -m nox -s validate`, which installs "
            "it, or --no-peer",
            param_hint="--peer",
        )
    console = Console(stderr=True)
    store = Store(default_store())
    Study(Protocol(), store, workers or available_cores(), console, peer).run(results)
    _build("influence", results, reports)


@app.command()
def statistics(
    workers: WorkersOption = None,
    results: ResultsOption = RESULTS / NAME / STATISTICS,
    reports: ReportsOption = REPORTS / NAME,
) -> None:
    """Simulate tables with a known truth; do intervals, tests and power keep their word?

    Needs no torch. Stop it at any time: the same command continues.
    """
    from harness.studies.intervals.design import Protocol
    from harness.studies.intervals.simulate import run

    run(Protocol(), results, workers or available_cores(), Console(stderr=True))
    _build("intervals", results, reports)


@app.command()
def report(
    results: ResultsOption = RESULTS / NAME, reports: ReportsOption = REPORTS / NAME
) -> None:
    """Rebuild the reports of all studies in the results; needs no torch."""
    studies = {results: "influence", results / STATISTICS: "intervals"}
    finished = [folder for folder in studies if (folder / "facts.json").exists()]
    if not finished:
        raise typer.BadParameter(
            f"{results} holds no finished study; expected facts.json there or in {STATISTICS}/",
            param_hint="--results",
        )
    for folder in finished:
        _build(studies[folder], folder, reports)


def _build(study: str, results: Path, reports: Path) -> None:
    paths = import_module(f"harness.studies.{study}.report").build(results, reports)
    Console().print(str(paths[0]), highlight=False)


if __name__ == "__main__":
    app()
