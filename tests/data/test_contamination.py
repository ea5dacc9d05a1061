"""Overlaps worked by hand, against sets compared one by one, and planted in real benchmarks."""

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from harness.data import contamination
from harness.data.contamination import EXCERPT, POOL, QUERY, SAME, SHARED, describe

WORDS = "amber birch cedar delta ember frost grove heron".split()


def overlaps(pool, tasks, query=None, **settings):
    """All pairs of sets, as a run compares them."""
    others = tasks if query is None else {**tasks, QUERY: query}
    findings = contamination.overlaps(POOL, pool, others, **settings)
    if query is not None:
        findings += contamination.overlaps(QUERY, query, tasks, **settings)
    return findings


def found(pool, items, **settings):
    """(row, item, rule, share) of texts numbered from 0."""
    rows = [(f"p{i}", text) for i, text in enumerate(pool)]
    tasks = {"task": [(f"t{i}", text) for i, text in enumerate(items)]}
    return [(f.id, f.item, f.rule, f.share) for f in overlaps(rows, tasks, **settings)]


def numbered(first, count):
    return " ".join(f"w{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(first, first + count))


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("What is x = 3?", "what is\n  X=3"),
        ("Find $\\frac{1}{2}$ of $1,000$.", "Find \\dfrac 1 2 of \\$1{,}000"),
        ("Janet\u2019s ducks -- all of them", "janets ducks, all of them!"),
        ("A 9-kilometer walk (in hours)", "A $9$ kilometer walk, in hours"),
        ("**Note:** half-price tickets", "Note: half price tickets?!"),
        ("\\left( x,\\; y \\right) \\quad \\text{ and } z", "$(x, y)$ and \\mathrm{~z}"),
        ("5\u20133 \\% of \uff21\uff22\uff23", "5-3% of abc"),
        ("x\u00b2 + 2\u00bd", "x^{2} + 2 1/2"),
        ("10\u2082 of 2\u207f", "$10_2$ of $2^{n}$"),
        ("STRASSE of \ufb01ve km", "stra\u00dfe of five km"),
        (".5 of 7", "0.5 of 7."),
        ("An apple\u2011tree\u200b, a soft\u00adhyphen", "an apple tree, a softhyphen"),
        ("How many in 2019?!!", "How many? In 2019!"),
        ("\u8bf7\u95ee\uff08\u516c\u91cc\uff09\uff1f", "\u8bf7 \u95ee \u516c\u91cc"),
        ("\u0915\u093f\u0924\u0928\u0947 (\u0915\u093f\u092e\u0940) \u0939\u0948\u0964",
         "\u0915\u093f\u0924\u0928\u0947 \u0915\u093f\u092e\u0940 \u0939\u0948?"),
        ("\u0421\u041a\u041e\u041b\u042c\u041a\u041e \u0451\u043b\u043e\u043a?",
         "\u0441\u043a\u043e\u043b\u044c\u043a\u043e \u0451\u043b\u043e\u043a"),
    ],
)  # fmt: skip
def test_the_same_question_in_another_dress(one, two):
    assert found([one], [two]) == [("p0", "t0", SAME, 1.0)]


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("x = 3", "x = 5"),
        ("x = 3", "x = -3"),
        ("x = 3", "x = \u22123"),
        ("x + 1", "x - 1"),
        ("1 2", "12"),
        ("1.5", "15"),
        ("1/2", "12"),
        ("2^{n+1}", "2^n+1"),
        ("3(x+1)", "3x+1"),
        ("f'(2)", "f(2)"),
        ("5! of them", "5 of them"),
        ("(n-1)!/2", "(n-1)/2"),
        ("x\u00b2", "x2"),
        ("2\u207f", "2n"),
        ("10\u2082", "102"),
        ("2\u00bd", "21/2"),
        ("5%", "5"),
        ("\u0915\u093f", "\u0915\u0940"),
    ],
)
def test_numbers_and_operators_tell_questions_apart(one, two):
    assert found([one], [two]) == []


@pytest.mark.parametrize("text", ["", " \n", "$$ \\, ?!", "-()*"])
def test_a_text_without_words_overlaps_nothing(text):
    assert found([text, "one"], [text, "two"]) == []


