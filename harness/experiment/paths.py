"""Where a run keeps things, relative to the working folder."""

import os
from pathlib import Path

EXPERIMENTS = Path("experiments")
RESULTS = Path("results")
REPORTS = Path("reports")


def default_store() -> Path:
    """Folder of finished artefacts: `COTSIEVE_STORE`, else `.cotsieve`."""
    return Path(os.environ.get("COTSIEVE_STORE", ".cotsieve"))
