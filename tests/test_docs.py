"""The pages for readers: links lead somewhere, commands run, numbers are those of the reports."""

import ast
import importlib
import json
import os
import re
import runpy
import shlex
import tomllib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer
from markdown_it import MarkdownIt
from typer.testing import CliRunner

import harness
from harness.cli.app import app
from harness.experiment import config, settings
from harness.reporting.numbers import MINUS

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "results/README.md", *DOCS]
PARSER = MarkdownIt("commonmark").enable("table")
ROOTS = ("harness", "selectors", "experiments", "results", "reports", "tests", "docs")
MADE_BY_THE_READER = ("selectors/shortest.py", "results/mine", "reports/mine")
NOT_RUN = {
    "run": "trains",
    "noise": "needs an engine",
    "influence": "needs a model",
    "subset": "needs a finished run",
}
"""Subcommands whose lines are parsed and not run; so are lines with a PLACEHOLDER."""
SLOW = ("report", "overlap")
SHELL, PYTHON, SETTINGS = "sh", "python", "toml"


def page_id(page):
    return page.relative_to(ROOT).as_posix()


def tokens(page):
    """All tokens of a page, those inside of text included."""
    for token in PARSER.parse(page.read_text(encoding="utf-8")):
        yield token
        yield from token.children or ()


def anchors(page):
    """Anchors of a page's headings as GitHub writes them."""
    seen = []
    parsed = PARSER.parse(page.read_text(encoding="utf-8"))
    for opening, inline in pairwise(parsed):
        if opening.type == "heading_open":
            words = "".join(t.content for t in inline.children if t.type != "html_inline")
            slug = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
            seen.append(slug if slug not in seen else f"{slug}-{seen.count(slug)}")
    return seen


def fences(language, pages=PAGES):
    """(page, text) of every fenced block in a language."""
    return [
        (page, token.content)
        for page in pages
        for token in PARSER.parse(page.read_text(encoding="utf-8"))
        if token.type == "fence" and token.info == language
    ]


def between(page, mark):
    """The text between <!-- mark --> and <!-- /first word of mark -->."""
    text = page.read_text(encoding="utf-8").partition(f"<!-- {mark} -->")[2]
    return text.partition("<!-- /")[0]


def table_rows(text):
    """Cells of every Markdown table row that is no ruler."""
    lines = [line for line in text.splitlines() if line.startswith("|") and ":--" not in line]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


# Links and names


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_relative_link_leads_somewhere(page):
    for token in tokens(page):
        target = str(token.attrs.get("href") or token.attrs.get("src") or "")
        if not target or re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_path_and_module_that_is_named_exists(page):
    for token in tokens(page):
        name = token.content
        if token.type != "code_inline" or name.startswith(MADE_BY_THE_READER):
            continue
        if re.fullmatch(rf"({'|'.join(ROOTS)})/[a-z0-9_./-]*", name):
            assert (ROOT / name).exists(), name
        elif re.fullmatch(r"(python -m )?harness(\.\w+)+", name):
            assert resolve(name.removeprefix("python -m ")) is not None, name


def resolve(dotted):
    """A module, or an attribute of one, by its full name."""
    module, _, name = dotted.rpartition(".")
    try:
        return importlib.import_module(dotted)
    except ModuleNotFoundError:
        return getattr(importlib.import_module(module), name)


def test_every_page_is_linked_from_the_readme():
    linked = {str(token.attrs.get("href")) for token in tokens(ROOT / "README.md")}
    assert {page_id(page) for page in PAGES[1:]} <= linked


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_picture_of_the_flow_is_what_its_script_draws():
    script = runpy.run_path(str(ROOT / "docs/flow.py"))
    assert (ROOT / "docs/flow.svg").read_text(encoding="utf-8") == script["svg"]()


# Commands


def shell_lines():
    """(page, words) of every command in a shell block, comments and && resolved."""
    lines = []
    for page, text in fences(SHELL):
        for line in text.splitlines():
            lines += [(page, shlex.split(part, comments=True)) for part in line.split("&&")]
    return [(page, words) for page, words in lines if words]


LINES = sorted({tuple(words) for _, words in shell_lines()})
COMMANDS = [words[1:] for words in LINES if words[0] == "cotsieve"]
NOX = [words[3:] for words in LINES if words[:3] == ("python", "-m", "nox")]


def is_run(words):
    placeholder = any(re.fullmatch(r"[A-Z]+(_[A-Z]+)*", word) for word in words)
    return words[0] not in NOT_RUN and not placeholder


