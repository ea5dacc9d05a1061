"""The study of the statistics, small: counts by hand, marks, resuming, the report alone."""

import dataclasses
import json
import math
import re

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from scipy import stats
from typer.testing import CliRunner

from harness.stats import Outcome, detectable, difference, estimate, holm, seeds_needed
from harness.studies.__main__ import app
from harness.studies.intervals import simulate as study
from harness.studies.intervals.design import (
    STRUCTURES,
    Aim,
    Point,
    Protocol,
    draw_items,
    draw_tables,
    move_items,
)
from harness.studies.intervals.methods import (
    BOOTSTRAP,
    IGNORED,
    ITEMS,
    POOLED,
    RESIDUAL_SEEDS,
    SATTERTHWAITE,
    SEEDS,
    SIGN_FLIPS,
    TRIED,
    TWO_WAY,
    UNPAIRED,
)
from harness.studies.intervals.report import MET, Findings, _summary, build, mark, measure, page
from harness.studies.intervals.simulate import (
    DIFFERENCE,
    EQUAL,
    FAMILY,
    MEAN,
    MOVED,
    Batch,
    detections,
    simulate,
)

SMALL = Protocol(
    structures=("beta", "clusters"),
    seeds=(3,),
    items=(12,),
    spreads=(0.05,),
    aims=(Aim(12, 0.02, 0.25, delta=0.4), Aim(12, 0.0, 0.25, seeds=6)),
    tables=20,
    tables_fewest=20,
    batch=10,
    draws=40,
    family=3,
)


@pytest.mark.parametrize("point", SMALL.points, ids=lambda point: point.structure)
def test_counts_are_those_of_a_loop_over_tables(point):
    """Every table once more through `harness.stats` and scipy, one by one."""
    clusters = point.clusters
    labels = {"task": tuple(map(str, clusters))} if clusters else None
    expected = dict.fromkeys([(MEAN, TWO_WAY), (MEAN, SEEDS), (DIFFERENCE, TWO_WAY)], 0)
    expected |= dict.fromkeys([(EQUAL, TWO_WAY), (EQUAL, SEEDS), (FAMILY, TWO_WAY)], 0)
    expected |= {(MOVED, TWO_WAY): 0}
    halves = []

    def near(values, truth):
        return abs(values.mean() - truth) <= stats.t.ppf(0.975, 2) * stats.sem(values)

    for rng in SMALL.generators(point):
        batch = Batch.draw(SMALL, point, rng)
        for at in range(10):
            own, *equal = (
                Outcome.of({"task": t[at].astype(float)}, clusters=labels)
                for t in (batch.reference, *batch.equal)
            )
            others = [
                Outcome.of({"task": t[at].astype(float)}, clusters=labels) for t in batch.others
            ]
            found = estimate(own)
            halves.append((found.ci_high - found.ci_low) / 2)
            expected[MEAN, TWO_WAY] += found.ci_low <= 0.5 + 0.25 * (not clusters) <= found.ci_high
            expected[MEAN, SEEDS] += near(own.seed_means, point.population.mean)
            pairs = [[difference(one, own) for one in arm] for arm in (equal, others)]
            expected[EQUAL, TWO_WAY] += pairs[0][0].p < 0.05
            expected[DIFFERENCE, TWO_WAY] += pairs[1][0].p >= 0.05
            expected[EQUAL, SEEDS] += not near(equal[0].seed_means - own.seed_means, 0.0)
            for quantity, family in zip((FAMILY, MOVED), pairs, strict=True):
                verdicts = {one.verdict for one in holm(family)}
                expected[quantity, TWO_WAY] += verdicts != {"tie"}
    found = simulate(point, SMALL)
    assert {key: found[key[0]][key[1]]["count"] for key in expected} == expected
    assert found[MEAN][TWO_WAY]["half"] == pytest.approx(np.mean(halves), rel=1e-6)


def test_all_methods_are_counted():
    found = simulate(SMALL.points[1], SMALL)
    common = {TWO_WAY, SATTERTHWAITE, BOOTSTRAP, SEEDS, IGNORED, *TRIED}
    assert set(found[MEAN]) == common | {POOLED, ITEMS}
    assert set(found[DIFFERENCE]) == set(found[EQUAL]) == common | {SIGN_FLIPS, UNPAIRED}
    assert set(found[FAMILY]) == set(found[MOVED])
    assert {TWO_WAY, SATTERTHWAITE, SEEDS, SIGN_FLIPS, UNPAIRED} < set(found[FAMILY])
    # Three seeds: sign flips cannot fall below 0.25, whatever the tables.
    assert found[EQUAL][SIGN_FLIPS]["count"] == 0
    assert found[DIFFERENCE][SIGN_FLIPS] == {"count": 20}


