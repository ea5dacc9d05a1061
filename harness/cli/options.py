"""Options that several commands share, and how commands read them and print."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from harness.experiment import config
from harness.experiment.paths import RESULTS

out = Console()
err = Console(stderr=True)


def option(help: str, *names: str, **settings: Any) -> Any:
    """A command's option; its default stands in the signature."""
    return typer.Option(*names, help=help, **settings)


def argument(help: str, **settings: Any) -> Any:
    """A command's argument."""
    return typer.Argument(help=help, **settings)


ExperimentName = Annotated[
    str, argument("A name in experiments/ (such as quick) or the path of a .toml file.")
]
CellName = Annotated[str, argument("A cell, such as influence/combined@0.5#0.")]
AsJson = Annotated[bool, option("Print JSON instead of text.", "--json")]
StoreFolder = Annotated[
    Path | None,
    option("Folder of finished artefacts; default: $COTSIEVE_STORE, else ./.cotsieve.", "--store"),
]
TaskData = Annotated[
    Path | None,
    option(
        "Folder with the benchmarks' files (gsm8k.jsonl, ...); default: from the Hugging Face hub.",
        envvar="COTSIEVE_TASK_DATA",
    ),
]
Arm = Annotated[str, option("Variant of the pool (an [[arm]] of the experiment).")]
Verbose = Annotated[bool, option("Show vLLM, lm-eval and transformers logs.")]
TaskLimit = Annotated[
    float,
    option("Maximum seconds per task; after that its engine is stopped.", min=1),
]
EngineMemory = Annotated[
    float | None,
    option("Share of GPU memory for vLLM, in (0, 1]; default: what is free."),
]
EngineSequences = Annotated[
    int | None,
    option("Maximum concurrent sequences (max_num_seqs); default: 512 on a CPU, 256 on a GPU."),
]
BatchInvariant = Annotated[
    bool,
    option(
        "Use vLLM kernels whose results do not depend on the batch (GPU only).", "--batch-invariant"
    ),
]
FOUR_HOURS = 4 * 3600


def load_plan(experiment: str, task_data: Path | None = None, batch_invariant: bool = False) -> Any:
    """The plan of an experiment, by name or path."""
    from harness.running import plan

    path = config.find(experiment)
    loaded = config.load(path)
    if batch_invariant:
        evaluate = loaded.evaluate.model_copy(update={"batch_invariant": True})
        loaded = loaded.model_copy(update={"evaluate": evaluate})
    return plan.make(loaded, path, task_data)


def open_store(folder: Path | None) -> Any:
    """The store in this folder, or in the default one."""
    from harness.experiment import store
    from harness.experiment.paths import default_store

    return store.Store(folder or default_store())


def results_folder(experiment: str) -> Path:
    """Where an experiment's records are; needs no experiment file where there are records."""
    if not experiment.endswith(".toml") and (RESULTS / experiment / "protocol.toml").is_file():
        return RESULTS / experiment
    return RESULTS / config.load(config.find(experiment)).name


def print_json(value: Any) -> None:
    """Print a value as JSON, whatever the width of the terminal."""
    sys.stdout.write(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def print_lines(lines: Iterable[str], style: str = "", console: Console = out) -> None:
    """Print texts as they are, without markup and without breaking them."""
    for line in lines:
        console.print(Text(line, style=style), soft_wrap=True)


@contextmanager
def resumable(view: Any = None) -> Iterator[None]:
    """Leave with exit code 130 when interrupted, and say that nothing is lost; ends `view`."""
    try:
        yield
    except KeyboardInterrupt:
        if view is not None:
            view.end()
        err.print("Stopped. What is finished is stored; the same command continues from there.")
        raise typer.Exit(130) from None
    finally:
        if view is not None:
            view.end()