def test_share_by_hand():
    """Trigrams: 4 of the first, 5 of the second; both have "two ox egg" and "ox egg hat"."""
    one, two = "red two ox egg hat cup", "two ox egg hat! sky den fog"
    assert found([one], [two], n=3) == [("p0", "t0", SHARED, 0.5)]
    assert found([one], [two], n=3, share=0.5) == [("p0", "t0", SHARED, 0.5)]
    assert found([one], [two], n=3, share=0.51) == []


def test_an_n_gram_that_repeats_in_a_text_counts_once():
    """Bigrams of the first: "ox egg", "egg ox"; of the second: "ox egg", "egg hat", "hat cup"."""
    assert found(["ox egg ox egg ox"], ["ox egg hat cup"], n=2) == [("p0", "t0", SHARED, 0.5)]


def test_defaults_find_43_words_of_which_19_in_a_row_are_left():
    """31 13-grams; 19 words have 7 of them, 18 have 6: 7/31 = 0.23 counts, 6/31 = 0.19 does not."""
    whole = numbered(0, 43)
    assert found([numbered(100, 24) + " " + numbered(24, 19)], [whole]) == [
        ("p0", "t0", SHARED, 7 / 31)
    ]
    assert found([numbered(100, 25) + " " + numbered(25, 18)], [whole]) == []


def test_operators_are_no_words_and_numbers_are():
    """Trigrams of the first: "x 2 y", "2 y 4"; of the second: "x 2 y", "2 y 5"."""
    assert found(["x^2 - y = 4"], ["x + 2(y) = 5"], n=3) == [("p0", "t0", SHARED, 0.5)]


def test_texts_shorter_than_n_count_only_when_they_are_the_same():
    assert found(["two ox"], ["red two ox egg"], n=3) == []
    assert found([numbered(0, 12)], [numbered(0, 30)]) == []
    assert found([numbered(0, 13)], [numbered(0, 30)]) == [("p0", "t0", SHARED, 1.0)]
    assert found([numbered(0, 12)], [numbered(0, 12).upper()]) == [("p0", "t0", SAME, 1.0)]


def test_a_script_without_spaces_has_a_word_per_character():
    """Seven characters and nine, five trigrams and seven; the four trigrams of six are shared."""
    one, two = (
        "\u5c0f\u660e\u6709\u4e09\u4e2a\u82f9\u679c",
        "\u5c0f\u7ea2\u548c\u660e\u6709\u4e09\u4e2a\u82f9\u679c",
    )
    assert found([one], [two], n=3) == [("p0", "t0", SHARED, 4 / 5)]


def test_invisible_characters_split_no_words():
    marked = " ".join(f"{word[:1]}\u200b{word[1:]}" for word in numbered(0, 14).split())
    assert found([marked + " red"], [numbered(0, 14) + " blue"]) == [("p0", "t0", SHARED, 2 / 3)]


def test_an_instruction_before_every_question_is_no_overlap():
    instruction = numbered(300, 30)

    def asked(first, count):
        return [f"{instruction} {numbered(first + 20 * i, 15)}" for i in range(count)]

    stock = contamination.STOCK
    assert found(asked(0, stock + 1), asked(330, stock + 1)) == []
    assert len(found(asked(0, stock + 1), asked(330, stock))) == (stock + 1) * stock


def test_an_item_that_the_pool_holds_in_many_variants_is_found():
    variants = [f"{numbered(0, 30)} and {i}" for i in range(30)]
    assert len(found(variants, [numbered(0, 30)])) == 30


def test_copies_of_a_question_make_no_phrase_stock():
    text = numbered(0, 30)
    rows = [f"{text} and 1"] * 30
    items = [f"{text} and 2"] * 30
    assert len(found(rows, items)) == 900


def random_texts(rng, count, words=WORDS):
    texts = [" ".join(rng.choice(words, rng.integers(0, 12))) for _ in range(count)]
    return texts + [texts[i] for i in rng.integers(0, count, 5)]


