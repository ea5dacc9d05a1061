"""The whole report of a synthetic experiment: tables, figures, page."""

import csv
import html.parser
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from harness.reporting import report

COLUMNS = (
    "row,fraction,task,mean,ci_low,ci_high,sd_seeds,n_seeds,n_items,diff,diff_low,diff_high,"
    "p,p_sign_flip,p_holm,verdict,select_seconds,train_seconds,eval_seconds,"
    "pass_at_k,majority,decodes,truncated"
)
EVIL = 'x<script>alert("1")</script>'
BROKEN = 'nan at <b>step</b> & "worse" 100% \\input{x} $_^~#|*[\nsecond line\N{SNOWMAN}'
DRAWN = ("forest", "accuracy", "seeds", "fractions", "compute", "cost", "overlap", "detection")
DRAWN += ("score-length", "influence-scatter")
ROWS = ("base", "random", "[100%_&_{cost}", "influence/combined", EVIL, "full", "oracle")
TABLES = ("main", "differences", "strategies", "transfer", "cost", "selections")


@pytest.fixture(scope="module")
def source(tmp_path_factory, write_results):
    """One folder with everything awkward: hostile names, failed cells, a second arm."""
    folder = tmp_path_factory.mktemp("experiment") / "results" / "awkward"
    error = {"stage": "train", "message": BROKEN, "step": 12}
    failures = {f"{EVIL}@0.5#{seed}": error for seed in range(3)}
    failures["influence/combined@0.5#1"] = error | {"step": None}
    small = {"rows": ROWS, "tasks": ("chain_core", "chain_far"), "items": 40, "pool_size": 120}
    write_results(
        folder,
        experiment="awkward",
        failures=failures,
        protocol={"arm": [{"name": "random-errors"}]},
        **small,
    )
    return write_results(folder, arm="random-errors", rng_seed=3, **small)


@pytest.fixture(scope="module")
def built(source):
    out = source.parents[1] / "reports" / "awkward"
    return out, report.build(source, out)


@pytest.fixture(scope="module")
def table(built):
    return pd.read_csv(built[0] / "main.csv")


def test_files(built):
    out, paths = built
    names = {"index.html", *(f"{name}.{end}" for name in TABLES for end in ("csv", "md", "tex"))}
    names |= {f"{name}.{ending}" for name in DRAWN for ending in ("svg", "png", "pdf")}
    assert {path.name for path in out.iterdir() if path.is_file()} == names
    assert {path.name for path in (out / "random-errors").iterdir()} == names
    assert len(paths) == 2 * len(names)


def test_same_records_same_bytes(source, built, tmp_path):
    # Another process, another hash seed, records in another order, a user's matplotlib settings.
    copy = tmp_path / "results"
    shutil.copytree(source, copy)
    lines = (copy / "records.jsonl").read_text().splitlines(keepends=True)
    (copy / "records.jsonl").write_text("".join(reversed(lines)))
    (tmp_path / "matplotlibrc").write_text("font.size: 20\nlines.linewidth: 7\n")
    code = "import sys; from pathlib import Path; from harness.reporting.report import build; "
    code += "build(Path(sys.argv[1]), Path(sys.argv[2])); "
    code += "heavy = {'torch', 'transformers', 'vllm', 'lm_eval', 'datasets'} & set(sys.modules); "
    code += "sys.exit(f'imported {heavy}' if heavy else 0)"
    changed = {"PYTHONHASHSEED": "7", "MATPLOTLIBRC": str(tmp_path)}
    subprocess.run(
        [sys.executable, "-c", code, str(copy), str(tmp_path / "out")],
        check=True,
        env=os.environ | changed,
    )
    for path in built[1]:
        other = tmp_path / "out" / path.relative_to(built[0])
        assert other.read_bytes() == path.read_bytes(), path.name


def test_several_at_once_are_those_built_alone(write_results, tmp_path):
    small = {"rows": ("random", "base"), "tasks": ("chain_core",), "items": 12, "pool_size": 20}
    folders = [write_results(tmp_path / name, experiment=name, **small) for name in ("a", "b")]
    arm = {"arm": [{"name": "random-errors"}]}
    folders.append(write_results(tmp_path / "c", experiment="c", protocol=arm, **small))
    write_results(folders[-1], experiment="c", arm="random-errors", rng_seed=3, **small)
    pairs = [(folder, tmp_path / "reports" / folder.name) for folder in folders]
    together = report.build_all(pairs)
    for (folder, out), written in zip(pairs, together, strict=True):
        alone = report.build(folder, tmp_path / "alone" / folder.name)
        assert [path.relative_to(out) for path in written] == [
            path.relative_to(tmp_path / "alone" / folder.name) for path in alone
        ]
        for one, other in zip(written, alone, strict=True):
            assert one.read_bytes() == other.read_bytes(), one.name


def test_csv_columns_and_lines(built, table):
    text = (built[0] / "main.csv").read_text()
    assert text.splitlines()[0] == COLUMNS
    assert len(table) == len(ROWS) * 3
    assert set(table["task"]) == {"chain_core", "chain_far", "mean"}
    assert len(next(csv.reader(io.StringIO(text.splitlines()[-1])))) == 23


