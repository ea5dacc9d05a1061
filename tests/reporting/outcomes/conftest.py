"""Outcomes tables of made-up methods."""

import json

import numpy as np
import pandas as pd
import pytest


@pytest.fixture
def save(tmp_path):
    """Write a table, or the text of one, under a name whose ending says how."""

    def write(table, name="outcomes.csv"):
        path = tmp_path / name
        if isinstance(table, str):
            path.write_text(table, encoding="utf-8")
        elif path.suffix == ".csv":
            table.to_csv(path, index=False)
        elif path.suffix == ".parquet":
            table.to_parquet(path)
        else:
            rows = table.astype(object).where(table.notna(), None).to_dict("records")
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture
def outcomes():
    """Long outcomes of methods with the given shifts of accuracy."""

    def make(shifts, seeds=4, tasks=None, decodes=1, sd=0.03, seed=1):
        rng = np.random.default_rng(seed)
        lines = []
        for task, n_items in (tasks or {"core": 30}).items():
            chance = 0.25 + 0.4 * rng.random(n_items)
            for method, shift in shifts.items():
                for s in range(seeds):
                    p = np.clip(chance + shift + sd * rng.standard_normal(), 0, 1)
                    right = rng.random((decodes, n_items)) < p
                    lines += [
                        (method, s, task, f"{task}-{i}", k, int(right[k, i]))
                        for k in range(decodes)
                        for i in range(n_items)
                    ]
        columns = ["method", "seed", "task", "item", "decode", "correct"]
        return pd.DataFrame(lines, columns=columns)

    return make
