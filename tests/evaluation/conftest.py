"""A model of the testbed, trained briefly."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """A model that writes chains and ends them, often wrongly."""
    from harness.data import testbed

    folder = tmp_path_factory.mktemp("checkpoint")
    spec = testbed.BaseSpec(layers=2, hidden=64, heads=2, steps=60, batch=32, threads=1)
    testbed.train_base(spec, folder, lambda iterable, *_, **__: iterable)
    return folder
