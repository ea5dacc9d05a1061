"""Which runs are made, what they amount to, and what is reported where a peer fails; no model."""

import json
from dataclasses import replace

import numpy as np
import pytest

from harness.studies.speed.measure import Bench, compare, environment, markdown, medians, ratios
from harness.studies.speed.workload import LONG, PERPLEXITY, WORKLOADS

LARGE = WORKLOADS["qwen2.5-0.5b-1k"]
NAMES = ["ours", "kronfluence", "bergson"]
SECONDS = {"ours": 1.0, "kronfluence": 4.0, "bergson": 3.0}


class Recorded(Bench):
    """Records its jobs and answers at once; engines in `broken` fail from a repetition on."""

    def __init__(self, workload, folder):
        super().__init__(workload, folder, folder, threads=2)
        self.jobs, self.broken = [], {}

    def run(self, engine, name, **job):
        self.jobs.append((name, job))
        out = self.folder / name
        out.mkdir()
        if engine in self.broken and int(name.rpartition("-")[2]) >= self.broken[engine]:
            raise RuntimeError(f"Traceback\n{engine} has no memory")
        result = {"perplexity_pass_s": 2.0}
        if engine != PERPLEXITY:
            seconds = SECONDS[engine]
            result = {"fit_s": seconds, "score_s": 2 * seconds, "total_s": 3 * seconds}
            result |= {"peak_mb": 10.0, "peak_device_mb": 100 * seconds}
            result |= {"pass_one_s": 1.0, "pass_two_s": 3.0} if engine == "ours" else {}
            np.save(out / "scores.npy", np.array([1.0, 2.0, 9.0, 4.0, 3.0]))
        if job.get("exact"):
            positions, scores = np.array([0, 1, 3, 4]), np.array([1.0, 2.0, 3.0, 4.0])
            np.savez(out / "exact.npz", positions=positions, scores=scores)
        (out / "result.json").write_text(json.dumps(result))
        return out


@pytest.fixture
def bench(tmp_path):
    return Recorded(LARGE, tmp_path)


def table(workload):
    machine = {"processor": "Abacus", "packages": {"torch": "2"}, "gpu": "Slate"}
    report = {"machine": machine, "threads": 2, "repeats": 1, "engines": NAMES}
    return markdown(json.loads(json.dumps({**report, "workloads": {LARGE.name: workload}})))


def test_repetitions_are_interleaved_and_the_first_is_checked_against_exact_scores(bench):
    report = compare(bench, NAMES, 2, extras=False)
    order = [PERPLEXITY, *NAMES]
    assert [name for name, _ in bench.jobs] == [f"{n}-{i}" for i in (0, 1) for n in order]
    assert [name for name, job in bench.jobs if job["exact"]] == [f"{n}-0" for n in NAMES]
    ours = report["engines"]["ours"]
    assert ours["exact_examples"] == 4
    # One swap of neighbours among four; a difference of (0, 0, 1, -1) to a length of sqrt(30).
    assert ours["spearman_exact"] == pytest.approx(0.8)
    assert ours["error_exact"] == pytest.approx((2 / 30) ** 0.5)
    assert report["ratios"]["kronfluence"] == {
        "fit_s": 4.0,
        "score_s": 4.0,
        "total_s": 4.0,
        "peak_mb": 1.0,
        "peak_device_mb": 4.0,
    }
    assert report["passes_over_perplexity"] == {"pass_one": 0.5, "pass_two": 1.5}
    assert list(report["agreement"]["as_timed"].values()) == pytest.approx([1.0] * 3)
    assert report["sizes"]["pool"] == 256
    text = table(report)
    assert text.startswith("Slate, Abacus, 2 threads, torch 2, one run, each")
    assert "| kronfluence | 4.00 | 8.00 | 12.00 | 400 | 0.800000 |" in text
    assert "0.50 along one direction and 1.50 along two" in text
    assert "- bergson over ours: fit 3.00, score 3.00, total 3.00, peak 1.00, peak on" in text
    assert "- Spearman between engines, as timed: ours/kronfluence 1.00000" in text


def test_extras_compare_engines_on_the_same_labels_and_our_memory_at_two_sizes(bench):
    report = compare(bench, NAMES, 1, extras=True)
    same = {"fisher": "empirical", "loss": "sum"}
    assert [job for name, job in bench.jobs if name.endswith("same-labels")] == [same] * 3
    assert set(report["agreement"]["same_labels"]) == {
        "ours/kronfluence",
        "ours/bergson",
        "kronfluence/bergson",
    }
    assert report["peak_mb_by_pool"] == {"500": 10.0, "5000": 10.0}
    assert "- our peak memory in MB by examples in the pool: 500 10, 5000 10" in table(report)


def test_of_long_examples_only_our_scores_are_checked(tmp_path):
    bench = Recorded(replace(LARGE, max_tokens=LONG), tmp_path)
    report = compare(bench, NAMES, 1, extras=False)
    assert [name for name, job in bench.jobs if job["exact"]] == ["ours-0"]
    assert "spearman_exact" not in report["engines"]["bergson"]
    assert "| bergson | 3.00 | 6.00 | 9.00 | 300 | - |" in table(report)


def test_a_peer_that_fails_is_named_and_not_tried_again(bench):
    bench.broken = {"bergson": 0, "kronfluence": 1}
    report = compare(bench, NAMES, 3, extras=False)
    assert [name for name, _ in bench.jobs if name.startswith("bergson")] == ["bergson-0"]
    assert len(report["repetitions"]["kronfluence"]) == 1
    assert set(report["failed"]) == {"bergson", "kronfluence"}
    assert set(report["engines"]) == {"ours", "kronfluence"}
    assert set(report["ratios"]) == {"kronfluence"}
    text = table(report)
    assert "| bergson | - | - | - | - | - |" in text
    assert "- bergson failed: bergson has no memory" in text


def test_without_our_own_numbers_there_is_nothing_to_compare(bench):
    bench.broken = {"ours": 0}
    with pytest.raises(RuntimeError, match="no memory"):
        compare(bench, NAMES, 1, extras=False)


def test_medians_are_taken_number_by_number():
    runs = [{"x": 1.0, "y": 9.0}, {"x": 5.0, "y": 7.0}, {"x": 2.0, "y": 8.0}]
    assert medians(runs) == {"x": 2.0, "y": 8.0}


def test_ratios_leave_out_what_was_not_measured():
    ours = {"fit_s": 3.0, "score_s": 2.0, "total_s": 5.0, "peak_mb": 500.0, "pass_one_s": 3.0}
    peer = {"fit_s": 12.0, "score_s": 6.0, "total_s": 18.0, "peak_mb": 1000.0}
    expected = {"fit_s": 4.0, "score_s": 3.0, "total_s": 3.6, "peak_mb": 2.0}
    assert ratios({"ours": ours, "peer": peer}) == {"peer": expected}


def test_threads_are_fixed_in_the_environment_of_a_process():
    variables = environment(2)
    assert variables["OMP_NUM_THREADS"] == variables["MKL_NUM_THREADS"] == "2"
    assert variables["HF_HUB_OFFLINE"] == "1"


def test_a_process_that_fails_or_takes_too_long_is_an_error(tmp_path):
    bench = Bench(LARGE, tmp_path, tmp_path, threads=1, limit=0.01)
    with pytest.raises(RuntimeError, match=r"did not finish within 0 s"):
        bench.run("ours", "late")
    bench.limit = None
    with pytest.raises(RuntimeError, match=r"(?s)qwen2.5-0.5b-1k, broken: .*pool.parquet"):
        bench.run("ours", "broken")
