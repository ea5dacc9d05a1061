"""Contamination: questions that occur in two data sets, found before anything is trained.

Two rules. *Same question*: equal except for case, white space, punctuation and LaTeX layout;
numbers and operators count, since "x = 3" and "x = -3" are two questions. *Shared n-gram*: a share
of the shorter question's word n-grams also occurs in the other one; this finds questions that were
partly reworded or got other numbers. A question of fewer words than n only counts when it is the
same, and one that was reworded throughout is found by neither rule.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

POOL, QUERY = "pool", "query"
SAME, SHARED = "same question", "shared n-gram"
WORDS = 13
"""Words of an n-gram, as in GPT-3's decontamination (2005.14165, appendix C)."""
SHARE = 0.2
"""Smallest share of the shorter question's n-grams that counts.

It lies in the gap that published benchmarks leave between each other (GSM8K, MATH-500, AMC,
AIME, OlympiadBench, Minerva): stock phrases such as "where m and n are relatively prime positive
integers" and scenes of one kind reach 0.10, one problem with other names and numbers starts at
0.30. A question of 43 words, GSM8K's median, is found while 19 of them in a row are left. Two parts
of one source leave no gap: AMC's way to ask for "m+n" alone is up to 0.32 of a short question.
"""
STOCK = 10
"""An n-gram in more different questions than this, in both sets, is a stock phrase: not counted.

GPT-3's number, where the training set alone decided. Here an item that the pool holds in many
variants must be found, and an instruction before every question of both sets must not.
"""
SHOWN, EXCERPT = 10, 90

Questions = Sequence[tuple[str, str]]
"""Ids and texts, the bare question: an instruction around it hides one of fewer than n words."""


@dataclass(frozen=True)
class Finding:
    """A row of the pool or of the query set (`side`) that overlaps an item of the set `other`.

    `other` is a task or `QUERY`; `rule` is `SAME` or `SHARED`; `share` is 1 for the same question.
    `text`, `item_text`: how the two begin.
    """

    side: str
    id: str
    other: str
    item: str
    rule: str
    share: float
    text: str
    item_text: str


def overlaps(
    side: str,
    rows: Questions,
    others: Mapping[str, Questions],
    *,
    n: int = WORDS,
    share: float = SHARE,
) -> list[Finding]:
    """Every overlap of the rows of one set with other sets by name.

    One finding per pair of row and item, ordered by sets, rule, falling share and ids, whatever the
    order of the input. The share of two questions is |A & B| / min(|A|, |B|), A and B their sets of
    word n-grams without stock phrases. What two sets share does not depend on a third.
    """
    if n < 1:
        raise ValueError(f"n is {n!r}; expected at least 1 word")
    if not 0 < share <= 1:
        raise ValueError(f"share is {share!r}; expected more than 0 and at most 1")
    vocabulary: dict[str, int] = {}
    index = _indexed(rows, n, vocabulary)
    findings: list[Finding] = []
    for name, items in others.items():
        findings += _compared(side, index, name, _indexed(items, n, vocabulary), share)
    return sorted(findings, key=lambda f: (f.other, f.rule, -f.share, f.id, f.item, f.text))


def describe(findings: Sequence[Finding]) -> str:
    """The findings for a reader: counts for every two sets, the first rows, and what to do."""
    if not findings:
        return "no question occurs in two data sets"
    lines = ["data sets overlap; expected no question in two of them", *overlap_counts(findings)]
    lines += [line for finding in findings[:SHOWN] for line in finding_lines(finding)]
    if len(findings) > SHOWN:
        lines.append(f"  ... and {len(findings) - SHOWN} more")
    return "\n".join([*lines, remedy(findings)])


def overlap_counts(findings: Iterable[Finding]) -> list[str]:
    """How many rows and items of two sets overlap, one line per pair of sets."""
    pairs: dict[tuple[str, str], list[Finding]] = defaultdict(list)
    for finding in findings:
        pairs[finding.side, finding.other].append(finding)
    return [f"  {_counted(*names, overlap)}" for names, overlap in pairs.items()]


def finding_lines(finding: Finding) -> list[str]:
    """One finding: a line that names both, and how the two begin."""
    f = finding
    row = f"query {f.id!r}" if f.side == QUERY else f"pool row {f.id!r}"
    item = f"query {f.item!r}" if f.other == QUERY else f"item {f.item!r} of {f.other!r}"
    share = "" if f.rule == SAME else f", {100 * f.share:.0f}% of the shorter"
    return [f"  {row} and {item}: {f.rule}{share}", f"    {f.text}", f"    {f.item_text}"]


