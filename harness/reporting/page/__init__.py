"""One self-contained HTML page that shows a whole experiment; opens anywhere, asks for nothing.

Everything is inlined (style, script, figures as SVG data, the explorers' data as JSON). All text
from data goes through Jinja's escaping or becomes text by the page's own script, which is the only
one that the page's policy lets run. Without script the page is complete but for the explorers,
of which it then shows a few lists.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import pandas as pd
from markupsafe import Markup

from harness.reporting import numbers, sentences, tables
from harness.reporting.figures import CAPTIONS, WIDE
from harness.reporting.numbers import MEAN
from harness.reporting.page import explorer
from harness.reporting.results import BASE, CONTROLS, FULL, MAIN, Results, mean_parts

if TYPE_CHECKING:
    import jinja2

SECTIONS = {
    "results": "Results",
    "figures": "Figures",
    "examples": "Examples",
    "answers": "Answers",
    "costs": "Costs",
    "reading": "How to read this",
    "provenance": "Provenance",
}
UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)
"""Controls, zero-width characters, direction marks and overrides, halves of surrogate pairs."""


def render(
    results: Results,
    table: pd.DataFrame,
    drawn: Mapping[str, Sequence[Path]],
    files: Sequence[str] = ("main.csv", "main.md", "main.tex"),
) -> str:
    """index.html of one arm, as text; `files`: names of the tables that stand beside it."""
    style, script = _source("style.css"), _source("page.js")
    best = first_row(results, table)
    explorers = [explorer.examples(results), explorer.answers(results, best)]
    shown = {each.name: each for each in explorers if each is not None}
    stored = [*files, *(path.name for paths in drawn.values() for path in paths)]
    return _environment().get_template("page.html").render(
        experiment=results.experiment,
        arm=results.arm,
        title=results.experiment + ("" if results.arm == MAIN else f" · {results.arm}"),
        description=str(results.protocol.get("description", "")),
        headline=sentences.headline(results, table),
        controls=sentences.controls(results, table),
        testbed=sentences.TESTBED_NOTE if results.testbed else "",
        facts=_facts(results),
        reference=results.reference,
        main=tables.accuracies(results, table),
        tasks=[(task, tables.accuracies(results, table, task)) for task in results.tasks],
        failures=sentences.failures(results),
        notes=[n for n in sentences.notes(results, table) if n != sentences.TESTBED_NOTE],
        figures=[_figure(results, table, name, paths) for name, paths in drawn.items()],
        explorers=list(shown.values()),
        costs=_costs(results, table),
        provenance=_environments(results),
        commands=_commands(results, best),
        links=_links(results),
        files=_files(stored),
        sections=[(name, title) for name, title in SECTIONS.items()
                  if name not in ("examples", "answers") or name in shown],
        style=Markup(style),
        script=Markup(script),
        policy=_policy(style, script),
    ) + "\n"  # fmt: skip


def visible(value: Any) -> Any:
    """A value with unseen characters of its texts written as code points: they cannot mislead."""
    if isinstance(value, str) and not isinstance(value, Markup):
        plain = value.replace("\r\n", "\n")
        return UNSEEN.sub(lambda match: f"[U+{ord(match[0]):04X}]", plain)
    if isinstance(value, dict):
        return {visible(key): visible(entry) for key, entry in value.items()}
    return [visible(entry) for entry in value] if isinstance(value, list | tuple) else value


def _environment() -> jinja2.Environment:
    """Templates of this folder; everything but their own markup is escaped and made visible."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_source),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["visible"] = visible
    compact = {"ensure_ascii": False, "allow_nan": False, "separators": (",", ":")}
    environment.policies["json.dumps_kwargs"] = compact
    return environment