def test_the_counts_of_this_revision():
    """A change here without a new `revision` would leave committed counts that nothing gives."""
    protocol = dataclasses.replace(Protocol(), tables_fewest=400)
    assert protocol.revision == 2
    found = simulate(Point("beta", 3, 40, 0.05), protocol)
    counts = {quantity: found[quantity][TWO_WAY]["count"] for quantity in found}
    assert counts == {MEAN: 381, DIFFERENCE: 396, EQUAL: 15, FAMILY: 7, MOVED: 4}
    assert found[MEAN][BOOTSTRAP]["count"] == 384
    assert found[FAMILY][RESIDUAL_SEEDS]["count"] == 15


def test_power_of_the_seeds_that_the_formula_asks_for():
    found = detections(SMALL.aims[0], SMALL)
    assert found["seeds"] == seeds_needed(found["sd"], 0.4)
    assert found["delta"] == 0.4
    # Binomial variance given the items, twice, and the seeds' own.
    population = STRUCTURES["uniform"]
    assert found["sd"] == pytest.approx(math.sqrt(2 * (population.slope / 12 + 0.02**2)), rel=0.15)
    assert 0 <= found["found"][SEEDS] <= 20


def test_power_at_the_difference_that_the_formula_names():
    found = detections(SMALL.aims[1], SMALL)
    assert found["seeds"] == 6
    named = []
    for rng in SMALL.generators(SMALL.aims[1]):
        population = STRUCTURES["uniform"]
        items = draw_items(rng, population, 10, 12)
        changed = move_items(rng, population, items, 0.25)
        gaps = draw_tables(rng, population, changed, 6, 0.0, 0.0)
        gaps -= draw_tables(rng, population, items, 6, 0.0, -0.0)
        for table in gaps.astype(float):
            both = [Outcome.of(np.clip(sign * table, 0, 1)) for sign in (1, -1)]
            spread = difference(*both).spread
            named.append(detectable(spread))
    assert found["delta"] == pytest.approx(np.mean(named), rel=1e-6)


def marked(count, quantity, tables=2000):
    share = count / tables
    return mark(share, math.sqrt(share * (1 - share) / tables), quantity)


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1900, MET),
        (1860, MET),  # 93% itself
        (1850, "narrow?"),  # 92.5%, error 0.6: within two errors of 93%
        (1820, "narrow"),  # 91%, error 0.6
        (1945, "wide?"),  # 97.25%, error 0.4
        (1970, "wide"),
        (2000, "wide"),
    ],
)
def test_marks_of_coverage(count, expected):
    assert marked(count, MEAN) == expected


@pytest.mark.parametrize(
    ("count", "expected"), [(0, MET), (120, MET), (130, "many?"), (150, "many")]
)
def test_marks_of_tests(count, expected):
    assert marked(count, FAMILY) == expected


def table_of(findings, title):
    (table,) = (table for table in page(findings).tables if table.title == title)
    return table.frame.set_index(table.frame.columns[0])


def test_points_are_counted_by_mark():
    """Three points by hand: 90%, 95% and 99.9% of 1,000 tables, half-widths 1, 2, 4 times."""
    rows = []
    for items, count, half_width in ((40, 900, 0.1), (300, 950, 0.2), (1319, 999, 0.4)):
        place = {"structure": "beta", "seeds": 3, "items": items, "seed_sd": 0.0}
        own = {"share": count / 1000, "half_width": half_width, "mark": marked(count, MEAN, 1000)}
        default = {"share": 0.95, "half_width": 0.1, "mark": MET}
        rows += [
            {"quantity": MEAN, "method": SEEDS, **place, **own},
            {"quantity": MEAN, "method": TWO_WAY, **place, **default},
        ]
    findings = Findings(SMALL, {}, pd.DataFrame(rows))
    line = _summary(findings, MEAN, SEEDS, "seeds")
    assert [line[n] for n in ("Points", "Met", "Within error")] == [3, 1, 0]
    assert [line[n] for n in ("Too low", "Too high", "Verdict")] == [1, 1, "missed"]
    assert (line["Lowest, %"], line["Lowest at"]) == ("90.0", "3, 40, 0, beta")
    assert (line["Highest, %"], line["Highest at"]) == ("99.9", "3, 1,319, 0, beta")
    assert line["Half-width"] == "2.00"  # (1 * 2 * 4) ** (1/3)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Results of the small study, by one worker."""
    folder = tmp_path_factory.mktemp("results") / "statistics"
    study.run(SMALL, folder, 1, Console(quiet=True))
    return folder


