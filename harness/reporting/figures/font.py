"""DejaVu Sans cut down to what reports are written in, so that PDF files embed it quickly.

A PDF takes along the letters it uses. Finding them in the whole font (six thousand glyphs and their
ligatures in all scripts) took a fifth of the time of a report; in this one it takes a hundredth.
What it lacks comes from the whole font.
"""

from __future__ import annotations

import atexit
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

WHOLE, LEAN = "DejaVu Sans", "DejaVu Sans Lean"
LETTERS = (
    range(0x20, 0x180),  # Latin
    range(0x370, 0x400),  # Greek
    range(0x2010, 0x2040),  # dashes, quotation marks, ellipsis
    range(0x2190, 0x2194),  # arrows
    (0x2212, 0x2248, 0x2264, 0x2265),  # minus, about, at most, at least
)


@cache
def families() -> list[str]:
    """The lean font, made and announced to matplotlib once per process, then the whole one."""
    from matplotlib import font_manager

    folder = TemporaryDirectory(prefix="cotsieve-font-")
    atexit.register(folder.cleanup)
    path = Path(folder.name) / "lean.ttf"
    _write(Path(font_manager.findfont(WHOLE, directory=str(_shipped()))), path)
    font_manager.fontManager.addfont(path)
    return [LEAN, WHOLE]


def _shipped() -> Path:
    """Matplotlib's own fonts: what else a machine has must not change a figure."""
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def _write(whole: Path, lean: Path) -> None:
    """The same outlines, spacing and kerning under a family name of their own."""
    from fontTools import subset

    options = subset.Options(glyph_names=True, name_IDs=["*"], drop_tables=["FFTM"])
    with subset.load_font(str(whole), options) as font:
        cutter = subset.Subsetter(options)
        cutter.populate(unicodes=[code for part in LETTERS for code in part])
        cutter.subset(font)
        for entry in font["name"].names:
            if entry.nameID in (1, 4, 16):
                entry.string = LEAN
        font.save(lean)
