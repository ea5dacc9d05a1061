"""Draws docs/flow.svg, the picture in README.md: `python docs/flow.py`.

White on filled boxes and mid-grey elsewhere can be read on a light and on a dark page.
"""

from itertools import pairwise
from pathlib import Path
from xml.sax.saxutils import escape

FILE = Path(__file__).with_suffix(".svg")
WIDTH, HEIGHT = 840, 262
BOX_WIDTH, BOX_HEIGHT = 132, 48
LEFT = (0, 236, 472, 708)
UPPER, LOWER = 86, 206
BLUE, GREEN, GREY, WHITE = "#2f6fb5", "#2e7d4f", "#768390", "#ffffff"

INPUTS = (
    ("data set,", "tokenizer, template"),
    ("query set, base and", "fine-tuned model"),
    ("share of the pool,", "selection seed"),
    ("base model, recipe,", "training seed"),
)
UPPER_BOXES = (
    ("pool", "tokenised once"),
    ("scores", "one per example"),
    ("subset", "example ids"),
    ("checkpoint", "fine-tuned weights"),
)
LOWER_BOXES = (
    None,
    ("report", "tables, figures, page"),
    ("statistics", "paired, corrected"),
    ("samples", "graded answers"),
)
UPPER_STEPS = ("selector", "best first", "fine-tuner")
LOWER_STEPS = (None, "from records", "seeds by items")
NOTE = ("All of it is kept under the", "hash of its inputs: stop, run", "again, and it continues.")


def text(x: float, y: float, words: str, fill: str = GREY, style: str = 'font-size="12"') -> str:
    """One line, centred at x."""
    return f'<text x="{x:g}" y="{y:g}" fill="{fill}" {style}>{escape(words)}</text>'


def arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    """A straight arrow from the first point to the second."""
    return f'<path d="M{x1:g} {y1:g}L{x2:g} {y2:g}" stroke="{GREY}" marker-end="url(#head)"/>'


def box(left: float, top: float, fill: str, name: str, content: str) -> list[str]:
    """A filled box with its name and what it holds."""
    centre = left + BOX_WIDTH / 2
    return [
        f'<rect x="{left}" y="{top}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6" '
        f'fill="{fill}"/>',
        text(centre, top + 21, name, WHITE, 'font-size="14" font-weight="bold"'),
        text(centre, top + 38, content, WHITE, 'font-size="11"'),
    ]


def svg() -> str:
    """The picture."""
    shapes: list[str] = []
    for left, lines, names in zip(LEFT, INPUTS, UPPER_BOXES, strict=True):
        centre = left + BOX_WIDTH / 2
        shapes += [text(centre, 16, lines[0]), text(centre, 32, lines[1])]
        shapes += [arrow(centre, 42, centre, UPPER - 6), *box(left, UPPER, BLUE, *names)]
    for left, names in zip(LEFT, LOWER_BOXES, strict=True):
        shapes += box(left, LOWER, GREEN, *names) if names else []
    gaps = [(left + BOX_WIDTH + 6, right - 6) for left, right in pairwise(LEFT)]
    for (start, end), upper, lower in zip(gaps, UPPER_STEPS, LOWER_STEPS, strict=True):
        y = UPPER + BOX_HEIGHT / 2
        shapes += [arrow(start, y, end, y), text((start + end) / 2, y - 8, upper)]
        if lower:
            y = LOWER + BOX_HEIGHT / 2
            shapes += [arrow(end, y, start, y), text((start + end) / 2, y - 8, lower)]
    centre = LEFT[-1] + BOX_WIDTH / 2
    shapes.append(arrow(centre, UPPER + BOX_HEIGHT + 4, centre, LOWER - 6))
    shapes.append(text(centre - 66, (UPPER + BOX_HEIGHT + LOWER) / 2 + 4, "lm-eval on vLLM"))
    shapes += [text(86, LOWER + 12 + 16 * row, line) for row, line in enumerate(NOTE)]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'height="{HEIGHT}" role="img" text-anchor="middle" stroke-width="1.5" '
        'font-family="-apple-system, Segoe UI, Helvetica, Arial, sans-serif">\n'
        "<title>Pool, scores, subset, checkpoint, samples, statistics, report</title>\n"
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        f'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="{GREY}"/></marker></defs>\n'
    )
    return head + "\n".join(shapes) + "\n</svg>\n"


if __name__ == "__main__":
    FILE.write_text(svg(), encoding="utf-8")
