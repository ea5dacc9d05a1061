"""How numbers are written: points, intervals, p values, lists of words."""

from __future__ import annotations

import math
from collections.abc import Iterable

MEAN = "mean"


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
    if not math.isfinite(p):
        return NONE
    if p < 0.001:
        return "<0.001"
    return f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def seconds(value: float) -> str:
    """Seconds with about three digits."""
    if not math.isfinite(value):
        return NONE
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


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
