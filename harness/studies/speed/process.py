"""One measurement in a process of its own: `python -m harness.studies.speed.process JOB OUT`.

JOB is a JSON file: `work` ("run", "perplexity" or "exact"), `source`, `workload`, and what that
work needs. Numbers go to OUT/result.json, scores to OUT/scores.npy, the curvature, where wanted, to
OUT/factors.safetensors. `exact`: exact scores under that curvature, where it is too large to be
written, to OUT/exact.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness.studies.speed import engines, exact
from harness.studies.speed.workload import GPU_WORKLOADS, WORKLOADS


def main(job: dict[str, Any], out: Path) -> None:
    """Do one job."""
    torch.set_num_threads(job["threads"])
    workload = {**WORKLOADS, **GPU_WORKLOADS}[job["workload"]]
    source = Path(job["source"])
    result: dict[str, Any]
    if job["work"] == "perplexity":
        result = engines.perplexity(source, workload)
    elif job["work"] == "exact":
        factors = {name: _read(Path(folder)) for name, folder in job["factors"].items()}
        found = exact.scores(source, workload, factors, engines.DAMPING)
        result = {name: values.tolist() for name, values in found.items()}
    else:
        result, scores, engine = engines.run(
            job["engine"],
            source,
            workload,
            out / "files",
            fisher=job.get("fisher", "true"),
            loss=job.get("loss", "mean"),
            examples=job.get("examples"),
        )
        np.save(out / "scores.npy", scores)
        if job.get("exact"):
            own = {job["engine"]: engine.factors()}
            found = exact.scores(source, workload, own, engines.DAMPING)
            told = json.dumps({name: values.tolist() for name, values in found.items()})
            (out / "exact.json").write_text(told + "\n", encoding="utf-8")
        if job.get("keep_factors"):
            _write(out, engine.factors())
    (out / "result.json").write_text(json.dumps(result) + "\n", encoding="utf-8")


def _write(out: Path, factors: engines.Factors) -> None:
    from safetensors.torch import save_file

    tensors = {
        f"{name}/{part}": tensor.float().contiguous().cpu()
        for name, parts in factors.items()
        for part, tensor in zip(("inputs", "outputs", "eigenvalues"), parts, strict=True)
    }
    save_file(tensors, out / "factors.safetensors")


def _read(folder: Path) -> engines.Factors:
    from safetensors.torch import load_file

    tensors = load_file(folder / "factors.safetensors")
    names = sorted({name.rsplit("/", 1)[0] for name in tensors})
    return {
        name: (
            tensors[f"{name}/inputs"],
            tensors[f"{name}/outputs"],
            tensors[f"{name}/eigenvalues"],
        )
        for name in names
    }


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
