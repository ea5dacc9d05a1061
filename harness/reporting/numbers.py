"""How numbers are written: points, intervals, p values, lists of words."""

from __future__ import annotations

import math
from collections.abc import Iterable

MEAN = "mean"
"""The task that stands for the mean over all tasks."""
NONE = "\N{EN DASH}"
"""Stands where a number is undefined."""
MINUS = "\N{MINUS SIGN}"


def number(value: float, digits: int = 1, *, signed: bool = False) -> str:
    """A number for a reader, with a true minus sign; a dash where it is undefined."""
    if not math.isfinite(value):
        return NONE
    text = f"{abs(value):.{digits}f}"
    zero = float(text) == 0
    return ("" if zero else MINUS if value < 0 else "+" if signed else "") + text


def points(value: float, *, signed: bool = False) -> str:
    """A share of one in percent or percentage points, one decimal."""
    return number(100 * value, 1, signed=signed)


def interval(low: float, high: float) -> str:
    """`[low, high]` in percent, empty where undefined."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return ""
    return f"[{points(low)}, {points(high)}]"


def p_value(p: float) -> str:
    """A p value for a reader."""
    if math.isfinite(p) and p < 0.001:
        return "<0.001"
    return number(p, 3 if p < 0.1 else 2)


def compact(value: float, most: int = 2) -> str:
    """About three digits, `most` of them after the point."""
    return number(value, min(most, 0 if value >= 100 else 1 if value >= 10 else 2))


def seconds(value: float) -> str:
    """Seconds with about three digits."""
    return compact(value, most=1)


def significant(value: float) -> str:
    """Three significant digits, or all digits before the point."""
    if not math.isfinite(value):
        return NONE
    text = f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"
    return text.replace("-", MINUS)


def percent(fraction: float) -> str:
    """A fraction of the pool as a percentage."""
    return f"{100 * fraction:g}%"


def listing(parts: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    words = list(parts)
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def plural(n: int, noun: str) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
