"""What a measurement depends on besides the code: packages, processor, cores, load."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from harness.evaluation.environment import installed


def machine(distributions: Iterable[str]) -> dict[str, Any]:
    """Versions of packages (null where one is not installed), Python, processor and cores."""
    return {name: installed(name) for name in distributions} | {
        "python": platform.python_version(),
        "processor": processor(Path("/proc/cpuinfo")),
        "cores": os.cpu_count(),
    }


def processor(about: Path) -> str:
    """The processor's own name where the system tells it."""
    if about.exists():
        for line in about.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def load() -> float:
    """Processes that ran or wanted to, on average over the last minute, this one included."""
    return round(os.getloadavg()[0], 2)