def test_columns_for_several_decodes_are_empty_with_one(built, table):
    assert table[["pass_at_k", "majority", "truncated"]].isna().all().all()
    done = table["row"] != EVIL
    assert set(table.loc[done, "decodes"]) == {1}
    assert table.loc[~done, "decodes"].isna().all()
    for name in ("main.md", "main.tex", "index.html"):
        assert not re.search("pass@|majority", (built[0] / name).read_text(), re.IGNORECASE)


def test_csv_against_the_samples_themselves(source, table):
    means = []
    for line in (source / "records.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["arm"] == "main" and record["row"] == "random":
            samples = pd.read_parquet(source / record["samples"])
            means.append(samples.groupby("task")["correct"].mean().mean())
    row = table[(table["row"] == "random") & (table["task"] == "mean")].iloc[0]
    assert row["mean"] == pytest.approx(np.mean(means), abs=1e-9)
    assert row["sd_seeds"] == pytest.approx(np.std(means, ddof=1), abs=1e-9)
    assert (row["n_seeds"], row["n_items"]) == (3, 80)
    assert math.isnan(row["diff"])
    assert row["train_seconds"] == pytest.approx(8.2)


def test_failed_rows_stay_and_are_named(built, table):
    failed = table[table["row"] == EVIL]
    assert list(failed["verdict"]) == ["failed"] * 3
    assert failed["mean"].isna().all()
    partly = table[(table["row"] == "influence/combined") & (table["task"] == "mean")].iloc[0]
    assert partly["n_seeds"] == 2
    text = (built[0] / "main.md").read_text()
    assert "| 2 of 3 |" in text
    assert "influence/combined@0.5\\#1: train: nan at" in text
    assert "influence/combined at 50%: seeds missing: 1" in text
    assert text.count("train, step 12") == 3


def test_a_stranger_finds_the_notes_of_the_main_table(built):
    text = (built[0] / "main.md").read_text()
    assert "<script" not in text.replace("\\<", "")
    for said in ("sign-flip", "40 items per task", "\\|C\\| = 64", "vllm 0.32.0"):
        assert said in text
    assert "not about any real model" in text
    assert "Controls that know the planted quality, against random: oracle" in text


@pytest.mark.parametrize("name", TABLES)
def test_markdown_tables_have_even_rows(built, name):
    for folder in (built[0], built[0] / "random-errors"):
        text = (folder / f"{name}.md").read_text()
        tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
        assert tables
        for table in tables:
            rows = table.splitlines()
            assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1, table
            assert len(rows) > 2
            assert re.fullmatch(r"\|(:--\||--:\|)+", rows[1])
        assert not re.search(r"(?<!\\)<", text)


def test_a_table_that_no_longer_applies_is_removed(source, tmp_path, monkeypatch):
    monkeypatch.setattr(report.figures, "draw", lambda *_: {})  # most of a report's time
    (tmp_path / "noise.tex").write_text("old")
    report.build(source, tmp_path)
    assert not (tmp_path / "noise.tex").exists()
    assert (tmp_path / "cost.tex").is_file()


class Page(html.parser.HTMLParser):
    """Tags with their attributes, and the text outside scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.inside = [], [], [""]
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside.append(tag)

    def handle_endtag(self, tag):
        self.inside.append("/" + tag)

    def handle_data(self, data):
        if self.inside[-1] not in ("script", "style"):
            self.words.append(data)


def test_page_is_self_contained_and_escaped(built):
    text = (built[0] / "index.html").read_text()
    page = Page(text)
    scripts = [attributes.get("type") for tag, attributes in page.tags if tag == "script"]
    assert scripts == ["application/json", "application/json", None]
    assert not any(tag in ("link", "iframe") and a.get("href") != "data:," for tag, a in page.tags)
    images = [a for tag, a in page.tags if tag == "img"]
    assert len(images) == len(DRAWN)
    assert all(a["src"].startswith("data:image/svg+xml;base64,") and a["alt"] for a in images)
    assert not re.search(r"https?://", text)
    shown = " ".join("".join(page.words).split())
    assert EVIL in shown
    assert 'nan at <b>step</b> & "worse"' in shown
    links = [a["href"] for tag, a in page.tags if tag == "a" and not a["href"].startswith("#")]
    assert "random-errors/index.html" in links
    assert all((built[0] / link).is_file() for link in links)
    assert "python -m nox -s benchmark -- awkward" in shown
    arm = Page((built[0] / "random-errors" / "index.html").read_text())
    assert "../index.html" in [a["href"] for tag, a in arm.tags if tag == "a"]


def test_figures_hold_no_dates_and_no_small_pictures(built):
    for path in built[1]:
        if path.suffix == ".svg":
            assert b"<dc:date>" not in path.read_bytes()
        elif path.suffix == ".pdf":
            assert b"CreationDate" not in path.read_bytes()
        elif path.suffix == ".png":
            with Image.open(path) as picture:
                assert picture.width > 800, path.name
                assert len(picture.convert("RGB").getcolors(1 << 24)) > 10, path.name
