"""Headlines say what the verdicts say."""

import json
import math
from types import SimpleNamespace

import pandas as pd
import pytest

from harness.reporting import numbers, sentences, tables
from harness.reporting.results import load
from harness.stats import summarise


def results(*fractions):
    return SimpleNamespace(reference="random", fractions=fractions or (0.5,), cells=(), again=())


def lines(*entries, fraction=0.5):
    """(row, diff, low, high, p_holm, verdict) in points."""
    frame = pd.DataFrame(entries, columns=["row", "diff", "diff_low", "diff_high", "p_holm", "v"])
    frame[["diff", "diff_low", "diff_high"]] /= 100
    return frame.rename(columns={"v": "verdict"}).assign(task="mean", fraction=fraction)


WIN = ("influence/combined", 4.1, 1.2, 7.0, 0.02, "better")
TIE = ("length", 0.5, -1.0, 2.0, 0.6, "tie")
LOSS = ("perplexity/top", -3.0, -5.0, -1.0, 0.0004, "worse")
FAILED = ("embedding", math.nan, math.nan, math.nan, math.nan, "failed")


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        (
            [WIN, TIE],
            "influence/combined beats random by 4.1 points [1.2, 7.0], Holm p = 0.020; "
            "the other ties.",
        ),
        (
            [TIE, (*TIE[:1], -0.9, -2.0, 0.2, 0.5, "tie")],
            "No selector differs detectably from random (largest difference: length, "
            "\N{MINUS SIGN}0.9 points [\N{MINUS SIGN}2.0, 0.2], Holm p = 0.50).",
        ),
        (
            [TIE, LOSS, TIE],
            "perplexity/top falls short of random by 3.0 points [1.0, 5.0], Holm p < 0.001; "
            "the other 2 tie.",
        ),
        (
            [WIN, ("embedding", 2.0, 0.5, 3.5, 0.04, "better"), LOSS],
            "influence/combined (+4.1 points [1.2, 7.0]) and embedding (+2.0 points [0.5, 3.5]) "
            "beat random; perplexity/top falls short of it by 3.0 points [1.0, 5.0], "
            "Holm p < 0.001.",
        ),
        (
            [WIN, WIN, WIN, TIE],
            "3 of 4 selectors beat random, by up to 4.1 points [1.2, 7.0] (influence/combined); "
            "the other ties.",
        ),
        (
            [WIN, FAILED],
            "influence/combined beats random by 4.1 points [1.2, 7.0], Holm p = 0.020; "
            "1 selector could not be judged.",
        ),
        ([FAILED], "No selector could be compared with random."),
    ],
)
def test_headline(entries, said):
    assert sentences.headline(results(), lines(*entries)) == [said]


def test_headline_has_a_sentence_per_fraction_and_leaves_controls_out():
    table = pd.concat(
        [
            lines(WIN, ("oracle", 9.0, 8.0, 10.0, 0.0, "better"), fraction=0.25),
            lines(TIE, fraction=0.5),
        ]
    )
    said = sentences.headline(results(0.25, 0.5), table)
    assert said[0].startswith("Keeping 25%: influence/combined beats random by 4.1 points")
    assert said[1].startswith("Keeping 50%: no selector differs detectably")
    assert "oracle" not in " ".join(said)


def test_unfinished_experiment_says_so(make_results):
    folder = make_results(seeds=(0,))
    text = (folder / "protocol.toml").read_text().replace('"seeds" = [0]', '"seeds" = [0, 1, 2]')
    (folder / "protocol.toml").write_text(text)
    (found,) = load(folder)
    said = sentences.headline(found, lines(WIN))
    assert said[-1] == "Provisional: 10 of 16 cells have not run."
    assert ("length@0.5", "not run, seeds 1 and 2") in sentences.failures(found)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.1234, "12.3"), (-0.04, "\N{MINUS SIGN}4.0"), (-0.0001, "0.0"), (math.nan, "\N{EN DASH}")],
)
def test_points(value, shown):
    assert numbers.points(value) == shown


@pytest.mark.parametrize(
    ("p", "shown"),
    [(0.0004, "<0.001"), (0.0123, "0.012"), (0.5, "0.50"), (math.nan, "\N{EN DASH}")],
)
def test_p_value(p, shown):
    assert numbers.p_value(p) == shown


