"""Order, medians, ratios and the table, without a single timing."""

import json

import pytest

from harness.studies.speed.measure import environment, medians, order, ratios, spearman
from harness.studies.speed.table import markdown

PASSES = {"perplexity_pass_s": 2.0, "perplexity_pass_best_s": 1.0}
ENGINES = {
    "ours": {
        "fit_s": 3.0,
        "score_s": 2.0,
        "total_s": 5.0,
        "peak_mb": 500.0,
        "pass_one_s": 3.0,
        "pass_two_s": 5.0,
        "spearman_exact": 0.99999,
    },
    "kronfluence": {
        "fit_s": 12.0,
        "score_s": 8.0,
        "total_s": 20.0,
        "peak_mb": 1000.0,
        "spearman_exact": 0.9999,
    },
    "bergson": {
        "fit_s": 9.0,
        "score_s": 6.0,
        "total_s": 15.0,
        "peak_mb": 750.0,
        "spearman_exact": 0.9998,
    },
}


def test_repetitions_are_interleaved():
    assert list(order(["a", "b", "c"], 2)) == [
        (0, "a"),
        (0, "b"),
        (0, "c"),
        (1, "a"),
        (1, "b"),
        (1, "c"),
    ]


def test_medians_are_taken_number_by_number():
    runs = [{"x": 1.0, "y": 9.0}, {"x": 5.0, "y": 7.0}, {"x": 2.0, "y": 8.0}]
    assert medians(runs) == {"x": 2.0, "y": 8.0}


def test_medians_refuse_what_does_not_match():
    with pytest.raises(ValueError, match="differ"):
        medians([{"x": 1.0}, {"y": 1.0}])
    with pytest.raises(ValueError, match="at least one"):
        medians([])


def test_ratios_by_hand():
    found = ratios(PASSES, ENGINES)
    assert found == {
        "ratio_total": 4.0,
        "ratio_score": 4.0,
        "ratio_fit": 4.0,
        "ratio_peak": 2.0,
        "ratio_bergson": 3.0,
        "ratio_score_bergson": 3.0,
        "ratio_fit_bergson": 3.0,
        "ratio_peak_bergson": 1.5,
        "score_over_perplexity": 1.5,
        "score_two_over_perplexity": 2.5,
        "score_over_perplexity_best": 3.0,
        "score_two_over_perplexity_best": 5.0,
    }


def test_spearman_by_hand():
    # One swap of neighbours among four: 1 - 6 * 2 / (4 * 15).
    assert spearman([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(0.8)


def test_threads_are_fixed_in_the_environment_of_a_process():
    found = environment(2)
    assert found["OMP_NUM_THREADS"] == found["MKL_NUM_THREADS"] == "2"
    assert found["HF_HUB_OFFLINE"] == "1"


def test_table_shows_every_engine_and_survives_json():
    workload = {
        **PASSES,
        **ENGINES,
        **ratios(PASSES, ENGINES),
        "agreement": {"as_timed": {"ours/kronfluence": 0.97}},
        "flat_memory": {"500": 510.0, "5000": 512.0},
    }
    report = {
        "machine": {"processor": "Abacus", "torch": "2"},
        "threads": 2,
        "repeats": 3,
        "engines": list(ENGINES),
        "workloads": {"toy": workload},
    }
    text = markdown(json.loads(json.dumps(report)))
    assert "| kronfluence | 12.00 | 8.00 | 20.00 | 1000 | 0.999900 |" in text
    assert "total 4.00" in text
    assert "one direction 1.50 (3.00), two 2.50 (5.00)" in text
    assert "ours/kronfluence 0.97000" in text
    assert "500: 510, 5000: 512" in text
