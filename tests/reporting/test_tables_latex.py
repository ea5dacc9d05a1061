"""The LaTeX of every table: read by a small parser of its own, and compiled where LaTeX is."""

import re
import shutil
import subprocess

import pandas as pd
import pytest

from harness.reporting import tables
from harness.reporting.results import load
from harness.reporting.tables.sheet import Column, Group, Sheet, Table, cell, latex
from harness.stats import summarise

EVIL = 'x<script>alert("1")</script>'
HOSTILE = (
    "base", "random", "[100%_&_{cost}", "*perplexity/~^\\$#|mid\N{SNOWMAN}", "influence/combined",
    EVIL, "a\nbreak/\N{MINUS SIGN}1", "full", "oracle",
)  # fmt: skip
NAMES = ("main", "differences", "strategies", "transfer", "cost", "selections")
TASKS = (
    "gsm8k", "math500", "amc23", "aime24", "aime25", "olympiadbench", "minerva_math", "gpqa_%&",
)  # fmt: skip


@pytest.fixture(scope="module")
def texts(tmp_path_factory, write_results):
    """All LaTeX of an experiment with hostile names, eight tasks, three fractions, failures."""
    folder = tmp_path_factory.mktemp("hostile") / "results" / "hostile"
    message = 'nan at <b>step</b> & "worse" 100% \\input{x} $_^~#|*[\nsecond line\N{SNOWMAN}'
    error = {"stage": "train", "message": message, "step": 12}
    write_results(
        folder,
        experiment="hostile_100%",
        rows=HOSTILE,
        tasks=TASKS,
        fractions=(0.25, 0.5, 0.75),
        seeds=(0, 1),
        items=6,
        pool_size=60,
        failures={f"{EVIL}@{share}#{seed}": error for share in (0.25, 0.5) for seed in range(2)},
    )
    (results,) = load(folder)
    table = tables.main(results, summarise(results.outcomes, seeds=results.seeds))
    found = {name: latex(sheet) for name, sheet in tables.sheets(results, table).items()}
    assert set(found) == set(NAMES)
    return found


def environments(text):
    """Names of environments in the order in which they are closed; refused where they cross."""
    stack, closed = [], []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            stack.append(name)
        else:
            assert stack.pop() == name
            closed.append(name)
    assert stack == []
    return closed


def braced(text, start):
    """What stands between the brace at `start` and its partner, and the place behind it."""
    assert text[start] == "{"
    depth, at = 0, start
    while True:
        if text[at] == "\\":
            at += 2
            continue
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        at += 1
        if depth == 0:
            return text[start + 1 : at - 1], at


def split(row):
    """Cells of a row at the ampersands outside braces."""
    cells, depth, at, last = [], 0, 0, 0
    while at < len(row):
        if row[at] == "\\":
            at += 2
            continue
        depth += {"{": 1, "}": -1}.get(row[at], 0)
        if row[at] == "&" and depth == 0:
            cells.append(row[last:at].strip())
            last = at + 1
        at += 1
    assert depth == 0, row
    return [*cells, row[last:].strip()]


def kinds(spec):
    """Columns of a specification, such as `lS@{ }r`."""
    plain = re.sub(r"@\{ \}", "", spec)
    assert set(plain) <= set("lrS"), spec
    return list(plain)


def tables_of(text):
    """Column kinds and rows of every long table, its heading once."""
    for found in re.finditer(r"\\begin\{longtable\}", text):
        spec, at = braced(text, found.end())
        body = text[at : text.index("\\end{longtable}", at)]
        first, last = body.split("\\endfirsthead")[0], body.split("\\endlastfoot")[1]
        lines = [line for line in (first + last).strip().splitlines() if not line.endswith("rule")]
        lines = [line for line in lines if line and not line.startswith("\\caption")]
        assert all(line.endswith(r"\\") for line in lines), lines
        yield spec, [split(line[:-2]) for line in lines]


def spans(text):
    """How many columns a cell covers, and its text."""
    found = re.match(r"\\multicolumn\{(\d+)\}\{[lc]\}", text)
    return (int(found[1]), braced(text, found.end())[0]) if found else (1, text)


@pytest.mark.parametrize("name", NAMES)
def test_environments_braces_and_math_are_balanced(texts, name):
    text = texts[name]
    assert text.isascii()
    closed = environments(text)
    assert closed.count("longtable") > 0
    assert set(closed) <= {"longtable", "landscape"}
    assert text.count("\\begingroup") == text.count("\\endgroup") == 1
    plain = re.sub(r"\\[\\{}&%$#_]", "", text.split("\n", 1)[1])
    assert plain.count("{") == plain.count("}")
    assert plain.count("$") % 2 == 0
    assert not re.search(r"[%#_^~]", plain)
    assert r"\input" not in text.replace(r"\textbackslash{}input", "")
    assert "U+2603" in text