def compared_one_by_one(pool, items, n, share, stock):
    """The definition, read off: every row against every item."""

    def grams(text):
        words = text.split()
        return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}

    counts = [Counter(g for text in set(side) for g in grams(text)) for side in (pool, items)]
    common = {g for g in counts[0] if min(counts[0][g], counts[1][g]) > stock}
    pairs = []
    for i, one in enumerate(pool):
        for j, two in enumerate(items):
            a, b = grams(one) - common, grams(two) - common
            if one and one.replace(" ", "") == two.replace(" ", ""):
                pairs.append((f"p{i}", f"t{j}", SAME, 1.0))
            elif a and b and len(a & b) / min(len(a), len(b)) >= share:
                pairs.append((f"p{i}", f"t{j}", SHARED, len(a & b) / min(len(a), len(b))))
    return sorted(pairs)


@pytest.mark.parametrize(("n", "words", "stock"), [(1, 8, 12), (2, 8, 2), (3, 4, 2), (5, 2, 2)])
@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 1.0])
def test_the_index_finds_what_sets_compared_one_by_one_do(n, words, stock, share, monkeypatch):
    monkeypatch.setattr(contamination, "STOCK", stock)
    rng = np.random.default_rng(n)
    rules = Counter()
    dropped = False
    for _ in range(10):
        pool, items = (random_texts(rng, count, WORDS[:words]) for count in (30, 20))
        wanted = compared_one_by_one(pool, items, n, share, stock)
        assert sorted(found(pool, items, n=n, share=share)) == wanted
        rules.update(rule for _, _, rule, _ in wanted)
        dropped |= wanted != compared_one_by_one(pool, items, n, share, stock=1000)
    assert min(rules[SAME], rules[SHARED]) > 0
    assert dropped  # stock phrases were among them


def test_two_sets_overlap_alike_either_way_round():
    rng = np.random.default_rng(7)
    one, two = random_texts(rng, 40), random_texts(rng, 30)
    forth = found(one, two, n=3)
    back = found(two, one, n=3)
    turned = [("p" + item[1:], "t" + row[1:], rule, share) for row, item, rule, share in back]
    assert forth
    assert sorted(turned) == sorted(forth)


def test_the_order_of_rows_and_tasks_does_not_matter():
    rng = np.random.default_rng(8)
    sets = {name: list(enumerate(random_texts(rng, 30))) for name in ("pool", "query", "a", "b")}
    sets = {name: [(f"{name}{i}", text) for i, text in rows] for name, rows in sets.items()}
    tasks = {"a": sets["a"], "b": sets["b"]}
    wanted = overlaps(sets["pool"], tasks, sets["query"], n=3)
    for rows in sets.values():
        rng.shuffle(rows)
    assert overlaps(sets["pool"], {"b": sets["b"], "a": sets["a"]}, sets["query"], n=3) == wanted
    assert {(f.side, f.other) for f in wanted} == {
        ("pool", "a"), ("pool", "b"), ("pool", "query"), ("query", "a"), ("query", "b"),
    }  # fmt: skip


def test_a_third_set_changes_nothing_between_two():
    rng = np.random.default_rng(9)
    pool, query, a, b = ([(str(i), t) for i, t in enumerate(random_texts(rng, 30))] for _ in "abcd")
    alone = overlaps(pool, {"a": a}, n=3)
    among = overlaps(pool, {"a": a, "b": b}, query, n=3)
    assert [f for f in among if (f.side, f.other) == ("pool", "a")] == alone


POOL_ROWS = [("r1", "What is 2 + 2?"), ("r2", "What is 3 + 3?"), ("r3", numbered(0, 20))]
QUERIES = [("q1", "what is $3+3$"), ("q2", "What is 4 + 4?")]
TASKS = {
    "sums": [("s1", "What is 4+4"), ("s2", "What is 2+2!")],
    "words": [("w1", numbered(0, 15) + " and " + "so on " * 40)],
}


def test_every_two_sets_but_two_tasks_are_compared():
    findings = overlaps(POOL_ROWS, {**TASKS, "more": [("m1", "What is 2+2")]}, QUERIES)
    assert [(f.side, f.id, f.other, f.item, f.rule) for f in findings] == [
        ("pool", "r1", "more", "m1", SAME),
        ("pool", "r2", QUERY, "q1", SAME),
        ("pool", "r1", "sums", "s2", SAME),
        ("pool", "r3", "words", "w1", SHARED),
        ("query", "q2", "sums", "s1", SAME),
    ]