def remedy(findings: Iterable[Finding]) -> str:
    """What an experiment may say of them, and under which of its tables."""
    tables = " and ".join(sorted({f"[{finding.side}]" for finding in findings}))
    return f'{tables} overlap = "drop" leaves these rows out; overlap = "keep" keeps them'


def _counted(side: str, other: str, findings: Sequence[Finding]) -> str:
    rows, items = len({f.id for f in findings}), len({f.item for f in findings})
    noun = {POOL: ("pool row", "pool rows"), QUERY: ("query", "queries")}
    whose = "" if other == QUERY else f" of {other!r}"
    item = noun.get(other, ("item", "items"))
    rules = Counter(f.rule for f in findings)
    by = ", ".join(f"{rules[rule]} by {rule}" for rule in (SAME, SHARED) if rules[rule])
    return (
        f"{rows} {noun[side][rows > 1]} and {items} {item[items > 1]}{whose} overlap: "
        f"{len(findings)} {'pairs' if len(findings) > 1 else 'pair'} ({by})"
    )


@dataclass
class _Index:
    """The distinct questions of a set, by position: their rows, and which have each n-gram."""

    rows: list[list[tuple[str, str]]] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    keys: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    where: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))


def _indexed(questions: Questions, n: int, vocabulary: dict[str, int]) -> _Index:
    """The index of a set; a text without any word or number is left out: it asks nothing."""
    index = _Index()
    positions: dict[tuple[str, ...], int] = {}
    for row in questions:
        tokens = tuple(normalise(row[1]))
        words = [token for token in tokens if token[0].isalnum()]
        if not words:
            continue
        if tokens in positions:
            index.rows[positions[tokens]].append(row)
            continue
        position = positions[tokens] = len(index.rows)
        grams = _grams(words, n, vocabulary)
        index.rows.append([row])
        index.sizes.append(len(grams))
        index.keys[_key(tokens)].append(position)
        for gram in grams:
            index.where[gram].append(position)
    return index


def _grams(words: Sequence[str], n: int, vocabulary: dict[str, int]) -> set[int]:
    """Hashes of n-grams, 64 bits: of a million, two share theirs in one run of 40 million.

    Words are numbered because the hash of a text differs between processes, that of a number not.
    """
    numbers = [vocabulary.setdefault(word, len(vocabulary)) for word in words]
    return {hash(tuple(numbers[i : i + n])) for i in range(len(numbers) - n + 1)}


def _compared(side: str, a: _Index, other: str, b: _Index, share: float) -> Iterator[Finding]:
    for i, j, rule, part in _pairs(a, b, share):
        for (name, text), (item, item_text) in product(a.rows[i], b.rows[j]):
            yield Finding(side, name, other, item, rule, part, _excerpt(text), _excerpt(item_text))


def _pairs(a: _Index, b: _Index, share: float) -> Iterator[tuple[int, int, str, float]]:
    """Positions of overlapping questions, the rule and the share.

    An n-gram that counts occurs in at most `STOCK` questions of one of the sets, so the work grows
    linearly with the n-grams of both.
    """
    same = {
        pair for key in a.keys.keys() & b.keys.keys() for pair in product(a.keys[key], b.keys[key])
    }
    for i, j in same:
        yield i, j, SAME, 1.0
    shared: Counter[tuple[int, int]] = Counter()
    stock_a: Counter[int] = Counter()
    stock_b: Counter[int] = Counter()
    for gram in a.where.keys() & b.where.keys():
        if min(len(a.where[gram]), len(b.where[gram])) > STOCK:
            stock_a.update(a.where[gram])
            stock_b.update(b.where[gram])
        else:
            shared.update(product(a.where[gram], b.where[gram]))
    for (i, j), count in shared.items():
        part = count / min(a.sizes[i] - stock_a[i], b.sizes[j] - stock_b[j])
        if part >= share and (i, j) not in same:
            yield i, j, SHARED, part


def _excerpt(text: str) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= EXCERPT else plain[:EXCERPT].rstrip() + " ..."


