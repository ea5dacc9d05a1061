"""Commands on files (influence, grade, stats) and on what is stored (compare, noise)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from harness.cli import options
from harness.cli.options import (
    argument,
    err,
    load_plan,
    open_store,
    option,
    out,
    print_json,
    print_lines,
    resumable,
)
from harness.evaluation.benchmarks import BENCHMARKS, benchmark
from harness.experiment.paths import RESULTS


def influence(
    model: Annotated[
        str,
        argument("Folder of a transformers model or peft adapter, or a name on the hub."),
    ],
    pool: Annotated[Path, argument("Training examples: .jsonl or .parquet.")],
    queries: Annotated[
        Path, argument("Examples whose loss they should lower: .jsonl or .parquet.")
    ],
    out_file: Annotated[Path, option("A .parquet, .csv or .jsonl file to write.", "--out")],
    prompt: Annotated[str, option("Column of the prompts.")] = "prompt",
    response: Annotated[str, option("Column of the responses.")] = "response",
    id_column: Annotated[
        str | None, option("Column of the ids; default: row-000001, ...", "--id")
    ] = None,
    template: Annotated[
        str | None,
        option(
            "'chat' or a text with {prompt} in it; default: the tokenizer's chat template, if any."
        ),
    ] = None,
    max_tokens: Annotated[int, option("Maximum tokens per example.")] = 2048,
    curvature: Annotated[
        str | None,
        option("Curvature approximation: ekfac (default), ekfac+cg, projected or identity."),
    ] = None,
    damping: Annotated[
        float | None,
        option("Damping as a multiple of the mean eigenvalue; default: 0.1."),
    ] = None,
    fisher: Annotated[str | None, option("Fisher matrix: true (default) or empirical.")] = None,
    layers: Annotated[
        str | None, option("Layers: attention+mlp (default), attention, mlp or all.")
    ] = None,
    sample: Annotated[
        int | None,
        option("Number of examples to fit the curvature on; default: the whole pool."),
    ] = None,
    seed: Annotated[
        int | None,
        option("Random seed of that sample and of sampled labels; default: 0."),
    ] = None,
    batch_size: Annotated[int | None, option("Examples per batch; default: 32.")] = None,
    aggregate: Annotated[str, option("Score over all queries: mean or sum.")] = "mean",
    per_query: Annotated[bool, option("Add a column for each query.")] = False,
    method: Annotated[str, option("How scores are computed: auto, ghost or forward.")] = "auto",
    save_curvature: Annotated[
        Path | None, option("Folder to save the fitted curvature in.")
    ] = None,
    use_curvature: Annotated[
        Path | None, option("Folder of a saved curvature, used instead of fitting one.")
    ] = None,
    revision: Annotated[str | None, option("Commit of a model on the hub.")] = None,
    tokenizer: Annotated[
        str | None, option("Folder of the tokenizer; default: the model's.")
    ] = None,
    dtype: Annotated[str, option("float32 or bfloat16.")] = "float32",
    device: Annotated[str | None, option("Device; default: cuda if available.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Score training examples by their influence on queries.

    Needs no experiment file. A higher score means that more training on the example raises the
    log-probability of the queries' responses. The same command continues a run that was stopped.
    """
    from harness.experiment.progress import ProgressBars
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
    chosen = {name: value for name, value in values.items() if value is not None}
    request = from_files.Request(
        model=model,
        pool=pool,
        queries=queries,
        out=out_file,
        options=options_from(None, chosen) if chosen else None,
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
    with resumable():
        summary = from_files.run(
            request, ProgressBars(err), lambda text: print_lines([text], console=err)
        )
    if as_json:
        print_json(summary)
    else:
        print_lines(from_files.lines(summary))


def grade(
    file: Annotated[Path, argument("Responses: a JSON Lines file.")],
    task: Annotated[str, option(f"Benchmark whose grading applies: {', '.join(BENCHMARKS)}.")],
    response: Annotated[str, option("Column of the responses.")] = "response",
    answer: Annotated[
        str,
        option("Column of the reference answers, or of solutions that end in the answer."),
    ] = "answer",
    id_column: Annotated[
        str, option("Column of the ids; rows without one are numbered.", "--id")
    ] = "id",
    out_file: Annotated[
        Path | None,
        option("Where verdicts go; default: FILE ending in .graded.jsonl.", "--out"),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Grade existing responses and print accuracy with its interval.

    Each row's verdict, the extracted answer and the rule that found it are written next to its own
    columns. Rows that cannot be read are reported by number and left out.
    """
    from harness.evaluation import grade_file
    from harness.experiment.progress import ProgressBars

    columns = {"response": response, "answer": answer, "id": id_column}
    graded = grade_file.grade_file(file, benchmark(task), **columns, progress=ProgressBars(err))
    target = out_file or file.with_suffix(".graded.jsonl")
    grade_file.write(graded, target)
    skipped = (f"row {number} is left out: {reason}" for number, reason in graded.malformed)
    print_lines(skipped, "red", err)
    if as_json:
        print_json(graded.summary())
    else:
        print_lines([*grade_file.lines(graded), f"verdicts: {target}"])


def _print(parts: Iterable[RenderableType]) -> None:
    """Tables keep to the terminal's width; texts are not cut into lines."""
    for part in parts:
        out.print(part, soft_wrap=isinstance(part, Text))


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
    as_json: options.AsJson = False,
) -> None:
    """Analyse any table of outcomes: means, intervals, paired tests, corrections, power.

    Nothing is imputed: methods are compared on the seeds and items that both have, and what is
    missing or left out is counted by name.
    """
    import numpy as np

    from harness.reporting import outcomes
    from harness.reporting.outcomes.render import as_dict, tables

    analysis = outcomes.analyse(outcomes.read(file), np.random.default_rng(0), reference)
    if as_json:
        print_json(as_dict(analysis))
    else:
        _print(tables(analysis))


def compare(
    experiment: Annotated[
        str,
        typer.Argument(help="An experiment that has run: a name such as quick, or a .toml file."),
    ],
    a: Annotated[str, typer.Argument(metavar="A", help="A row, or a selector for all rows of it.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The row to compare it with.")],
    fraction: Annotated[
        float | None, typer.Option(help="Fraction of the pool; default: the middle one.")
    ] = None,
    arm: Annotated[str, typer.Option(help="Variant of the pool.")] = "main",
    as_json: options.AsJson = False,
) -> None:
    """Compare two rows of an experiment from its records: paired differences, choices, costs."""
    import numpy as np

    from harness.experiment import config
    from harness.reporting import comparison, results
    from harness.reporting.comparison.render import as_dict, tables

    folder = RESULTS / experiment
    if not (folder / "protocol.toml").is_file():
        folder = RESULTS / config.load(config.find(experiment)).name
    arms = {loaded.arm: loaded for loaded in results.load(folder)}
    if arm not in arms:
        raise ValueError(f"--arm {arm!r}; expected one of {', '.join(arms)}")
    # JSON holds one comparison, so that there a name has to fit one row.
    rows = [a] if as_json else comparison.fitting(arms[arm], a)
    for number, row in enumerate(rows):
        compared = comparison.compare(arms[arm], row, b, fraction, np.random.default_rng(0))
        if as_json:
            print_json(as_dict(compared))
            return
        if number:
            out.print()
            out.rule()
        _print(tables(compared))


def noise(
    experiment: options.ExperimentName,
    cell: Annotated[
        str | None,
        option(
            "A cell, such as full@1#0; default: the first finished of full, the reference, base."
        ),
    ] = None,
    repeats: Annotated[int, option("Number of evaluations.", min=2)] = 8,
    as_json: options.AsJson = False,
    verbose: options.Verbose = False,
    store: options.StoreFolder = None,
    task_data: options.TaskData = None,
    task_limit: options.TaskLimit = options.FOUR_HOURS,
    engine_memory: options.EngineMemory = None,
    engine_sequences: options.EngineSequences = None,
    batch_invariant: options.BatchInvariant = False,
) -> None:
    """Measure how much a checkpoint's accuracy varies by chance.

    It is evaluated repeatedly, each time with the items in another order and with other seeds for
    sampled answers. The same command continues a run that was stopped.
    """
    from harness.evaluation.environment import check_environment

    check_environment()
    from harness.evaluation.settings import Limits
    from harness.running.display import LiveView
    from harness.running.run import Run
    from harness.studies import decode_noise

    plan, artefacts = load_plan(experiment, task_data, batch_invariant), open_store(store)
    results = RESULTS / plan.experiment.name
    limits = Limits(engine_memory, engine_sequences, task_limit)
    run = Run(plan, artefacts, results, workers=1, verbose=verbose, limits=limits)
    study = decode_noise.Noise(run, decode_noise.choose_cell(plan, artefacts, cell), repeats)
    view = LiveView(err, "repetitions", counts_jobs=True)
    with resumable(view):
        failed = study.make(view)
    if failed is not None:
        print_lines([f"failed: {failed['message']}"], "red", err)
        raise typer.Exit(1)
    entry = study.entry()
    path = decode_noise.write(entry, results)
    if as_json:
        print_json(entry)
        return
    print_lines(decode_noise.head(entry))
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    columns, *rows = decode_noise.table(entry)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=number > 0)
    for row in rows:
        table.add_row(*map(Text, row))
    out.print(table)
    print_lines([*decode_noise.notes(entry), f"stored: {path}"])