def test_stability_of_a_choice_is_told_where_it_is_known(make_results):
    folder = make_results(fractions=(0.25, 0.5))
    (found,) = load(folder)
    assert not [note for note in sentences.query_notes(found) if "Stability" in note]
    stability = {
        "jaccard": 0.812, "low": 0.7549, "high": 0.861, "random": 0.3333,
        "replicates": 1000, "queries": {"C": 64, "I": 23},
    }  # fmt: skip
    path = folder / "records.jsonl"
    lines = []
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        if entry["row"] == "influence/combined" and entry["fraction"] == 0.5:
            entry["facts"] = {"n_C": 270, "n_I": 23, "stability": stability}
        lines.append(json.dumps(entry) + "\n")
    path.write_text("".join(lines))
    (found,) = load(folder)
    [note] = [note for note in sentences.query_notes(found) if "Stability" in note]
    assert note == (
        "Stability of the chosen set under a bootstrap over queries, as Jaccard overlap with the "
        "choice by all of them [95% interval]: influence/combined at 50% 0.81 [0.75, 0.86] (random "
        "sets 0.33; 1000 draws of the queries behind its ranks: 64 of 270 in C and 23 of 23 in I)."
    )


def test_the_rule_for_several_decodes_is_told(make_results):
    folder = make_results()
    facts = json.loads((folder / "facts.json").read_text())
    facts["arms"]["main"] |= {"query_decodes": 5, "query_rule": "majority"}
    (folder / "facts.json").write_text(json.dumps(facts))
    (found,) = load(folder)
    [note] = [note for note in sentences.query_notes(found) if "|C| = 64" in note]
    assert note.endswith("made wrong. A query is right if a majority of its 5 decodes are.")


def said_of(folder):
    (found,) = load(folder)
    table = tables.main(found, summarise(found.outcomes, seeds=found.seeds))
    return sentences.notes(found, table)


def test_old_samples_do_not_say_whether_they_were_cut(make_results):
    said = said_of(make_results(rows=("base", "random"), items=10))
    assert "Whether the token limit cut responses was not recorded." in said


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        ({}, "None of 520 responses was cut at the token limit."),
        (
            {"base": 1 / 40},  # below 5% of its 40 responses
            "1 of 520 responses (0.2%) was cut at the token limit and graded as it stands.",
        ),
        (
            {"random": 0.05, "length": 0.075},
            "15 of 520 responses (2.9%) were cut at the token limit and graded as they stand. "
            "More than 5% are cut in length at 50% (7.5%).",
        ),
        (
            {"base": 0.1, "random": 1.0, "full": 0.5},
            "184 of 520 responses (35.4%) were cut at the token limit and graded as they stand. "
            "More than 5% are cut in 3 lines of the table, most in random at 50% (100.0%) and full "
            "(50.0%).",
        ),
    ],
)
def test_cut_responses_are_counted_and_the_rows_with_most_named(make_results, shares, said):
    # base 1 cell, four rows with 3; 2 tasks of 20 items.
    rows = ("base", "random", "length", "oracle", "full")
    assert said in said_of(make_results(rows=rows, items=20, truncated=shares))


def test_truncation_recorded_in_part_says_so(make_results):
    folder = make_results(rows=("base", "random"), items=10, truncated={"base": 0.05})
    for path in sorted((folder / "samples").iterdir())[2:]:
        pd.read_parquet(path).drop(columns="truncated").to_parquet(path, index=False)
    assert (
        "1 of 40 responses (2.5%) was cut at the token limit and graded as it stands; "
        "of 40 more this was not recorded."
    ) in said_of(folder)


def test_a_small_share_is_not_told_as_none():
    outcomes = pd.DataFrame({"truncated": pd.array([True] + [False] * 9999, dtype="boolean")})
    table = pd.DataFrame({"task": ["mean"], "truncated": [0.0001]})
    [said] = sentences.truncation_notes(SimpleNamespace(outcomes=outcomes), table)
    assert said.startswith("1 of 10,000 responses (<0.1%) was cut")


def test_several_decodes_are_explained(make_results):
    said = said_of(make_results(rows=("base", "random"), items=10, decodes=4))
    [note] = [note for note in said if "pass@" in note]
    assert "mean over the 4 decodes" in note
    assert "pass@4: share of items with a right answer among their 4" in note
    assert note.endswith("no verdict rests on them.")
    assert any(
        note.startswith("Data: 3 training seeds, 10 items per task, 4 decodes per item "
                        "(temperature 0.6)")
        for note in said
    )  # fmt: skip