def normalise(text: str) -> list[str]:
    """Words, numbers and operators of a question, in order; what only sets them apart is gone.

    NFKC and casefold; dollar signs, LaTeX spacing and text commands, and punctuation are removed. A
    bracket, dash or star beside a word is punctuation, elsewhere it is mathematics and stays.
    """
    text = unicodedata.normalize("NFKC", text.translate(_RAISED)).casefold()
    text = unicodedata.normalize("NFKC", text)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    tokens = _TOKEN.findall(text.translate(_CHARACTERS))
    around = zip(["", *tokens], tokens, [*tokens[1:], ""], strict=False)
    return [
        f"0{token}" if token[0] == "." else token
        for before, token, after in around
        if not _punctuates(before, token, after)
    ]


def _key(tokens: Iterable[str]) -> str:
    """Equal for the same question: white space only tells one number from the next."""
    return re.sub(r"(?<!\d) | (?!\d)", "", " ".join(tokens))


def _punctuates(before: str, token: str, after: str) -> bool:
    """Whether a mark is punctuation where it stands: "9-kilometer" against "9-x"."""
    if token in "([{-":
        return after == "" or _is_word(after)
    if token in ")]}":
        return _is_word(before)
    if token == "*":
        return _is_word(before) or _is_word(after)
    if token == "!":  # a factorial stands behind a number, a variable or a bracket, and goes on
        return after == "" or _is_word(before) or not (before.isalnum() or before in (")", "}"))
    return False


def _is_word(token: str) -> bool:
    """More than one letter, or a letter of a script that has no single-letter variables."""
    return token[:1].isalpha() and (len(token) > 1 or token >= UNSPACED[0][0])


class _Characters(dict[int, str]):
    """What becomes of each character behind `_REWRITES`; filled as characters are met."""

    def __missing__(self, code: int) -> str:
        self[code] = value = self._value(chr(code))
        return value

    @staticmethod
    def _value(character: str) -> str:
        kind = unicodedata.category(character)
        if any(first <= character <= last for first, last in UNSPACED):
            return f" {character} " if kind[0] in "LMN" else " "
        if kind[0] in "LMN" or character == ".":
            return character
        if character == "'" or kind == "Cf":
            return ""
        if character == "\N{FRACTION SLASH}":
            return " / "
        if kind == "Pd" or character == "\N{MINUS SIGN}":
            return " - "
        if character in "/*()[]{}!%" or (kind[0] == "S" and character not in "$`"):
            return f" {character} "
        return " "


UNSPACED = (
    ("\u0e00", "\u0eff"),  # Thai, Lao
    ("\u1000", "\u109f"),  # Burmese
    ("\u1780", "\u17ff"),  # Khmer
    ("\u3040", "\u30ff"),  # kana
    ("\u3400", "\u9fff"),  # Chinese characters
    ("\U00020000", "\U0003ffff"),
)
"""Scripts without spaces between words: each of their characters counts as a word."""
_CHARACTERS = _Characters()
# NFKC would make "52" of a 5 with a raised or lowered 2, and "21/2" of a 2 with a half behind it.
_RAISED = {
    code: mark + unicodedata.normalize("NFKC", chr(code))
    for code in (*range(0xB2, 0xBF), *range(0x2070, 0x2090), *range(0x2150, 0x2190))
    for kind, mark in (("<super>", "^"), ("<sub>", " "), ("<fraction>", " "))
    if unicodedata.decomposition(chr(code)).startswith(kind)
}
_TOKEN = re.compile(r"\d+(?:\.\d+)?|(?<![^\W\d_])\.\d+|[^\s\d.]+")
_REWRITES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\\\", " "),  # a line break
        (r"(?<=\d)(?:,|\{,\}|\\,)(?=\d{3}(?!\d))", ""),  # thousands
        (
            r"\\(?:left|right|bigg?[lrm]?|(?:display|text)style|q?quad|(?:no)?limits"
            r"|text(?:bf|it|rm)?|math(?:rm|bf|it)|mbox|operatorname)(?![a-z])"
            r"|\\[\s,;:!>\[\]()]|~",
            " ",
        ),
        (r"\\[dt]frac", r"\\frac"),
        (r"[\N{RIGHT SINGLE QUOTATION MARK}\N{PRIME}]", "'"),
        (r"'(?='*\()", "^prime "),  # a derivative
        (r"--+|\*\*+|[?!]{2,}|[\N{EM DASH}\N{HORIZONTAL BAR}]", " "),
        (r"\{\s*(\\?[^\W\d_]+|\d+(?:\.\d+)?)\s*\}", r" \1 "),  # braces around one thing
    )
)