def test_findings_in_words():
    findings = overlaps(POOL_ROWS, TASKS, QUERIES)
    assert findings[2].share == 3 / 8  # 20 words have 8 13-grams, and 15 of them have 3
    assert len(findings[2].item_text) == EXCERPT + len(" ...")
    assert describe(findings).split("\n") == [
        "data sets overlap; expected no question in two of them",
        "  1 pool row and 1 query overlap: 1 pair (1 by same question)",
        "  1 pool row and 1 item of 'sums' overlap: 1 pair (1 by same question)",
        "  1 pool row and 1 item of 'words' overlap: 1 pair (1 by shared n-gram)",
        "  1 query and 1 item of 'sums' overlap: 1 pair (1 by same question)",
        "  pool row 'r2' and query 'q1': same question",
        "    What is 3 + 3?",
        "    what is $3+3$",
        "  pool row 'r1' and item 's2' of 'sums': same question",
        "    What is 2 + 2?",
        "    What is 2+2!",
        "  pool row 'r3' and item 'w1' of 'words': shared n-gram, 38% of the shorter",
        f"    {findings[2].text}",
        f"    {findings[2].item_text}",
        "  query 'q2' and item 's1' of 'sums': same question",
        "    What is 4 + 4?",
        "    What is 4+4",
        '[pool] and [query] overlap = "drop" leaves these rows out; overlap = "keep" keeps them',
    ]


def test_many_findings_are_counted_and_ten_are_shown():
    rows = [(f"r{i:02d}", numbered(0, 20 + i % 2)) for i in range(14)]
    lines = describe(overlaps(rows, {"t": [("a", numbered(0, 20)), ("b", "none")]})).split("\n")
    assert lines[1] == (
        "  14 pool rows and 1 item of 't' overlap: "
        "14 pairs (7 by same question, 7 by shared n-gram)"
    )
    shown = [line for line in lines if line.startswith("  pool row")]
    assert (len(shown), lines[-2]) == (10, "  ... and 4 more")
    assert [line.rsplit(": ", 1)[1] for line in shown[6:8]] == [
        "same question",
        "shared n-gram, 100% of the shorter",
    ]


def test_nothing_found_in_words():
    assert describe([]) == "no question occurs in two data sets"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n": 0}, "n is 0; expected at least 1 word"),
        ({"share": 0.0}, "share is 0.0; expected more than 0"),
        ({"share": 1.1}, "share is 1.1; expected more than 0 and at most 1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        overlaps([], {}, **settings)


def real(name):
    folder = os.environ.get("COTSIEVE_REAL_DATA")
    if folder is None:
        pytest.skip("COTSIEVE_REAL_DATA is not set; it names a folder with published benchmarks")
    lines = (Path(folder) / f"{name}.jsonl").read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line) for line in lines if line.strip()]
    return [(f"{name}-{i}", row.get("question") or row["problem"]) for i, row in enumerate(rows, 1)]


# Read by eye: a train and a plane at other speeds; stamps of another child.
BACKGROUND = {
    ("gsm8k_train-1315", "gsm8k_test-603", SHARED),
    ("gsm8k_train-5163", "gsm8k_test-603", SHARED),
    ("gsm8k_train-21", "gsm8k_test-633", SHARED),
}


def test_three_test_items_planted_in_gsm8k_are_found_and_no_others():
    train, test = real("gsm8k_train"), real("gsm8k_test")
    ducks, _, robbery = (text for _, text in test[:3])
    _, _, rest = test[4][1].partition(". ")
    train[100] = ("verbatim", ducks)
    train[2000] = ("dressed", "  " + robbery.upper().replace(".", " ;").replace(" ", " \n") + "!!")
    train.append(("rewritten", f"Somebody keeps hens and gives each of them three cups. {rest}"))
    hits = {(f.id, f.item, f.rule) for f in overlaps(train, {"gsm8k": test})}
    assert hits == BACKGROUND | {
        ("verbatim", "gsm8k_test-1", SAME),
        ("dressed", "gsm8k_test-3", SAME),
        ("rewritten", "gsm8k_test-5", SHARED),
    }


def test_published_benchmarks_do_not_overlap_each_other():
    names = ("gsm8k_train", "math500", "amc23", "aime24", "olympiadbench", "minerva")
    sets = {name: real(name) for name in names}
    for name in names:
        others = {other: rows for other, rows in sets.items() if other > name}
        assert overlaps(sets[name], others) == []