def test_every_block_names_its_language():
    for page in PAGES:
        for token in PARSER.parse(page.read_text(encoding="utf-8")):
            if token.type == "fence":
                assert token.info in (SHELL, PYTHON, SETTINGS), (page_id(page), token.content[:60])


def test_every_line_is_one_that_is_checked_here():
    others = {words for words in LINES if words[0] != "cotsieve"}
    others -= {("python", "-m", "nox", *words) for words in NOX}
    assert others <= {
        ("python", "-m", "pip", "install", "nox"),
        ("python", "docs/flow.py"),
        (".ci/run",),
    }
    assert os.access(ROOT / ".ci/run", os.X_OK)


def parse(words, group=app):
    """Parse a command line without running it; click.UsageError for what the command refuses."""
    command = typer.main.get_command(group)
    with command.make_context("command", list(words), resilient_parsing=False) as context:
        _, sub, rest = command.resolve_command(context, list(words))
        sub.make_context(words[0], rest, parent=context)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_line_is_understood(words):
    parse(words)


@pytest.mark.parametrize("words", NOX, ids=" ".join)
def test_every_nox_session_exists(words):
    sessions = [
        node.name
        for node in ast.parse((ROOT / "noxfile.py").read_text()).body
        if isinstance(node, ast.FunctionDef)
        and any(ast.unparse(each) == "nox.session" for each in node.decorator_list)
    ]
    assert words[0] == "-s"
    assert words[1] in sessions
    assert words[2:3] in ((), ("--",))
    if words[1] == "validate" and words[3:]:
        from harness.studies.__main__ import app as studies

        parse(words[3:], studies)
    if words[1] == "bench":
        from harness.studies.speed.__main__ import parser

        parser().parse_args(words[3:])


def test_every_file_that_a_session_names_exists():
    for node in ast.walk(ast.parse((ROOT / "noxfile.py").read_text())):
        if isinstance(node, ast.Constant) and re.fullmatch(r"tests/\S+", str(node.value)):
            assert (ROOT / node.value).exists(), node.value


def test_the_readme_lists_every_command():
    section = (ROOT / "README.md").read_text().partition("## Commands")[2].partition("\n## ")[0]
    listed = {
        name for cells in table_rows(section)[1:] for name in re.findall(r"`(\w+)`", cells[0])
    }
    assert listed == set(typer.main.get_command(app).commands)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working folder with the files that the pages speak of."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "experiments").symlink_to(ROOT / "experiments", target_is_directory=True)
    for name in ("results", "selectors"):
        (folder / name).mkdir()
    for experiment in ("quick", "testbed"):
        source = ROOT / "results" / experiment
        (folder / "results" / experiment).symlink_to(source, target_is_directory=True)
    for name, text in selector_examples().items():
        (folder / "selectors" / f"{name}.py").write_text(text)
    (folder / "mine.toml").write_text(fences(SETTINGS, [ROOT / "README.md"])[0][1])
    write_data(folder)
    return folder


def selector_examples():
    """Python blocks that define a selector, by the name that its class suggests."""
    found = {}
    for _, text in fences(PYTHON):
        for node in ast.parse(text).body:
            bases = [ast.unparse(base) for base in getattr(node, "bases", ())]
            if {"ScoreSelector", "Selector"} & set(bases):
                found[node.name.lower()] = text
    return found


