"""The committed study of the statistics: its texts are what its counts give."""

from pathlib import Path

import pytest

from harness.studies.intervals.design import Protocol
from harness.studies.intervals.report import measure, page

ROOT = Path(__file__).parents[2]
STUDIES = sorted(path.parent for path in ROOT.glob("results/validation/statistics/facts.json"))


@pytest.mark.parametrize("results", STUDIES, ids=lambda path: path.name)
def test_the_report_is_what_the_counts_give(results):
    for ending, text in page(measure(results)).texts().items():
        committed = ROOT / "reports" / "validation" / f"statistics.{ending}"
        assert text == committed.read_text(), ending


@pytest.mark.parametrize("results", STUDIES, ids=lambda path: path.name)
def test_it_is_the_study_of_this_code(results):
    findings = measure(results)
    assert findings.protocol == Protocol()
    assert findings.facts["made"]["dirty"] is False
    assert findings.rows["tables"].min() >= 2000
