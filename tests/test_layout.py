"""The naming trap: nothing in the repository hides the standard library."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_selectors_is_never_a_package():
    assert not (ROOT / "selectors" / "__init__.py").exists()


def test_asyncio_imports_in_the_repository_root():
    subprocess.run([sys.executable, "-c", "import asyncio"], cwd=ROOT, check=True)


def test_listing_and_reporting_import_no_torch():
    code = (
        "import sys, harness, harness.cli.app, harness.reporting.report, harness.running.plan\n"
        "heavy = {'torch', 'transformers', 'vllm', 'lm_eval', 'datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
