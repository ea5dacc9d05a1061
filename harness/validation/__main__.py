"""`python -m harness.validation STUDY`: run a study, or rebuild its report."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from harness.executors import available_cores
from harness.folders import REPORTS, RESULTS, default_store

NAME = "validation"
app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Studies with a ground truth, on the testbed."
)
ResultsOption = Annotated[Path, typer.Option("--results", help="Folder of the results.")]
ReportsOption = Annotated[Path, typer.Option("--reports", help="Folder of the report.")]


@app.command()
def influence(
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; one thread each. [default: all cores]")
    ] = None,
    peer: Annotated[
        bool, typer.Option(help="Compare with kronfluence's EK-FAC, which must be installed.")
    ] = True,
    results: ResultsOption = RESULTS / NAME,
    reports: ReportsOption = REPORTS / NAME,
) -> None:
    """Retrain on random halves and without the top examples; how well did influence foretell it?

    Stop it at any time: the same command continues.
    """
    from harness.store import Store
    from harness.validation.protocol import Protocol
    from harness.validation.study import Study

    if peer and find_spec("kronfluence") is None:
        raise typer.BadParameter(
            "kronfluence is not installed; expected `python -m nox -s validate`, which installs "
            "it, or --no-peer",
            param_hint="--peer",
        )
    console = Console(stderr=True)
    store = Store(default_store())
    Study(Protocol(), store, workers or available_cores(), console, peer).run(results)
    _built(results, reports)


@app.command()
def report(
    results: ResultsOption = RESULTS / NAME, reports: ReportsOption = REPORTS / NAME
) -> None:
    """Rebuild the report from the results; needs no torch."""
    _built(results, reports)


def _built(results: Path, reports: Path) -> None:
    from harness.validation.report import STEM, build

    build(results, reports)
    Console().print(f"{reports / STEM}.md", highlight=False)


if __name__ == "__main__":
    app()
