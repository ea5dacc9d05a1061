"""The committed study of the statistics: its texts are what its counts give."""

from pathlib import Path

import pytest

from harness.studies.influence import layout
from harness.studies.intervals.design import Protocol
from harness.studies.intervals.measure import measure
from harness.studies.intervals.report import csv, markdown, notes, summaries

ROOT = Path(__file__).parents[2]
STUDIES = sorted(path.parent for path in ROOT.glob("results/validation/statistics/facts.json"))


@pytest.mark.parametrize("results", STUDIES, ids=lambda path: path.name)
def test_the_report_is_what_the_counts_give(results):
    found = measure(results)
    texts = {"md": markdown(found), "csv": csv(found)}
    texts["tex"] = layout.tex(summaries(found), notes(found))
    for ending, text in texts.items():
        committed = ROOT / "reports" / "validation" / f"statistics.{ending}"
        assert text == committed.read_text(), ending


@pytest.mark.parametrize("results", STUDIES, ids=lambda path: path.name)
def test_it_is_the_study_of_this_code(results):
    found = measure(results)
    assert found.protocol == Protocol()
    assert found.facts["made"]["dirty"] is False
    assert min(cell.rate.tables for cell in found.cells) >= 2000