def test_a_killed_study_continues_where_it_was(written, tmp_path):
    whole = (written / study.COUNTS).read_bytes()
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / study.PROTOCOL).write_bytes((written / study.PROTOCOL).read_bytes())
    lines = whole.decode().splitlines(keepends=True)
    # The line that is there is kept as it is: nobody simulates it again.
    kept = lines[1].replace('"count": ', '"count": 1')
    (folder / study.COUNTS).write_text(kept)
    study.run(SMALL, folder, 2, Console(quiet=True))
    assert (folder / study.COUNTS).read_text().splitlines(keepends=True) == [
        kept if number == 1 else line for number, line in enumerate(lines)
    ]


def test_counts_of_another_protocol_are_not_kept(written, tmp_path):
    for name in (study.PROTOCOL, study.COUNTS):
        (tmp_path / name).write_bytes((written / name).read_bytes())
    wider = dataclasses.replace(SMALL, seeds=(3, 5))
    assert len(study._stored_counts(wider, tmp_path)) == 4
    raised = dataclasses.replace(SMALL, revision=3)
    assert study._stored_counts(raised, tmp_path) == {}
    assert not (tmp_path / study.COUNTS).exists()


def test_measured_numbers_are_those_of_the_counts(written):
    findings = measure(written)
    lines = (written / study.COUNTS).read_text().splitlines()
    first = json.loads(lines[0])
    point = Point(**first["point"])
    for method, entry in first["counts"][DIFFERENCE].items():
        row = findings.of(DIFFERENCE, method).set_index("structure").loc[point.structure]
        assert (row["count"], row["tables"]) == (entry["count"], 20)
        assert row["share"] == entry["count"] / 20
        assert row["error"] == pytest.approx(math.sqrt(row["share"] * (1 - row["share"]) / 20))
        assert row["half_width"] == pytest.approx(entry.get("half", math.nan), nan_ok=True)
    powers = findings.rows[findings.rows["quantity"].str.startswith("power")]
    assert list(powers.loc[powers["mark"] != "", "method"]) == [SEEDS, TWO_WAY]


def test_what_is_missing_is_said(written, tmp_path):
    for name in (study.PROTOCOL, study.COUNTS, study.FACTS):
        (tmp_path / name).write_bytes((written / name).read_bytes())
    lines = (tmp_path / study.COUNTS).read_text().splitlines(keepends=True)
    (tmp_path / study.COUNTS).write_text("".join(lines[:-1]))
    with pytest.raises(ValueError, match="lacks the counts of 1 points, the first Aim"):
        measure(tmp_path)


def test_the_same_counts_give_the_same_report(written, tmp_path):
    first, second = (build(written, tmp_path / name) for name in ("one", "two"))
    assert [path.suffix for path in first] == [".md", ".csv", ".tex", ".svg", ".png", ".pdf"]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(first, second, strict=True))
    table = pd.read_csv(tmp_path / "one" / "statistics.csv")
    own = table[(table["quantity"] == MEAN) & (table["method"] == TWO_WAY)]
    np.testing.assert_allclose(own["share"], own["count"] / own["tables"])
    text = (tmp_path / "one" / "statistics.md").read_text()
    for title in ("The default, two-way, against what it promises", "95% interval for a mean"):
        assert text.count(f"## {title}\n") == 1


def test_a_default_that_misses_is_marked_with_its_place(written):
    """Counts made up: the default covers 60%, seeds only everything it should."""
    findings = measure(written)
    rows = findings.rows.copy()
    for method, count in ((TWO_WAY, 1200), (SEEDS, 1900)):
        own = (rows["quantity"] == MEAN) & (rows["method"] == method)
        rows.loc[own, "share"] = count / 2000
        rows.loc[own, "mark"] = marked(count, MEAN)
    findings = Findings(findings.protocol, findings.facts, rows)
    line = table_of(findings, "The default, two-way, against what it promises").iloc[0]
    assert list(line[["Points", "Met", "Within error", "Too low"]]) == [2, 0, 0, 2]
    assert list(line[["Lowest, %", "Lowest at"]]) == ["60.0", "3, 12, 5, beta"]
    assert line["Verdict"] == "missed"
    line = table_of(findings, "95% interval for a mean").loc[SEEDS]
    assert list(line[["Met", "Too low", "Too high", "Verdict"]]) == [2, 0, 0, MET]


def test_the_command_rebuilds_what_is_there(written, tmp_path):
    arguments = ["report", "--results", str(written.parent), "--reports", str(tmp_path)]
    ended = CliRunner().invoke(app, arguments)
    assert ended.exit_code == 0, ended.output
    assert sorted(path.name for path in tmp_path.iterdir())[0] == "statistics.csv"
    arguments[2] = str(tmp_path)
    ended = CliRunner().invoke(app, arguments)
    assert ended.exit_code == 2
    assert "no finished study" in re.sub(r"[\s│]+", " ", ended.output)
