"""What figures show, looked at as matplotlib objects."""

import itertools

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.text import Text

from harness.reporting import figures, report, tables
from harness.reporting.figures.scores import _round, _tick
from harness.reporting.figures.style import context, row_label
from harness.reporting.results import load
from harness.stats import summarise

FEW = ("base", "random", "influence/combined", "full")
MANY = [*FEW, "length", "difficulty", "perplexity/middle", "influence/correct", "oracle"]


@pytest.fixture
def drawn(make_results):
    def draw(name, **settings):
        (results,) = load(make_results(**settings))
        table = tables.main(results, summarise(results.outcomes, seeds=results.seeds))
        with context():
            figure = figures.FIGURES[name](results, table)
            if figure is not None:
                figure.draw_without_rendering()
        return figure, table

    return draw


def texts(figure):
    """Every text that a reader sees; ticks beyond the limits of an axis are not drawn."""
    unseen = set()
    for axis in figure.axes:
        for side in (axis.xaxis, axis.yaxis):
            low, high = sorted(side.get_view_interval())
            outside = [t for t in side.get_major_ticks() if not low <= t.get_loc() <= high]
            unseen |= {label for tick in outside for label in (tick.label1, tick.label2)}
    found = figure.findobj(lambda a: isinstance(a, Text) and a.get_visible() and a.get_text())
    return [t for t in found if t not in unseen and t.get_window_extent().width > 0]


def side_by_side(one, other):
    """Whether two slanted words, which end at their anchors, are at least a line apart."""
    (ax, ay), (bx, by) = (t.get_transform().transform(t.get_position()) for t in (one, other))
    line = one.get_fontsize() * one.get_figure().dpi / 72
    return abs((ax - bx) - (ay - by)) / np.sqrt(2) >= line


@pytest.mark.parametrize("name", list(figures.FIGURES))
@pytest.mark.parametrize(("fractions", "rows"), [((0.5,), FEW), ((0.25, 0.5, 0.75), MANY)])
def test_words_are_legible_and_do_not_overlap(drawn, name, fractions, rows):
    figure, _ = drawn(name, fractions=fractions, rows=rows)
    words = texts(figure)
    assert min(text.get_fontsize() for text in words) >= 8
    for one, other in itertools.combinations(words, 2):
        if one.get_rotation() == other.get_rotation() == 45:
            assert side_by_side(one, other), (one.get_text(), other.get_text())
            continue
        a, b = one.get_window_extent(), other.get_window_extent()
        width = min(a.x1, b.x1) - max(a.x0, b.x0)
        height = min(a.y1, b.y1) - max(a.y0, b.y0)
        assert width < 1.5 or height < 1.5, (one.get_text(), other.get_text())
    for text in words:
        extent = text.get_window_extent()
        assert extent.x0 >= -1
        assert extent.x1 <= figure.bbox.x1 + 1


def test_forest_draws_the_numbers_of_the_table(drawn):
    figure, table = drawn("forest")
    marks = [line for line in figure.axes[0].lines if line.get_marker() not in ("None", "")]
    shown = sorted(round(float(line.get_xdata()[0]), 6) for line in marks)
    primary = table[(table["task"] == "mean") & table["diff"].notna()]
    assert shown == sorted(round(100 * value, 6) for value in primary["diff"])


def test_rows_stand_in_order_of_accuracy_with_controls_below(drawn):
    figure, table = drawn("accuracy")
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    means = table[table["task"] == "mean"].set_index("row")["mean"]
    assert sorted(names[:3]) == ["influence/combined", "length", "random"]
    assert list(means[names[:3]]) == sorted(means[names[:3]], reverse=True)
    assert set(names[3:]) == {"base", "full", "oracle"}


def test_failed_row_is_shown_as_failed(drawn):
    error = {"stage": "train", "message": "nan"}
    figure, _ = drawn("forest", failures={f"length@0.5#{seed}": error for seed in range(3)})
    assert "failed" in [text.get_text() for text in texts(figure)]


def test_scatter_marks_every_example_once(drawn):
    figure, _ = drawn("influence-scatter")
    (axis,) = figure.axes
    assert not axis.findobj(PathCollection)
    points = [line for line in axis.lines if line.get_linestyle() == "None"]
    kept = sum(len(line.get_xdata()) for line in points if line.get_markerfacecolor() != "none")
    assert sum(len(line.get_xdata()) for line in points) == 120
    assert kept == 60


def test_figure_that_no_longer_applies_is_removed(make_results, tmp_path):
    folder = make_results(rows=("random", "length"), seeds=(0, 1), items=10)
    stale = tmp_path / "out" / "influence-scatter.svg"
    stale.parent.mkdir()
    stale.write_text("old")
    report.build(folder, tmp_path / "out")
    assert not stale.exists()
    assert (tmp_path / "out" / "forest.svg").is_file()


def test_ticks():
    assert [_round(v) for v in (0.0031, 0.9, 7.0)] == pytest.approx([0.002, 0.5, 5.0])
    assert (_tick(-2e-5), _tick(0.05), _tick(0)) == ("\N{MINUS SIGN}2e\N{MINUS SIGN}5", "0.05", "0")


def test_long_names_are_cut():
    assert row_label("a" * 60) == "a" * 33 + "\N{HORIZONTAL ELLIPSIS}"
