"""The LaTeX of every table: read by a small parser of its own, and measured with a real font."""

import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest

from harness.reporting import tables
from harness.reporting.results import load
from harness.reporting.tables.render import tex
from harness.reporting.tables.sheet import Column, Group, Sheet, Table, cell
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
ROOM = {"table": 345, "sidewaystable": 550}
"""Points across a page of the article class, upright and on its side."""


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
    found = {name: tex(sheet) for name, sheet in tables.sheets(results, table).items()}
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
    """Columns of a specification, such as `lS[table-format=2.1]@{ }r`."""
    plain = re.sub(r"@\{ \}", "", spec)
    found = re.findall(r"l|r|S\[table-format=\+?\d+\.\d+\]", plain)
    assert "".join(found) == plain, spec
    return found


def tabulars(text):
    """Environment of the float, column kinds and rows of every tabular."""
    for found in re.finditer(r"\\begin\{(table|sidewaystable)\}", text):
        start = text.index("\\begin{tabular}", found.end()) + len("\\begin{tabular}")
        spec, at = braced(text, start)
        body = text[at : text.index("\\end{tabular}", at)]
        lines = [line for line in body.strip().splitlines() if not line.endswith("rule")]
        assert all(line.endswith(r"\\") for line in lines), lines
        yield found[1], spec, [split(line[:-2]) for line in lines]


def spans(text):
    """How many columns a cell covers, and its text."""
    found = re.match(r"\\multicolumn\{(\d+)\}\{[lc]\}", text)
    return (int(found[1]), braced(text, found.end())[0]) if found else (1, text)


@pytest.mark.parametrize("name", NAMES)
def test_environments_braces_and_math_are_balanced(texts, name):
    text = texts[name]
    assert text.isascii()
    closed = environments(text)
    assert closed.count("tabular") == closed.count("table") + closed.count("sidewaystable") > 0
    plain = re.sub(r"\\[\\{}&%$#_]", "", text.split("\n", 1)[1])
    assert plain.count("{") == plain.count("}")
    assert plain.count("$") % 2 == 0
    assert not re.search(r"[%#_^~]", plain)
    assert r"\input" not in text.replace(r"\textbackslash{}input", "")
    assert "U+2603" in text


@pytest.mark.parametrize("name", NAMES)
def test_every_row_has_the_columns_of_the_specification(texts, name):
    found = list(tabulars(texts[name]))
    assert found
    for _, spec, rows in found:
        count = len(kinds(spec))
        assert len(rows) > 2
        for row in rows:
            assert sum(spans(cell)[0] for cell in row) == count, row
            assert not row[0].startswith(("[", "*"))


@pytest.mark.parametrize("name", NAMES)
def test_columns_of_numbers_hold_numbers_of_their_format_or_braced_texts(texts, name):
    seen = 0
    for _, spec, rows in tabulars(texts[name]):
        for row in rows[1:]:
            if len(row) != len(kinds(spec)):
                continue
            for kind, text in zip(kinds(spec), row, strict=True):
                if not kind.startswith("S") or not text or text.startswith("{"):
                    continue
                seen += 1
                number = re.fullmatch(r"([+-]?)(\d+)(?:\.(\d+))?", text)
                sign, before, after = re.search(r"=(\+?)(\d+)\.(\d+)", kind).groups()
                assert len(number[2]) <= int(before)
                assert len(number[3] or "") <= int(after)
                assert sign or not number[1]
    assert seen > 20


class Ruler:
    """Widths in Computer Modern at script size, by the font itself."""

    def __init__(self):
        from pathlib import Path

        import matplotlib
        from matplotlib.font_manager import get_font

        folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
        self.font = get_font(folder / "cmr10.ttf")
        # cmr7 is drawn wider than cmr10 scaled down: its digits are 0.569 em and not 0.5. At a
        # hundred times its size, widths are not rounded to pixels.
        self.font.set_size(100 * 7 * 0.569 / 0.5, 72)

    def width(self, text):
        for name in ("textless", "textgreater", "textbar", "textasciitilde", "textbackslash"):
            text = text.replace(f"\\{name}{{}}", "m")
        text = re.sub(r"\\(textbf|emph|bfseries|phantom|textasciicircum)", "", text)
        text = text.replace(r"$\pm$", "m").replace("$-$", "m").replace("--", "n")
        text = re.sub(r"\$\\\w+\$", "n", text)
        text = re.sub(r"\\([%&_#${}])", r"\1", text.replace("{", "").replace("}", ""))
        self.font.set_text(text.strip(), 0.0)
        return self.font.get_width_height()[0] / 64 / 100


