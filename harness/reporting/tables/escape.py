"""Text that Markdown and LaTeX show as it is, whatever a row is called or an error says."""

from __future__ import annotations

import re

from harness.reporting.numbers import MINUS, NONE

UP, DOWN, PLUS_MINUS = "\N{UPWARDS ARROW}", "\N{DOWNWARDS ARROW}", "\N{PLUS-MINUS SIGN}"
TEX_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
    MINUS: "$-$",
    NONE: "--",
    UP: r"$\uparrow$",
    DOWN: r"$\downarrow$",
    PLUS_MINUS: r"$\pm$",
    "\N{RIGHT SINGLE QUOTATION MARK}": "'",
}


def markdown_text(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>|~&#])", r"\\\1", " ".join(text.split()))


def tex_text(text: str) -> str:
    """Text that LaTeX prints as it is, on one line; what no default font has, as its code point."""
    return "".join(_tex_character(character) for character in " ".join(text.split()))


def _tex_character(character: str) -> str:
    if character in TEX_SPECIAL:
        return TEX_SPECIAL[character]
    return character if " " <= character <= "~" else f"U+{ord(character):04X}"