def write_data(folder):
    """Data sets, outcomes, answers and the tokenizer of a model, as small as they can be."""
    from harness.data.testbed import build_tokenizer

    problems = {
        name: [
            {"prompt": f"{a}+{b};", "response": f"{a}+{b}={a + b} #### {a + b}"} for a, b in pairs
        ]
        for name, pairs in {
            "pool": [(1, n) for n in range(8)],
            "queries": [(2, n) for n in range(4)],
        }.items()
    }
    problems["test"] = [{"prompt": f"3+{n};", "answer": str(3 + n)} for n in range(4)]
    problems["answers"] = [{"response": f"so #### {n}", "answer": str(n)} for n in range(4)]
    for name, rows in problems.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    grid = [(m, s, i) for m in ("random", "other") for s in range(3) for i in range(20)]
    outcomes = pd.DataFrame(grid, columns=["method", "seed", "item"])
    outcomes["correct"] = np.random.default_rng(0).integers(0, 2, len(outcomes))
    outcomes.to_parquet(folder / "outcomes.parquet")
    build_tokenizer(folder / "my-model")


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(
            words, marks=[pytest.mark.slow] if words[0] in SLOW else [], id=" ".join(words)
        )
        for words in COMMANDS
        if is_run(words)
    ],
)
def test_every_command_that_needs_no_model_runs(words, place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setenv("COTSIEVE_SELECTORS", str(place / "selectors"))
    result = CliRunner().invoke(app, list(words), env={"COLUMNS": "200"}, catch_exceptions=False)
    assert result.exit_code == 0, result.output


def test_the_experiment_of_the_readme_is_one(place, monkeypatch):
    monkeypatch.chdir(place)
    experiment = config.load(place / "mine.toml")
    assert experiment.name == "mine"
    assert {row.row for row in experiment.rows()} == {
        "random",
        "base",
        "full",
        "influence/combined",
    }


def test_every_selector_that_is_shown_is_checked():
    assert {("check", name) for name in selector_examples()} <= set(COMMANDS)


@pytest.mark.parametrize(
    ("page", "text"), fences(PYTHON), ids=[page_id(page) for page, _ in fences(PYTHON)]
)
def test_every_python_block_compiles_and_its_names_exist(page, text):
    tree = ast.parse(text)
    compile(tree, page_id(page), "exec")
    modules = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "harness":
            for alias in node.names:
                modules[alias.asname or alias.name] = resolve(f"{node.module}.{alias.name}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner = modules.get(node.value.id)
            assert owner is None or hasattr(owner, node.attr), f"{node.value.id}.{node.attr}"


# Tables of names


def test_the_rooms_are_those_of_the_contract():
    (contract,) = [
        entry
        for entry in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"][
            "contracts"
        ]
        if entry["type"] == "layers"
    ]
    floors = {
        room: len(contract["layers"]) - 1 - index
        for index, layer in enumerate(contract["layers"])
        for room in layer.split(" | ")
    }
    text = (
        (ROOT / "docs/architecture.md").read_text().partition("| floor |")[2].partition("\n\n")[0]
    )
    assert {cells[1].strip("`"): int(cells[0]) for cells in table_rows(text)} == floors
    assert floors.keys() == {
        path.parent.name for path in (ROOT / "harness").glob("[a-z]*/__init__.py")
    }


def test_every_shipped_selector_has_a_row():
    text = (
        (ROOT / "docs/selectors.md").read_text().partition("## The rows")[2].partition("\n## ")[0]
    )
    listed = {
        name for cells in table_rows(text)[1:] for name in re.findall(r"`(\w+)[/`]", cells[0])
    }
    assert {path.stem.rstrip("_") for path in (ROOT / "selectors").glob("*.py")} <= listed


def test_every_request_has_a_row():
    table = (
        (ROOT / "docs/selectors.md").read_text().partition("| request |")[2].partition("\n\n")[0]
    )
    listed = {name for cells in table_rows(table) for name in re.findall(r"`(\w+)\(", cells[0])}
    requests = {kind.__name__ for kind in harness.Request.__subclasses__()}
    assert listed == {name for name in harness.__all__ if name in requests} == requests


def test_every_curvature_has_a_row():
    from harness.influence.options import CHOICES

    section = (ROOT / "docs/influence.md").read_text().partition("## Curvature")[2]
    listed = [cells[0].strip("`") for cells in table_rows(section.partition("\n## ")[0])[1:]]
    assert tuple(listed) == CHOICES["kind"]


MODELS = {
    "[pool]": settings.PoolConfig,
    "[query]": settings.QueryConfig,
    "[model]": settings.ModelConfig,
    "[train]": settings.TrainingRecipe,
    "[evaluate]": settings.EvaluateConfig,
    "[[task]]": settings.TaskConfig,
    "[grid]": settings.GridConfig,
    "[[selector]]": settings.SelectorConfig,
    "[[arm]]": settings.ArmConfig,
    "[protocol]": settings.ProtocolConfig,
}


def test_the_table_of_settings_has_every_key():
    rows = dict(table_rows((ROOT / "docs/data.md").read_text().partition("\n- A data set")[0])[1:])
    for table, model in MODELS.items():
        keys = set(re.findall(r"`(\w+)`", rows[f"`{table}`"]))
        assert keys == set(model.model_fields), table


# Numbers


FINDING = re.compile(rf"`([^`]+)`(?: at (\d+)%)? ([+{MINUS}]?\d+\.\d) \\\[([^,]+), ([^\]]+)\\\]")


def test_the_differences_of_testbed_are_told_as_they_are():
    """Each "`row` at 25% +1.2 [0.3, 2.1]" is in its table; without a share, in the other arm's."""
    told = between(ROOT / "docs/testbed.md", "testbed")
    findings = FINDING.findall(told.replace("\n", " "))
    assert len(findings) >= 15
    folder = ROOT / "reports/testbed"
    main, other = (pd.read_csv(folder / f"{arm}main.csv") for arm in ("", "random-errors/"))
    for row, percent, *numbers in findings:
        expected = [float(number.replace(MINUS, "-")) for number in numbers]
        table = main[main["fraction"] == int(percent) / 100] if percent else other
        (line,) = table[(table["task"] == "mean") & (table["row"] == row)].itertuples()
        known = [round(100 * value, 1) for value in (line.diff, line.diff_low, line.diff_high)]
        assert expected == known, (row, percent)


def test_the_table_of_the_readme_is_that_of_the_report():
    report = (ROOT / "reports/testbed/main.md").read_text().replace("\\", "")
    section = report.partition("## 50% of the pool kept")[2].partition("\n## ")[0]
    controls = report.partition("## Controls")[2]
    known = {cells[0]: cells for cells in table_rows(section)}
    known |= {name.removesuffix(" at 50%"): [name, *cells] for name, *cells in table_rows(controls)}
    shown = table_rows(between(ROOT / "README.md", "testbed table"))[1:]
    assert len(shown) >= 5
    for name, *cells in shown:
        _, accuracy, difference, p, verdict, _, seconds = known[
            name.partition("`")[2].partition("`")[0]
        ]
        assert cells == [accuracy, difference, p, verdict, seconds.partition(" /")[0]], name


def test_the_headline_of_quick_is_that_of_the_report():
    quoted = between(ROOT / "docs/testbed.md", "quick").strip()
    assert quoted.startswith("**")
    assert f"\n{quoted}\n" in (ROOT / "reports/quick/main.md").read_text()


INTERVAL = re.compile(rf"[+{MINUS}-]?\d+\.\d+ \[[+{MINUS}-]?\d+\.\d+, [+{MINUS}-]?\d+\.\d+\]")


def plain(text):
    return re.sub(r"\s+", " ", text.replace("\\", "").replace("+", "").replace(MINUS, "-"))


COMPARED = "0.0 [-1.6, 1.6]"
"""The difference of two rows of testbed, which stands in no report."""


def test_the_difference_of_two_rows_is_what_compare_prints(place, monkeypatch):
    monkeypatch.chdir(place)
    words = ("compare", "testbed", "influence/correct", "embedding")
    assert words in COMMANDS
    assert COMPARED in plain(between(ROOT / "docs/testbed.md", "testbed"))
    output = CliRunner().invoke(app, list(words), env={"COLUMNS": "200"}).output
    assert COMPARED.replace(" ", " points ", 1) in plain(output)


def test_every_interval_that_is_quoted_stands_in_a_report():
    reports = [*(ROOT / "reports").rglob("*.md"), ROOT / "results/README.md"]
    known = {interval for page in reports for interval in INTERVAL.findall(plain(page.read_text()))}
    stated = {COMPARED}
    for page in PAGES:
        for interval in INTERVAL.findall(
            plain(re.sub(r" (nats|points) \[", " [", page.read_text()))
        ):
            assert interval in known | stated, (page_id(page), interval)


def test_every_percentage_of_the_statistics_stands_in_its_report():
    section = (ROOT / "docs/statistics.md").read_text().partition("## Are the intervals")[2]
    report = (ROOT / "reports/validation/statistics.md").read_text()
    known = {cell for cells in table_rows(report) for cell in cells}
    quoted = re.findall(r"\d+\.\d", section)
    assert len(quoted) >= 8
    assert set(quoted) <= known


@pytest.mark.parametrize("names", ["testbed qwen2-10m", "qwen2-gpu"])
def test_the_seconds_of_the_influence_engines_are_those_measured(names):
    reports = [(ROOT / f"reports/bench/{name}.md").read_text() for name in names.split()]
    measured = [cells for report in reports for cells in table_rows(report)]
    shown = table_rows(between(ROOT / "docs/performance.md", f"bench {names}"))
    quoted = [cells for cells in shown[1:] if cells[1]]
    assert len(quoted) >= 5
    for name, *cells in quoted:
        engine = "ours" if name == "cotsieve" else name
        assert any(
            engine == known[0] and np.allclose(numbers(cells), numbers(known[1:5]), atol=0.0501)
            for known in measured
            if known[1] != "-"
        ), (name, cells)


def numbers(cells):
    return [float(cell) if re.fullmatch(r"[\d.]+", cell) else np.nan for cell in cells]
