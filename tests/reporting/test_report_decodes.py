"""The report of an experiment with four decodes per item."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from harness.reporting import report

EXTRAS = ["pass_at_k", "majority"]


@pytest.fixture(scope="module")
def source(tmp_path_factory, write_results):
    return write_results(
        tmp_path_factory.mktemp("several") / "results" / "several",
        rows=("base", "random", "length", "full"),
        tasks=("chain_core", "chain_far"),
        items=30,
        pool_size=120,
        decodes=4,
        truncated={"length": 0.1},
        failures={f"full@1#{seed}": {"stage": "train", "message": "nan"} for seed in range(3)},
    )


@pytest.fixture(scope="module")
def built(source):
    out = source.parents[1] / "reports" / "several"
    report.build(source, out)
    return out


@pytest.fixture(scope="module")
def table(built):
    return pd.read_csv(built / "main.csv")


def test_numbers_against_the_samples_themselves(source, table):
    found = {}
    for line in (source / "records.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["row"] != "length":
            continue
        samples = pd.read_parquet(source / record["samples"])
        for (task, _), item in samples.groupby(["task", "item"]):
            wrong = item.loc[~item["correct"], "answer"].dropna()
            wrong = wrong.str.lower().str.replace(" ", "")
            right = int(item["correct"].sum())
            counts = [right, *wrong.value_counts()] if right else list(wrong.value_counts())
            tied = counts.count(max(counts, default=0))
            won = right > 0 and right == max(counts)
            passed, vote = found.setdefault(task, ([], []))
            passed.append(right > 0)
            vote.append(1 / tied if won else 0.0)
    lines = table[table["row"] == "length"].set_index("task")
    for task, (passed, vote) in found.items():
        assert len(vote) == 3 * 30
        assert 0 < np.mean(vote) < np.mean(passed) < 1
        assert list(lines.loc[task, EXTRAS]) == pytest.approx([np.mean(passed), np.mean(vote)])
    means = lines.loc[list(found), EXTRAS].mean()
    assert list(lines.loc["mean", EXTRAS]) == pytest.approx(list(means))


def test_csv_says_how_many_decodes_and_how_many_were_cut(table):
    lines = table[table["task"] == "mean"].set_index("row")
    assert list(lines.loc[["base", "random", "length"], "decodes"]) == [4, 4, 4]
    assert lines.loc["length", "truncated"] == pytest.approx(0.1)
    assert lines.loc["random", "truncated"] == 0
    assert lines.loc["full", [*EXTRAS, "decodes", "truncated"]].isna().all()


def shown(table, row):
    line = table[(table["task"] == "mean") & (table["row"] == row)].iloc[0]
    return [f"{100 * line[name]:.1f}" for name in EXTRAS]


def test_markdown_shows_them_beside_the_verdicts(built, table):
    text = (built / "main.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert {len(row) for row in rows} == {9}
    head = rows[0]
    at = head.index("pass@4, %")
    assert head[at + 1] == "Majority, %"
    by_name = {row[0]: row[at : at + 2] for row in rows}
    for row in ("base", "random", "length"):
        assert by_name[row] == shown(table, row)
    assert by_name["full"] == ["\N{EN DASH}"] * 2
    assert "72 of 1,680 responses (4.3%) were cut" in text
    assert "cut in length at 50% (10.0%)" in text


def test_latex_shows_them(built, table):
    text = (built / "main.tex").read_text()
    body = text.split(r"\endlastfoot")[1].split(r"\end{longtable}")[0].strip().splitlines()
    assert {line.replace(r"\\", "").count(" & ") for line in body} == {9}
    assert r"{Seeds} & {pass@4} & {Majority} \\" in text
    [line] = [line for line in body if line.startswith("random")]
    assert line.removesuffix(r" \\").split(" & ")[8:10] == shown(table, "random")


def test_page_shows_them_for_the_mean_and_for_each_task(built, table):
    text = (built / "index.html").read_text()
    assert text.count('<th scope="col">pass@4, %</th>') == 3
    for part in re.findall(r"<table.*?</table>", text, re.DOTALL):
        titles = re.findall(r'colspan="(\d+)"', part)  # the table of costs has none
        assert set(titles) <= {str(part.count('<th scope="col"'))}
    for value in shown(table, "length"):
        assert f"<td>{value}</td>" in text


def test_nothing_is_judged_by_them(built, source, table, tmp_path):
    """Other wrong answers change the majority and nothing else."""
    for path in (source / "samples").iterdir():
        (tmp_path / "samples").mkdir(exist_ok=True)
        samples = pd.read_parquet(path)
        samples["answer"] = "7"
        samples.to_parquet(tmp_path / "samples" / path.name, index=False)
    for path in source.iterdir():
        if path.name != "samples":
            (tmp_path / path.name).symlink_to(path)
    report.build(tmp_path, tmp_path / "out")
    other = pd.read_csv(tmp_path / "out" / "main.csv")
    assert not other["majority"].equals(table["majority"])
    pd.testing.assert_frame_equal(other.drop(columns="majority"), table.drop(columns="majority"))
