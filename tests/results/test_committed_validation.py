"""The validation study that is committed: its report is what its results give, its claims stand."""

import tomllib
from pathlib import Path

import pandas as pd
import pytest

from harness.studies.influence.report import measure, page

ROOT = Path(__file__).parents[2]
STUDIES = sorted(path.parent for path in ROOT.glob("results/validation/facts.json"))


@pytest.mark.parametrize("results", STUDIES, ids=lambda path: path.name)
def test_the_report_is_what_the_results_give(results):
    for ending, text in page(measure(results)).texts().items():
        committed = ROOT / "reports" / "validation" / f"influence.{ending}"
        assert text == committed.read_text(), ending


@pytest.mark.parametrize("results", STUDIES, ids=lambda path: path.name)
def test_it_is_as_large_as_it_says_and_scores_every_curvature(results):
    from harness.influence.options import CHOICES

    protocol = tomllib.loads((results / "protocol.toml").read_text())
    assert protocol["halves"] >= 60
    assert len(protocol["seeds"]) >= 3
    predicted = pd.read_parquet(results / "predictions.parquet")
    assert {*CHOICES["kind"], "kronfluence", "shuffled"} <= set(predicted["method"])
    for method, part in predicted.groupby("method"):
        assert len(part) == protocol["halves"] * protocol["queries"], method
        assert not part.duplicated(["half", "query"]).any(), method
