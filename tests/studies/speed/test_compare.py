"""Who is run with what, and what is reported where a peer does not come to an end; no model."""

import json
from dataclasses import replace

import numpy as np
import pytest

from harness.studies.speed.measure import ALONE, PERPLEXITY, Bench, compare
from harness.studies.speed.table import markdown
from harness.studies.speed.workload import GPU_WORKLOADS

LARGE = GPU_WORKLOADS["qwen2.5-0.5b-1k"]
NAMES = ["ours", "kronfluence", "bergson"]
SECONDS = {"ours": 1.0, "kronfluence": 4.0, "bergson": 3.0}
PASSES = {"perplexity_pass_s": 2.0, "perplexity_pass_best_s": 1.0}


class Recorded(Bench):
    """Writes down its jobs and answers at once; engines in `broken` fail from a repetition on."""

    def __init__(self, *settings):
        super().__init__(*settings)
        self.jobs, self.broken = [], {}

    def process(self, name, **job):
        self.jobs.append((name, job))
        out = self.folder / name
        out.mkdir()
        engine, _, number = name.partition("-")
        if engine in self.broken and int(number) >= self.broken[engine]:
            raise RuntimeError(f"Traceback\n{engine} has no memory")
        found = dict(PASSES)
        if engine != PERPLEXITY:
            seconds = SECONDS[engine]
            found = {"fit_s": seconds, "score_s": seconds, "total_s": 2 * seconds}
            found |= {"peak_mb": 10.0, "peak_device_mb": 100 * seconds}
            found |= {"pass_one_s": 1.0, "pass_two_s": 2.0} if engine == "ours" else {}
            np.save(out / "scores.npy", np.array([1.0, 2.0, 4.0, 3.0]))
        if job.get("exact"):
            (out / "exact.json").write_text(json.dumps({engine: [1.0, 2.0, 3.0, 4.0]}))
        (out / "result.json").write_text(json.dumps(found))
        return out


@pytest.fixture
def bench(tmp_path):
    return Recorded(LARGE, tmp_path, tmp_path, 2)


def report(found):
    machine = {"processor": "Abacus", "torch": "2", "device": "Slate"}
    told = {"machine": machine, "threads": 2, "repeats": 1, "engines": NAMES}
    return markdown(json.loads(json.dumps({**told, "workloads": {LARGE.name: found}})))


def test_on_a_gpu_every_first_run_is_compared_with_exact_scores_in_its_own_process(bench):
    found = compare(bench, NAMES, 2, extras=False)
    first = {name: job.get("exact") for name, job in bench.jobs if name.endswith("-0")}
    assert first == {"perplexity-0": None} | {f"{name}-0": True for name in NAMES}
    assert not any("exact" in job for name, job in bench.jobs if name.endswith("-1"))
    assert found["ours"]["exact_examples"] == 4
    # One swap of neighbours among four; a difference of (0, 0, 1, -1) to a length of sqrt(30).
    assert found["ours"]["spearman_exact"] == pytest.approx(0.8)
    assert found["ours"]["error_exact"] == pytest.approx((2 / 30) ** 0.5)
    assert found["ratio_peak_device"] == 4.0
    assert found["sizes"]["pool"] == 256
    text = report(found)
    assert text.startswith("Slate, Abacus, 2 threads, torch 2, one run, each")
    assert "| kronfluence | 4.00 | 4.00 | 8.00 | 400 | 0.800000 |" in text


def test_of_long_examples_only_our_scores_are_compared(tmp_path):
    bench = Recorded(replace(LARGE, max_tokens=ALONE), tmp_path, tmp_path, 2)
    found = compare(bench, NAMES, 1, extras=False)
    assert [name for name, job in bench.jobs if job.get("exact")] == ["ours-0"]
    assert "spearman_exact" not in found["bergson"]
    assert "| bergson | 3.00 | 3.00 | 6.00 | 300 | - |" in report(found)


def test_a_peer_that_fails_is_named_and_not_tried_again(bench):
    bench.broken = {"bergson": 0, "kronfluence": 1}
    found = compare(bench, NAMES, 3, extras=False)
    assert [name for name, _ in bench.jobs if name.startswith("bergson")] == ["bergson-0"]
    assert len(found["repetitions"]["kronfluence"]) == 1
    assert set(found["failed"]) == {"bergson", "kronfluence"}
    assert "bergson" not in found
    assert "ratio_bergson" not in found
    text = report(found)
    assert "| bergson | - | - | - | - | - |" in text
    assert "- bergson: bergson has no memory" in text


def test_without_our_own_numbers_there_is_nothing_to_compare(bench):
    bench.broken = {"ours": 0}
    with pytest.raises(RuntimeError, match="no memory"):
        compare(bench, NAMES, 1, extras=False)
