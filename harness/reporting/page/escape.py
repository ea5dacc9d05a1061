"""How foreign text gets into a page without becoming part of it.

Markup is escaped by Jinja; what this adds is data for the page's own script, characters that
nobody sees but that reorder a line, and the hashes that let no other script or style run.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import Any

from markupsafe import Markup

UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)
"""Controls, zero-width characters, direction marks and overrides, halves of surrogate pairs."""
IN_SCRIPT = {
    "<": "\\u003c",
    ">": "\\u003e",
    "&": "\\u0026",
    "\u2028": "\\u2028",
    "\u2029": "\\u2029",
}


def visible(text: str) -> str:
    """Text with every unseen character written as its code point, so that it cannot mislead."""
    plain = text.replace("\r\n", "\n")
    return UNSEEN.sub(lambda found: f"[U+{ord(found[0]):04X}]", plain)


def finalize(value: Any) -> Any:
    """What Jinja does to every value before it escapes it; the template's own markup passes."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def embedded(value: Any) -> Markup:
    """JSON for a `<script type="application/json">`; no text in it can end the element."""
    text = json.dumps(_visible(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup("".join(IN_SCRIPT.get(character, character) for character in text))


def _visible(value: Any) -> Any:
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, dict):
        return {visible(key): _visible(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_visible(entry) for entry in value]
    return value


def policy_hash(text: str) -> str:
    """The source by which a Content-Security-Policy lets exactly this script or style in."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
