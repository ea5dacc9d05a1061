"""The comparison as a table to read, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SECONDS = (
    ("fit_s", "fit, s", ".2f"),
    ("score_s", "score, s", ".2f"),
    ("total_s", "total, s", ".2f"),
)
MEMORY = ("peak_mb", "peak, MB", ".0f")
ON_DEVICE = ("peak_device_mb", "peak on the GPU, MB", ".0f")
EXACT = ("spearman_exact", "Spearman with exact", ".6f")


def markdown(report: Mapping[str, Any]) -> str:
    """One table per workload, and a line of ratios below it."""
    machine = report["machine"]
    where = f"{machine['device']}, " if machine.get("device") else ""
    lines = [
        f"{where}{machine['processor']}, {report['threads']} threads, torch {machine['torch']}, "
        f"{_repetitions(report['repeats'])}, each in a process of its own.",
    ]
    for name, found in report["workloads"].items():
        memory = ON_DEVICE if "peak_device_mb" in found["ours"] else MEMORY
        columns = (*SECONDS, memory, EXACT)
        lines += ["", f"### {name}", ""]
        lines.append("| engine | " + " | ".join(title for _, title, _ in columns) + " |")
        lines.append("|---" * (len(columns) + 1) + "|")
        for engine in report["engines"]:
            own = found.get(engine, {})
            cells = [format(own[key], style) if key in own else "-" for key, _, style in columns]
            lines.append(f"| {engine} | " + " | ".join(cells) + " |")
        lines += ["", *_sentences(found)]
    return "\n".join(lines) + "\n"


def _repetitions(count: int) -> str:
    return "one run" if count == 1 else f"medians of {count} interleaved repetitions"


def _sizes(found: Mapping[str, Any]) -> list[str]:
    """What was measured, and who did not come to an end."""
    lines = []
    if sizes := found.get("sizes"):
        lines.append(
            f"- {sizes['pool']} examples, {sizes['queries']} queries, at most "
            f"{sizes['max_tokens']} tokens each, batches of {sizes['batch_size']}, {sizes['dtype']}"
        )
    compared = {
        name: own
        for name, own in found.items()
        if isinstance(own, Mapping) and "exact_examples" in own
    }
    if compared:
        told = ", ".join(
            f"{name} {own['error_exact']:.1e} on {own['exact_examples']:.0f} examples"
            for name, own in compared.items()
        )
        lines.append(f"- relative error against exact scores: {told}")
    for engine, why in found.get("failed", {}).items():
        lines.append(f"- {engine}: {why.splitlines()[-1]}")
    return lines


def _sentences(found: Mapping[str, Any]) -> list[str]:
    one, two = "score_over_perplexity", "score_two_over_perplexity"
    lines = [
        *_sizes(found),
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