@pytest.mark.parametrize("name", NAMES)
def test_every_row_has_the_columns_of_the_specification(texts, name):
    found = list(tables_of(texts[name]))
    assert found
    for spec, rows in found:
        count = len(kinds(spec))
        assert len(rows) > 2
        for row in rows:
            assert sum(spans(cell)[0] for cell in row) == count, row
            assert not row[0].startswith(("[", "*"))


@pytest.mark.parametrize("name", NAMES)
def test_columns_of_numbers_hold_numbers_or_braced_texts(texts, name):
    seen = 0
    for spec, rows in tables_of(texts[name]):
        for row in rows[1:]:
            for kind, text in zip(kinds(spec), row, strict=True):
                if kind == "S" and text and not text.startswith("{"):
                    assert re.fullmatch(r"(\\bfseries )?[+-]?\d+(\.\d+)?", text)
                    seen += 1
    assert seen > 20


def small(columns, rows, title="", **changes):
    lines = tuple(tuple(cell(*c) if isinstance(c, tuple) else cell(c) for c in row) for row in rows)
    table = Table(tuple(columns), (Group(title, lines),))
    return Sheet("name", "A title", pd.DataFrame(), (table,), ["A note."], **changes)


def test_a_table_by_hand():
    minus = "\N{MINUS SIGN}"
    columns = (Column("Row", "l"), Column("Gain, %", "Sr"), Column("p", "S"))
    rows = [
        ("a_b", (f"{minus}10.2", f"[{minus}11.0, {minus}9.0]"), "<0.001"),
        ("c", ("+3.0", "[1.0, 5.0]"), "0.02"),
        ("d", ("\N{EN DASH}", ""), "\N{EN DASH}"),
    ]
    lines = latex(small(columns, rows, "half & half")).splitlines()
    head = r"{Row} & \multicolumn{2}{c}{Gain, \%} & {p} \\"
    assert lines[3] == r"\begin{longtable}{lS@{ }rS}"
    assert lines[4] == r"\caption{A title} \\"
    assert lines.count(head) == 2
    assert lines[lines.index(r"\endlastfoot") + 1 :] == [
        r"\rule{0pt}{3ex}\rlap{\emph{half \& half}} &  &  &  \\",
        r"a\_b & -10.2 & {[}$-$11.0, $-$9.0{]} & {\textless{}0.001} \\",
        r"c & +3.0 & {[}1.0, 5.0{]} & 0.02 \\",
        r"d & {--} &  & {--} \\",
        r"\end{longtable}",
        r"\scriptsize\raggedright",
        r"A note.\par",
        r"\endgroup",
    ]


def test_what_beats_the_reference_is_bold():
    line = (cell("a"), cell("3.0", "[1.0]", bold=True))
    table = Table((Column("Row", "l"), Column("Gain", "Sr")), (Group("", (line,)),))
    text = latex(Sheet("name", "A title", pd.DataFrame(), (table,), []))
    assert r"a & \bfseries 3.0 & {\bfseries {[}1.0{]}} \\" in text


def test_a_column_of_another_medium_stays_out():
    columns = (Column("Row", "l"), Column("Seconds", "SS", tex=False), Column("p"))
    text = latex(small(columns, [("a", ("1", "2"), "0.5")]))
    assert r"{Row} & {p} \\" in text
    assert r"a & 0.5 \\" in text


def test_wide_tables_lie_on_their_side():
    heads = [f"a-heading-of-many-letters-{i}" for i in range(12)]
    columns = [Column("Row", "l"), *(Column(head, "S") for head in heads)]
    row = ("x", *(str(i) for i in range(12)))
    assert "\\begin{landscape}" not in latex(small(columns[:3], [row[:3]]))
    assert "\\scriptsize\n\\begin{landscape}" in latex(small(columns[:5], [row[:5]]))
    assert "\\tiny\n\\begin{landscape}" in latex(small(columns, [row]))


def test_escaped_texts_are_one_line():
    assert tables.tex_text("a\nb_%") == r"a b\_\%"
    assert tables.markdown_text("a\nb|*") == r"a b\|\*"


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
@pytest.mark.parametrize("name", NAMES)
def test_latex_compiles(texts, tmp_path, name):
    (tmp_path / "table.tex").write_text(texts[name])
    (tmp_path / "t.tex").write_text(
        "\\documentclass{article}\\usepackage[T1]{fontenc}"
        "\\usepackage{booktabs,longtable,pdflscape,siunitx}"
        "\\begin{document}\\input{table.tex}\\end{document}"
    )
    command = ["pdflatex", "-draftmode", "-halt-on-error", "-interaction=nonstopmode", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    said = done.stdout.decode(errors="replace")
    if "File `siunitx.sty' not found" in said:
        pytest.skip("siunitx is not installed")
    assert done.returncode == 0, said[-2000:]
