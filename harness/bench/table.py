"""The comparison as a table to read, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

COLUMNS = (
    ("fit_s", "fit, s", ".2f"),
    ("score_s", "score, s", ".2f"),
    ("total_s", "total, s", ".2f"),
    ("peak_mb", "peak, MB", ".0f"),
    ("spearman_exact", "Spearman with exact", ".6f"),
)


def markdown(report: Mapping[str, Any]) -> str:
    """One table per workload, and a line of ratios below it."""
    machine = report["machine"]
    lines = [
        f"{machine['processor']}, {report['threads']} threads, torch {machine['torch']}, "
        f"medians of {report['repeats']} interleaved repetitions, each in a process of its own.",
    ]
    for name, found in report["workloads"].items():
        lines += ["", f"### {name}", ""]
        lines.append("| engine | " + " | ".join(title for _, title, _ in COLUMNS) + " |")
        lines.append("|---" * (len(COLUMNS) + 1) + "|")
        for engine in report["engines"]:
            cells = [format(found[engine][key], style) for key, _, style in COLUMNS]
            lines.append(f"| {engine} | " + " | ".join(cells) + " |")
        lines += ["", *_sentences(found)]
    return "\n".join(lines) + "\n"


def _sentences(found: Mapping[str, Any]) -> list[str]:
    one, two = "score_over_perplexity", "score_two_over_perplexity"
    lines = [
        f"- perplexity pass {found['perplexity_pass_s']:.2f} s as transformers does it, "
        f"{found['perplexity_pass_best_s']:.2f} s by our kernels; our pass over the pool in these "
        f"units: one direction {found[one]:.2f} ({found[one + '_best']:.2f}), "
        f"two {found[two]:.2f} ({found[two + '_best']:.2f})",
    ]
    names = [key for key in found if key.startswith("ratio_")]
    if names:
        told = ", ".join(f"{key.removeprefix('ratio_')} {found[key]:.2f}" for key in names)
        lines.append(f"- others over ours: {told}")
    for kind, pairs in found["agreement"].items():
        if pairs:
            told = ", ".join(f"{pair} {value:.5f}" for pair, value in pairs.items())
            lines.append(f"- Spearman between engines, {kind.replace('_', ' ')}: {told}")
    if "flat_memory" in found:
        told = ", ".join(f"{size}: {peak:.0f}" for size, peak in found["flat_memory"].items())
        lines.append(f"- our peak memory in MB by examples in the pool: {told}")
    return lines
