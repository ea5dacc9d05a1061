"""Commands beside those of a run (influence, grade, stats, compare, noise), and shared options."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.evaluation.benchmarks import BENCHMARKS, benchmark
from harness.experiment import config

ExperimentName = Annotated[
    str, typer.Argument(help="A name in experiments/ (such as quick) or the path of a .toml file.")
]
ExperimentNames = Annotated[
    list[str],
    typer.Argument(
        metavar="EXPERIMENT...",
        help="Names in experiments/ (such as quick) or paths of .toml files; several at once.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Store = Annotated[
    Path | None,
    typer.Option(
        help="Folder of finished artefacts; default: $COTSIEVE_STORE, else .cotsieve here."
    ),
]
TaskData = Annotated[
    Path | None,
    typer.Option(
        envvar="COTSIEVE_TASK_DATA",
        help="Folder with the benchmarks' files (gsm8k.jsonl, ...); default: from the hub.",
    ),
]
Verbose = Annotated[bool, typer.Option(help="Let vLLM, lm-eval and transformers speak.")]
TaskLimit = Annotated[
    float, typer.Option(min=1, help="Seconds for a task, after which its engine is ended.")
]
EngineMemory = Annotated[
    float | None, typer.Option(help="Share of a GPU's memory for vLLM; default: what is free.")
]
EngineSequences = Annotated[
    int | None, typer.Option(help="Answers decoded together; default: 512 on a CPU, 256 on GPU.")
]
BatchInvariant = Annotated[
    bool,
    typer.Option(
        "--batch-invariant", help="vLLM's kernels that do not depend on the batch (GPU only)."
    ),
]


def planned(experiment: str, task_data: Path | None = None, batch_invariant: bool = False) -> Any:
    """The plan of an experiment, by name or path."""
    from harness.running import plan

    path = config.find(experiment)
    loaded = config.load(path)
    if batch_invariant:
        chosen = loaded.evaluate.model_copy(update={"batch_invariant": True})
        loaded = loaded.model_copy(update={"evaluate": chosen})
    return plan.make(loaded, path, task_data)


def artefacts(path: Path | None) -> Any:
    """The store in this folder, or in the default one."""
    from harness.experiment import store
    from harness.experiment.paths import default_store

    return store.Store(path or default_store())


def influence(
    model: Annotated[
        str, typer.Argument(help="Folder of a transformers model or peft adapter, or a hub name.")
    ],
    pool: Annotated[Path, typer.Argument(help="Training examples: .jsonl or .parquet.")],
    queries: Annotated[Path, typer.Argument(help="What they are to help with, likewise.")],
    out_file: Annotated[
        Path, typer.Option("--out", help="A .parquet, .csv or .jsonl file to write.")
    ],
    prompt: Annotated[str, typer.Option(help="Column of the prompts.")] = "prompt",
    response: Annotated[str, typer.Option(help="Column of the responses.")] = "response",
    id_column: Annotated[
        str | None, typer.Option("--id", help="Column of the ids; default: row-000001, ...")
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(
            help="'chat', or a text with {prompt} in it; default: chat where the tokenizer has it."
        ),
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens of an example at most.")] = 2048,
    curvature: Annotated[
        str | None, typer.Option(help="Kind of curvature; default: ekfac.")
    ] = None,
    damping: Annotated[
        float | None, typer.Option(help="Multiple of the mean eigenvalue; default: 0.1.")
    ] = None,
    fisher: Annotated[str | None, typer.Option(help="true (default) or empirical.")] = None,
    layers: Annotated[
        str | None, typer.Option(help="attention+mlp (default), attention, mlp or all.")
    ] = None,
    sample: Annotated[
        int | None, typer.Option(help="Fit on so many examples; default: the whole pool.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of samples and sampled labels; default: 0.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples per batch; default: 32.")] = None,
    aggregate: Annotated[str, typer.Option(help="Score: mean or sum over queries.")] = "mean",
    per_query: Annotated[bool, typer.Option(help="Add a column for every query.")] = False,
    method: Annotated[str, typer.Option(help="auto, forward, central or ghost.")] = "auto",
    save_curvature: Annotated[
        Path | None, typer.Option(help="Folder to keep the fitted curvature in.")
    ] = None,
    use_curvature: Annotated[
        Path | None, typer.Option(help="Folder of a curvature kept before; nothing is fitted.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Commit of a model from the hub.")] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder of the tokenizer; default: the model's.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    device: Annotated[str | None, typer.Option(help="Default: cuda where there is one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Score training examples by their influence on queries; needs no experiment.

    Higher: training more on the example raises the log-probability of the queries' responses. A
    killed run is continued by the same command.
    """
    from harness.experiment.progress import Bars
    from harness.influence import from_files
    from harness.influence.options import options_from

    values = {
        "kind": curvature,
        "damping": damping,
        "fisher": fisher,
        "layers": layers,
        "sample": sample,
        "seed": seed,
        "batch_size": batch_size,
    }
    given = {name: value for name, value in values.items() if value is not None}
    request = from_files.Request(
        model=model,
        pool=pool,
        queries=queries,
        out=out_file,
        options=options_from(None, given) if given else None,
        prompt=prompt,
        response=response,
        id=id_column,
        template=template,
        max_tokens=max_tokens,
        aggregate=aggregate,
        per_query=per_query,
        method=method,
        revision=revision,
        tokenizer=tokenizer,
        precision=dtype,
        device=device,
        save_curvature=save_curvature,
        use_curvature=use_curvature,
    )
    out, err = Console(), Console(stderr=True)

    def note(text: str) -> None:
        err.print(Text(text), soft_wrap=True)

    try:
        summary = from_files.run(request, Bars(err), note)
    except KeyboardInterrupt:
        note("Stopped. What is finished is kept; the same command continues from there.")
        raise typer.Exit(130) from None
    if as_json:
        sys.stdout.write(json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
        return
    for line in from_files.lines(summary):
        out.print(Text(line), soft_wrap=True)


def grade(
    file: Annotated[Path, typer.Argument(help="Responses: JSON lines.")],
    task: Annotated[str, typer.Option(help=f"How answers are graded: {', '.join(BENCHMARKS)}.")],
    response: Annotated[str, typer.Option(help="Column of the responses.")] = "response",
    answer: Annotated[
        str,
        typer.Option(help="Column of the references: bare answers, or solutions ending in one."),
    ] = "answer",
    id_column: Annotated[
        str, typer.Option("--id", help="Column of the ids; without it rows have numbers.")
    ] = "id",
    out_file: Annotated[
        Path | None,
        typer.Option("--out", help="Where verdicts go; default: FILE with .graded.jsonl."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Grade responses that are there already, and print accuracy with its interval.

    Every row's verdict, the answer found and the rule that found it are written beside its own
    columns. Rows that cannot be read are reported by number; the rest is graded.
    """
    from harness.evaluation import grade_file
    from harness.experiment.progress import Bars

    err = Console(stderr=True)
    graded = grade_file.grade_file(
        file,
        benchmark(task),
        response=response,
        answer=answer,
        id=id_column,
        progress=Bars(err),
    )
    target = out_file or file.with_suffix(".graded.jsonl")
    grade_file.write(graded, target)
    for number, reason in graded.malformed:
        err.print(Text(f"row {number} is left out: {reason}", style="red"), soft_wrap=True)
    if as_json:
        sys.stdout.write(json.dumps(graded.summary(), indent=1, ensure_ascii=False) + "\n")
        return
    for line in grade_file.lines(graded):
        Console().print(Text(line), soft_wrap=True)
    Console().print(Text(f"verdicts: {target}"), soft_wrap=True)


def stats(
    file: Annotated[
        Path,
        typer.Argument(
            help="Outcomes: .parquet, .csv or .jsonl with the columns method, item, correct, and "
            "where there are any seed, decode, task, cluster."
        ),
    ],
    reference: Annotated[
        str | None,
        typer.Option(help="Method to compare with; default: random, else the first one."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Analyse anybody's outcomes: means, intervals, paired tests, corrections, power.

    Nothing is imputed: methods are compared on the seeds and items that both have, and what is
    missing or left out is counted by name.
    """
    import numpy as np

    from harness.reporting import outcomes
    from harness.reporting.outcomes.as_json import as_dict
    from harness.reporting.outcomes.picture import pictures

    found = outcomes.analyse(outcomes.read(file), np.random.default_rng(0), reference)
    if as_json:
        text = json.dumps(as_dict(found), indent=1, ensure_ascii=False, allow_nan=False)
        sys.stdout.write(text + "\n")
        return
    out = Console()
    for picture in pictures(found):
        out.print(picture, soft_wrap=isinstance(picture, Text))


def compare(
    experiment: Annotated[
        str,
        typer.Argument(help="An experiment that has run: a name such as quick, or a .toml file."),
    ],
    a: Annotated[str, typer.Argument(metavar="A", help="A row, or a selector for all rows of it.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The row to set it against.")],
    fraction: Annotated[
        float | None, typer.Option(help="Fraction of the pool; default: the middle one.")
    ] = None,
    arm: Annotated[str, typer.Option(help="Variant of the pool.")] = "main",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Set two rows of an experiment against each other: the paired story, from its records."""
    import numpy as np

    from harness.experiment import config
    from harness.experiment.paths import RESULTS
    from harness.reporting import comparison, results
    from harness.reporting.comparison.render import as_dict, pictures

    folder = RESULTS / experiment
    if not (folder / "protocol.toml").is_file():
        folder = RESULTS / config.load(config.find(experiment)).name
    arms = {found.arm: found for found in results.load(folder)}
    if arm not in arms:
        raise ValueError(f"--arm {arm!r}; expected one of {', '.join(arms)}")
    # JSON holds one story, so that there a name has to fit one row.
    rows = [a] if as_json else comparison.fitting(arms[arm], a)
    out = Console()
    for place, row in enumerate(rows):
        story = comparison.compare(arms[arm], row, b, fraction, np.random.default_rng(0))
        if as_json:
            text = json.dumps(as_dict(story), indent=1, ensure_ascii=False, allow_nan=False)
            sys.stdout.write(text + "\n")
            return
        if place:
            out.print()
            out.rule()
        for picture in pictures(story):
            out.print(picture, soft_wrap=isinstance(picture, Text))


def noise(
    experiment: ExperimentName,
    cell: Annotated[
        str | None,
        typer.Option(
            help="A cell, such as full@1#0; default: the first finished one of full, of the "
            "reference, or base."
        ),
    ] = None,
    repeats: Annotated[int, typer.Option(min=2, help="How often it is evaluated.")] = 8,
    as_json: AsJson = False,
    verbose: Verbose = False,
    store: Store = None,
    task_data: TaskData = None,
    task_limit: TaskLimit = 4 * 3600,
    engine_memory: EngineMemory = None,
    engine_sequences: EngineSequences = None,
    batch_invariant: BatchInvariant = False,
) -> None:
    """Evaluate one checkpoint repeatedly: how far does its accuracy move by itself?

    Items come in another order each time, and answers are sampled with other seeds. After a kill,
    the same command continues.
    """
    from harness.evaluation.environment import check_environment

    try:
        check_environment()
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    from harness.evaluation.settings import Limits
    from harness.experiment.paths import RESULTS
    from harness.running.display import Repetitions
    from harness.running.run import Run
    from harness.studies import decode_noise

    made, stored = planned(experiment, task_data, batch_invariant), artefacts(store)
    results = RESULTS / made.experiment.name
    limits = Limits(engine_memory, engine_sequences, task_limit)
    run = Run(made, stored, results, workers=1, verbose=verbose, limits=limits)
    measurement = decode_noise.Noise(run, decode_noise.choose_cell(made, stored, cell), repeats)
    err = Console(stderr=True)
    view = Repetitions(err)
    try:
        failed = measurement.make(view)
    except KeyboardInterrupt:
        view.end()
        err.print("Stopped. What is finished is stored; the same command continues from there.")
        raise typer.Exit(130) from None
    finally:
        view.end()
    if failed is not None:
        err.print(Text(f"failed: {failed['message']}", style="red"), soft_wrap=True)
        raise typer.Exit(1)
    entry = measurement.entry()
    path = decode_noise.write(entry, results)
    if as_json:
        sys.stdout.write(json.dumps(entry, indent=1, ensure_ascii=False) + "\n")
        return
    out = Console()
    for line in decode_noise.head(entry):
        out.print(Text(line), soft_wrap=True)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    columns, *rows = decode_noise.table(entry)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=number > 0)
    for row in rows:
        table.add_row(*map(Text, row))
    out.print(table)
    for line in decode_noise.notes(entry):
        out.print(Text(line), soft_wrap=True)
    out.print(Text(f"stored: {path}"), soft_wrap=True)
