"""One self-contained HTML page that shows a whole experiment; opens anywhere, asks for nothing.

Everything is inlined (style, script, figures as SVG data, the explorers' data as JSON). All text
from data goes through Jinja's escaping or becomes text by the page's own script, which is the only
one that the page's policy lets run. Without script the page is complete but for the explorers,
of which it then shows a few lists.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from markupsafe import Markup

from harness.reporting import footnotes, headline, numbers, tables
from harness.reporting.numbers import MEAN
from harness.reporting.page import answers, escape, examples, provenance
from harness.reporting.results import MAIN, Results, mean_parts

if TYPE_CHECKING:
    import jinja2

CAPTIONS = {
    "forest": (
        "Paired differences to {reference}",
        "Each mark is a row's mean accuracy minus that of {reference} on the same seeds and "
        "items, with its interval. A triangle is a verdict that survives correction; an open "
        "circle is a tie; squares are controls.",
    ),
    "accuracy": (
        "Accuracy",
        "Mean over tasks with its interval; the small ticks below each mark are single seeds. "
        "The dashed line is {reference}.",
    ),
    "seeds": (
        "Seed by seed",
        "What every training seed says: a row minus {reference}, the same seed and the same items "
        "on both sides. Within a row the seeds stand below one another, the first on top, at the "
        "same height in every row; the bar is their mean, the band its interval, and the marks "
        "are shaped by the row's verdict. At the right: how many seeds lie above 0.",
    ),
    "fractions": (
        "Accuracy against the share of the pool",
        "One panel per row, drawn from the base model (0) through the fractions tried to the "
        "whole pool (100). In grey {reference}, in light grey the other rows.",
    ),
    "compute": (
        "Accuracy at equal total compute",
        "Accuracy with its interval against the floating-point operations of choosing and training "
        "together, in units of one training run. A row is worth what it costs where it stands "
        "above everything to its left, {reference} included. Signals that several rows share "
        "count in full for each. Marks at about the same compute stand side by side; the dashed "
        "line is the base model.",
    ),
    "overlap": (
        "Who chooses the same",
        "Jaccard overlap of the chosen sets: what two rows both chose, of all that either chose; "
        "mean over their common seeds. 1 means the same set; what random sets of this size share "
        "is given. Framed on the diagonal: the same row under different seeds, empty where its "
        "choice does not depend on the seed. Of several fractions the one nearest to half.",
    ),
    "detection": (
        "Which planted errors are found",
        "Left: the share of every class that is pruned, mean over seeds; random choice prunes the "
        "same share of every class. Right: the area under the ROC curve, which is the chance that "
        "a correct example scores above an error of this class, whatever the fraction; a row "
        "without a score has none, and one that ranks by no single score is judged by the first "
        "that it noted. Darker is higher. Of several fractions the one nearest to half.",
    ),
    "score-length": (
        "Score against length",
        "Every example by its response length and its place in the order of scores (100 is the "
        "best), with the median of up to twelve groups along the length; equal lengths are spread "
        "sideways. Above each panel Spearman's rank correlation of score and length and, where "
        "they are known, of score and steps of difficulty: a score near 1 or \N{MINUS SIGN}1 is "
        "little more than length. A row that ranks by no single score is shown by the first that "
        "it noted, by name. The first seed is shown, of many rows those that go most with length.",
    ),
    "influence-scatter": (
        "What influence sees, and what is pruned",
        "Every example of the pool by its influence on queries that fine-tuning made right (s_C) "
        "and made wrong (s_I); hollow marks are pruned, coloured ones are planted errors where "
        "these are known. The first seed is shown. The axes are nearly linear for most "
        "scores and logarithmic beyond (asinh), so that no tail is cut off.",
    ),
    "cost": (
        "Cost against gain",
        "Seconds spent on choosing, by part, beside the difference to {reference}. Parts that "
        "several rows share, such as a reference model, count in full for each of them.",
    ),
}
SECTIONS = {
    "results": "Results",
    "figures": "Figures",
    "examples": "Examples",
    "answers": "Answers",
    "costs": "Costs",
    "reading": "How to read this",
    "provenance": "Provenance",
}
WIDE = ("fractions", "compute", "overlap", "detection", "score-length", "influence-scatter", "cost")


def render(
    results: Results,
    table: pd.DataFrame,
    drawn: Mapping[str, Sequence[Path]],
    files: Sequence[str] = ("main.csv", "main.md", "main.tex"),
) -> str:
    """index.html of one arm, as text; `files`: names of the tables that stand beside it."""
    style, script = _source("style.css"), _source("sort.js") + _source("explorer.js")
    figures = [path.name for paths in drawn.values() for path in paths]
    shown = {"examples": _examples(results), "answers": _answers(results, table)}
    return _environment().get_template("page.html").render(
        experiment=results.experiment,
        arm=results.arm,
        title=results.experiment + ("" if results.arm == MAIN else f" · {results.arm}"),
        description=str(results.protocol.get("description", "")),
        headline=headline.headline(results, table),
        controls=headline.controls(results, table),
        testbed=footnotes.TESTBED_NOTE if results.testbed else "",
        facts=_facts(results),
        reference=results.reference,
        blocks=tables.blocks(results, table),
        extras=tables.extras(table),
        tasks=[
            (task, tables.blocks(results, table, task), tables.extras(table, task))
            for task in results.tasks
        ],
        failures=headline.failures(results),
        notes=[note for note in footnotes.notes(results, table) if note != footnotes.TESTBED_NOTE],
        figures=[_figure(results, table, name, paths) for name, paths in drawn.items()],
        costs=_costs(results, table),
        provenance=provenance.environments(results),
        commands=provenance.commands(results, table),
        links=_links(results),
        files=provenance.files([*files, *figures]),
        sections=[(name, title) for name, title in SECTIONS.items() if shown.get(name, True)],
        style=Markup(style),
        script=Markup(script),
        policy=_policy(style, script),
        embedded=escape.embedded,
        **shown,
    ) + "\n"  # fmt: skip


def _environment() -> jinja2.Environment:
    """Templates of this folder; everything but their own markup is escaped and made visible."""
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FunctionLoader(_source),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=escape.finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _source(name: str) -> str:
    return resources.files("harness.reporting.page").joinpath(name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """Lets in this style, this script and inlined pictures: no other script, no request."""
    return (
        f"default-src 'none'; style-src {escape.policy_hash(style)}; "
        f"script-src {escape.policy_hash(script)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _examples(results: Results) -> dict[str, Any] | None:
    """What examples.html shows."""
    found = examples.explorer(results)
    if found is None:
        return None
    shows = [(name, examples.TITLES[name]) for name in found.data["orders"]]
    if found.data["best"]:
        shows += [("best", "Best by a row's score"), ("worst", "Worst by a row's score")]
    return {"about": found.about, "lists": found.lists, "data": found.data, "shows": shows}


def _answers(results: Results, table: pd.DataFrame) -> dict[str, Any] | None:
    """What answers.html shows; at first the reference's responses beside the best row's."""
    found = answers.explorer(results)
    if found is None:
        return None
    shows = [(name, answers.TITLES[name]) for name, order in found.data["orders"].items() if order]
    if found.data["won"]:
        against = f"{results.reference} by a row"
        shows += [("won", f"Won from {against}"), ("lost", f"Lost to {against}")]
    names = [row["name"] for row in found.data["rows"]]
    pair = (results.reference, provenance.first_row(results, table))
    left, right = (row if row in names else names[0] for row in pair)
    sides = [("left", "Left", left), ("right", "Right", right)]
    return {
        "about": found.about,
        "lists": found.lists,
        "data": found.data,
        "shows": shows,
        "sides": sides,
    }


def _facts(results: Results) -> list[tuple[str, str]]:
    """What a reader wants to know before the table."""
    shares = " / ".join(f"{100 * fraction:g}" for fraction in results.fractions) + "%"
    facts = [
        ("rows", str(len(results.rows))),
        ("of the pool kept", shares),
        ("training seeds", str(len(results.seeds))),
        ("tasks", str(len(results.tasks))),
        ("answers graded", f"{len(results.outcomes):,}"),
    ]
    if results.pool is not None:
        facts.insert(0, ("examples in the pool", f"{len(results.pool):,}"))
    spent = [cell.costs.get(name) for cell in results.cells for name in tables.SECONDS[1:]]
    total = math.fsum(value for value in spent if value is not None)
    facts.append(("train and evaluate", _duration(total)))
    return facts


def _duration(total: float) -> str:
    if total < 120:
        return f"{total:.0f} s"
    return f"{total / 60:.0f} min" if total < 7200 else f"{total / 3600:.1f} h"


def _figure(
    results: Results, table: pd.DataFrame, name: str, paths: Sequence[Path]
) -> dict[str, Any]:
    title, caption = (text.format(reference=results.reference) for text in CAPTIONS[name])
    svg = next(path for path in paths if path.suffix == ".svg")
    width = float(svg.read_text(encoding="utf-8").split('width="', 1)[1].split("pt", 1)[0])
    said = " ".join(headline.headline(results, table))
    alt = f"{title}. {said}" if name in ("forest", "accuracy") else f"{title}. {caption}"
    return {
        "name": name,
        "title": title,
        "caption": caption,
        "alt": alt,
        "wide": name in WIDE or width > 460,
        "width": round(width * 96 / 72),
        "source": "data:image/svg+xml;base64," + base64.b64encode(svg.read_bytes()).decode(),
        "files": [(path.suffix[1:].upper(), path.name) for path in paths],
    }


def _costs(results: Results, table: pd.DataFrame) -> list[dict[str, str]]:
    """Mean seconds per cell of every row and fraction."""
    found = []
    for line in table[table["task"] == MEAN].itertuples():
        cells = results.groups[line.row, line.fraction]
        parts = mean_parts([cell for cell in cells if cell.status == "done"]).items()
        found.append(
            {
                "row": line.row,
                "fraction": numbers.percent(line.fraction),
                "parts": ", ".join(f"{name} {numbers.seconds(s)}" for name, s in parts)
                or numbers.NONE,
            }
            | {name: numbers.seconds(getattr(line, name)) for name in tables.SECONDS}
        )
    return found


def _links(results: Results) -> list[tuple[str, str]]:
    """Pages of the experiment's other arms."""
    if results.arm == MAIN:
        return [(arm, f"{arm}/index.html") for arm in results.arms if arm != MAIN]
    others = [arm for arm in results.arms if arm not in (MAIN, results.arm)]
    return [(MAIN, "../index.html"), *((arm, f"../{arm}/index.html") for arm in others)]