def _source(name: str) -> str:
    return resources.files("harness.reporting.page").joinpath(name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """Lets in this style, this script and inlined pictures: no other script, no request."""
    hashes = (base64.b64encode(hashlib.sha256(t.encode()).digest()) for t in (style, script))
    sources = [f"'sha256-{digest.decode()}'" for digest in hashes]
    return (
        f"default-src 'none'; style-src {sources[0]}; script-src {sources[1]}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


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
    headline = " ".join(sentences.headline(results, table))
    alt = f"{title}. {headline}" if name in ("forest", "accuracy") else f"{title}. {caption}"
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
    costs = []
    for line in table[table["task"] == MEAN].itertuples():
        cells = results.groups[line.row, line.fraction]
        parts = mean_parts([cell for cell in cells if cell.status == "done"]).items()
        costs.append(
            {
                "row": line.row,
                "fraction": numbers.percent(line.fraction),
                "parts": ", ".join(f"{name} {numbers.seconds(s)}" for name, s in parts)
                or numbers.NONE,
            }
            | {name: numbers.seconds(getattr(line, name)) for name in tables.SECONDS}
        )
    return costs


def _links(results: Results) -> list[tuple[str, str]]:
    """Pages of the experiment's other arms."""
    if results.arm == MAIN:
        return [(arm, f"{arm}/index.html") for arm in results.arms if arm != MAIN]
    others = [arm for arm in results.arms if arm not in (MAIN, results.arm)]
    return [(MAIN, "../index.html"), *((arm, f"../{arm}/index.html") for arm in others)]


def _environments(results: Results) -> list[dict[str, Any]]:
    """Distinct environments that the cells ran in, each with its number of cells."""
    sets: dict[str, list[Mapping[str, Any]]] = {}
    for cell in results.cells:
        if cell.provenance:
            same = {key: value for key, value in cell.provenance.items() if key != "created"}
            sets.setdefault(json.dumps(same, sort_keys=True), []).append(cell.provenance)
    environments = []
    for _, group in sorted(sets.items(), key=lambda entry: (-len(entry[1]), entry[0])):
        first = group[0]
        engine = first.get("engine") or {}
        dates = sorted(str(entry["created"])[:10] for entry in group if entry.get("created"))
        device = f"{first.get('device', '?')}, {first.get('processor', '?')}"
        environments.append(
            {
                "cells": numbers.plural(len(group), "cell"),
                "commit": str(first.get("commit") or "unknown"),
                "dirty": first.get("dirty"),
                "when": " to ".join(dict.fromkeys([dates[0], dates[-1]])) if dates else "unknown",
                "device": f"{device}, {numbers.plural(int(first.get('threads') or 1), 'thread')}",
                "engine": f"{engine.get('name', '?')} {engine.get('version', '?')}",
                "python": f"{first.get('python', '?')} on {first.get('platform', '?')}",
                "packages": sorted((first.get("packages") or {}).items()),
            }
        )
    return environments


def first_row(results: Results, table: pd.DataFrame) -> str:
    """The finished row to name as an example: the best selector, else another."""
    aside = (*CONTROLS, results.reference)
    lines = table[(table["task"] == MEAN) & (table["mean"].notna())]
    chosen = lines[~lines["row"].isin(aside)]
    ranked = tables.order(results, chosen, list(dict.fromkeys(chosen["row"])))
    controls = [row for row in lines["row"] if row != results.reference]
    others = sorted(controls, key=(BASE, FULL).__contains__)  # those that chose come first
    return str((ranked or others or [results.reference])[0])


def _commands(results: Results, row: str) -> list[tuple[str, str]]:
    """What to type for this very experiment, with a row of it as the example."""
    name = shlex.quote(results.experiment)
    cells = [c for c in results.cells if c.row == row]
    cell = next((c for c in cells if c.status == "done"), cells[0] if cells else None)
    commands = [
        ("Run it, or what is missing of it", f"python -m nox -s benchmark -- {name}"),
        ("Rebuild all tables, figures and pages", "python -m nox -s report"),
        ("This report alone", f"cotsieve report {name}"),
    ]
    if row != results.reference:
        pair = f"{shlex.quote(row)} {shlex.quote(results.reference)}{_arm(results)}"
        commands.append(("Compare two rows", f"cotsieve compare {name} {pair}"))
    if cell is None:
        return commands
    full = cell.name if results.arm == MAIN or ":" in cell.name else f"{results.arm}:{cell.name}"
    commands.append(("Where a cell comes from", f"cotsieve explain {name} {shlex.quote(full)}"))
    if 0 < cell.fraction <= 1:
        at = f"--fraction {cell.fraction:g} --seed {cell.seed}{_arm(results)}"
        command = f"cotsieve subset {name} {shlex.quote(row)} {at} --out subset.jsonl"
        commands.append(("The examples that a row chose", command))
    return commands


def _arm(results: Results) -> str:
    return "" if results.arm == MAIN else f" --arm {shlex.quote(results.arm)}"


def _files(names: Sequence[str]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Names of files by stem, each with its endings, in the order in which they are given."""
    endings: dict[str, list[tuple[str, str]]] = {}
    for name in names:
        path = PurePosixPath(name)
        endings.setdefault(path.stem, []).append((path.suffix[1:].upper(), name))
    return list(endings.items())