@pytest.mark.parametrize("name", NAMES)
def test_tables_fit_a_page(texts, name):
    ruler = Ruler()
    for at, (environment, spec, rows) in enumerate(tabulars(texts[name])):
        gap = float(re.findall(r"\\tabcolsep\}\{(\d)pt\}", texts[name])[at])
        shape = kinds(spec)
        close = spec.count("@{ }")
        columns = np.zeros(len(shape))
        for row in rows[1:]:
            if len(row) == len(shape):
                columns = np.maximum(columns, [ruler.width(cell) for cell in row])
        for i, kind in enumerate(shape):
            if kind.startswith("S"):
                sign, before, after = re.search(r"=(\+?)(\d+)\.(\d+)", kind).groups()
                digits = "0" * (int(before) + int(after)) + "." * bool(int(after)) + "m" * len(sign)
                columns[i] = max(columns[i], ruler.width(digits))
        i = 0
        for head in rows[0]:
            span, text = spans(head)
            text = text.strip("{}")
            if text.startswith("\\shortstack"):
                text = max(braced(text + "}", 11)[0].split(r"\\"), key=ruler.width)
            excess = ruler.width(text) - columns[i : i + span].sum()
            columns[i + span - 1] += max(excess, 0)
            i += span
        total = columns.sum() + 2 * gap * (len(shape) - close) + close * ruler.width("i")
        assert total <= ROOM[environment], (name, at, total)
        assert len(rows) <= {"table": 62, "sidewaystable": 34}[environment]


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
    text = tex(small(columns, rows, "half & half"))
    assert text == "\n".join(
        [
            "% Needs \\usepackage{booktabs,siunitx,rotating}.",
            "\\begin{table}",
            "\\centering\\scriptsize\\setlength{\\tabcolsep}{3pt}"
            "\\setlength{\\belowcaptionskip}{4pt}\\sisetup{retain-explicit-plus}",
            "\\caption{A title. half \\& half}",
            "\\begin{tabular}{lS[table-format=+2.1]@{ }rS[table-format=1.2]}",
            "\\toprule",
            "Row & \\multicolumn{2}{c}{Gain, \\%} & {p} \\\\",
            "\\midrule",
            "\\multicolumn{4}{l}{\\emph{half \\& half}} \\\\",
            "a\\_b & -10.2 & {[}$-$11.0, $-$9.0{]} & {\\textless{}0.001} \\\\",
            "c & +3.0 & {[}1.0, 5.0{]} & 0.02 \\\\",
            "d & {--} &  & {--} \\\\",
            "\\bottomrule",
            "\\end{tabular}",
            "",
            "\\medskip",
            "\\begin{minipage}{\\linewidth}\\scriptsize\\raggedright",
            "A note.\\par",
            "\\end{minipage}",
            "\\end{table}",
            "",
        ]
    )


def test_bold_numbers_are_texts_as_wide_as_the_column():
    line = (cell("a"), cell("3.0", bold=True))
    other = (cell("b"), cell("+12.25"))
    table = Table((Column("Row", "l"), Column("Gain")), (Group("", (line, other)),))
    text = tex(Sheet("name", "A title", pd.DataFrame(), (table,), []))
    assert r"a & {\bfseries\phantom{0+}3.0\phantom{0}} \\" in text
    assert r"b & +12.25 \\" in text


def test_wide_tables_lie_on_their_side_and_wider_ones_are_cut():
    heads = [f"a-heading-of-many-letters-{i}" for i in range(12)]
    columns = [Column("Row", "l"), *(Column(head, "S") for head in heads)]
    row = ("x", *(str(i) for i in range(12)))
    found = list(tabulars(tex(small(columns, [row] * 2))))
    assert len(found) > 1
    assert {environment for environment, _, _ in found} == {"sidewaystable"}
    shown = [text.strip("{}") for _, _, rows in found for text in rows[0]]
    assert [text for text in shown if text != "Row"] == heads
    assert all(rows[0][0] == "Row" for _, _, rows in found)
    few = list(tabulars(tex(small(columns[:3], [row[:3]]))))
    assert [environment for environment, _, _ in few] == ["table"]


def test_long_tables_are_cut_and_their_groups_named_again():
    columns = (Column("Row", "l"), Column("Value"))
    rows = [(f"row {i}", str(i)) for i in range(150)]
    found = list(tabulars(tex(small(columns, rows, "a group"))))
    body = [row for _, _, part in found for row in part if len(row) == 2 and row[0] != "Row"]
    assert [row[0] for row in body] == [f"row {i}" for i in range(150)]
    assert all("a group" in part[1][0] for _, _, part in found)
    assert max(len(part) for _, _, part in found) <= 62


def test_notes_that_no_page_holds_below_the_table_follow_it():
    sheet = small((Column("Row", "l"), Column("Value")), [("a", "1")])
    many = Sheet(sheet.name, sheet.title, sheet.numbers, sheet.tables, ["A note. " * 60] * 12)
    assert "minipage" in tex(sheet)
    text = tex(many)
    assert "minipage" not in text
    assert text.index("\\end{table}") < text.index("A note.")


def test_escaped_texts_are_one_line():
    assert tables.tex_text("a\nb_%") == r"a b\_\%"
    assert tables.markdown_text("a\nb|*") == r"a b\|\*"


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
@pytest.mark.parametrize("name", NAMES)
def test_latex_compiles(texts, tmp_path, name):
    (tmp_path / "table.tex").write_text(texts[name])
    (tmp_path / "t.tex").write_text(
        "\\documentclass{article}\\usepackage[T1]{fontenc}\\usepackage{booktabs,siunitx,rotating}"
        "\\begin{document}\\input{table.tex}\\end{document}"
    )
    command = ["pdflatex", "-draftmode", "-halt-on-error", "-interaction=nonstopmode", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    said = done.stdout.decode(errors="replace")
    if "File `siunitx.sty' not found" in said:
        pytest.skip("siunitx is not installed")
    assert done.returncode == 0, said[-2000:]
    assert "Float too large" not in said
    # Words that cannot be broken may stick out of a note, nothing out of a table.
    assert not re.search(r"Overfull \\hbox \(\d{2,}", said), said[-4000:]