def test_how_each_task_is_asked_and_graded_is_told_where_it_is_noted(make_results):
    folder = make_results()
    (found,) = load(folder)
    assert sentences.task_notes(found) == []
    facts = json.loads((folder / "facts.json").read_text())
    facts["tasks"] = {
        "chain_far": {
            "items": 1319, "max_tokens": 2048, "grader": "number 1", "version": "2",
            "source": "openai/gsm8k@e53f048",
        },
        "elsewhere": {},
    }  # fmt: skip
    (folder / "facts.json").write_text(json.dumps(facts))
    (found,) = load(folder)
    assert sentences.task_notes(found) == [
        "chain_far: 1,319 items of openai/gsm8k@e53f048, at most 2,048 tokens per response, "
        "grader number 1, prompt version 2."
    ]


@pytest.mark.parametrize(
    ("overlap", "said"),
    [
        ({}, []),
        ({"pool": {"action": "refuse", "rows": 0, "pairs": {}}, "first": []}, []),
        (
            {"pool": {"action": "drop", "rows": 1, "pairs": {"gsm8k": 2}}, "first": []},
            [
                "Overlap: 1 pool row overlaps with gsm8k and was dropped before anything used the "
                "data, as the experiment says."
            ],
        ),
        (
            {
                "pool": {"action": "refuse", "rows": 0, "pairs": {}},
                "query": {"action": "keep", "rows": 5, "pairs": {"aime24": 4, "gsm8k": 1}},
            },
            [
                "Overlap: 5 queries overlap with aime24 and gsm8k and were kept, as the experiment "
                "says."
            ],
        ),
    ],
)
def test_overlaps_that_were_kept_or_dropped_are_told(make_results, overlap, said):
    folder = make_results()
    facts = json.loads((folder / "facts.json").read_text())
    facts["arms"]["main"]["overlap"] = overlap
    (folder / "facts.json").write_text(json.dumps(facts))
    (found,) = load(folder)
    assert sentences.overlap_notes(found) == said


def test_a_row_like_the_reference_is_an_a_a_control(make_results):
    rows = ("base", "random", "random/again", "random/matched", "length", "oracle")
    folder = make_results(rows=rows, fractions=(0.25, 0.5), items=20)
    path = folder / "protocol.toml"
    text = path.read_text()
    for row, params in (("random/matched", '"match" = "length"'), ("length", '"k" = 2')):
        before, after = text.split(f'"row" = "{row}"')
        text = f'{before}"row" = "{row}"{after.replace("{  }", "{ " + params + " }", 1)}'
    path.write_text(text)
    (found,) = load(folder)
    assert found.again == ("random/again",)
    table = tables.main(found, summarise(found.outcomes, seeds=found.seeds))
    [low, high] = table[(table["task"] == "mean") & (table["row"] == "random/again")].itertuples()
    said = sentences.controls(found, table).split("A/A: ")[1]
    start = "random/again has the selector and the parameters of random"
    assert said.startswith(f"{start}, so that only chance sets them apart: random/again at 25% ")
    for line, share in ((low, "25%"), (high, "50%")):
        ends = sorted(math.copysign(100, line.diff) * v for v in (line.diff_low, line.diff_high))
        interval = ", ".join(f"{v:.1f}".replace("-", "\N{MINUS SIGN}") for v in ends)
        side = "above" if line.diff > 0 else "below"
        size = f"{abs(100 * line.diff):.1f} [{interval}]"
        assert f"random/again at {share} {size} {side} (a tie, as it should be)" in said
    # It is no selector of the headline, and stays in the family of tests.
    assert "random/again" not in set(sentences.judged(found, table, 0.5)["row"])
    assert {"random/matched", "length"} == set(sentences.judged(found, table, 0.5)["row"])
    assert (
        table.loc[(table["task"] == "mean") & (table["row"] == "random/again"), "p_holm"]
        .notna()
        .all()
    )
    assert tables.sheets(found, table)["main"].remarks == [sentences.controls(found, table)]


def test_an_a_a_control_that_differs_is_told_as_chance(make_results):
    (found,) = load(make_results(rows=("random", "random/again"), items=20))
    told = sentences.controls(found, lines(("random/again", -3.0, -5.0, -1.0, 0.01, "worse")))
    assert told.endswith("random/again 3.0 [1.0, 5.0] below (worse, by chance).")


def test_rows_without_a_selector_are_no_a_a_controls(make_results):
    folder = make_results(rows=("base", "full", "random"), items=20)
    text = (folder / "protocol.toml").read_text()
    for name in ("base", "full"):
        text = text.replace(f', "selector" = "{name}"', "")
    text = text.replace('"reference" = "random"', '"reference" = "base"')
    (folder / "protocol.toml").write_text(text)
    (found,) = load(folder)
    assert found.reference == "base"
    assert found.again == ()


def test_listing():
    assert numbers.listing(["a"]) == "a"
    assert numbers.listing(["a", "b", "c"]) == "a, b and c"
