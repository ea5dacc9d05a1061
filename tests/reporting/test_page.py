"""The page as a document: what foreign text cannot do to it, and how it reads without a mouse."""

import base64
import hashlib
import html.parser
import itertools
import json
import re
import shlex

import pandas as pd
import pytest
import typer

from harness.cli.app import app
from harness.reporting import page, quotes, report

VOID = ("meta", "link", "img", "br")


class Document(html.parser.HTMLParser):
    """Elements with attributes and ancestors, and their text."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.found = [], []
        self.feed(text)
        assert self.open == [], self.open

    def handle_starttag(self, tag, attrs):
        element = {"tag": tag, "text": "", "inside": [e["tag"] for e in self.open], **dict(attrs)}
        self.found.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        # Elements whose end may be left out: an option, and nothing else here.
        assert self.open[-1]["tag"] == tag, (tag, [e["tag"] for e in self.open])
        self.open.pop()

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def all(self, *tags):
        return [element for element in self.found if element["tag"] in tags]

    def data(self, name):
        (found,) = [e for e in self.all("script") if e.get("id") == f"{name}-data"]
        return json.loads(found["text"])


def render(folder, out):
    report.build(folder, out)
    return (out / "index.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def attacked(hostile, tmp_path_factory):
    return render(hostile, tmp_path_factory.mktemp("attacked"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory, write_results):
    folder = tmp_path_factory.mktemp("plain")
    few = {"rows": ("base", "random", "length", "influence/combined", "full", "oracle")}
    small = {"tasks": ("chain_core", "chain_far"), "items": 40, "pool_size": 120}
    source = write_results(folder / "results", **few, **small)
    return render(source, folder / "report")


def shape(document):
    """Which elements with which attributes, under which parent."""
    known = ("tag", "text", "inside")
    return {
        (element["tag"], *element["inside"][-1:], *sorted(set(element) - set(known)))
        for element in document.found
    }


def test_hostile_text_adds_no_element_and_no_attribute(attacked, plain):
    document = Document(attacked)
    # All that a page without such texts does not have: a list of failures, and stored texts.
    assert shape(document) - shape(Document(plain)) == {
        ("b", "div"),
        ("code", "li"),
        ("div", "header", "class", "role"),
        ("pre", "div", "class", "dir"),
        ("ul", "div"),
    }
    assert not [name for e in document.found for name in e if name.startswith("on")]
    assert [e.get("type") for e in document.all("script")] == ["application/json"] * 2 + [None]
    assert {e["src"][:26] for e in document.all("img")} == {"data:image/svg+xml;base64,"}
    assert not document.all("iframe", "object", "svg", "form", "base")
    for link in document.all("a"):
        assert re.fullmatch(r"#[a-z]+|[a-z-]+\.(csv|md|tex|svg|png|pdf)", link["href"])
    assert "{{7*7}} {% for x in y %}" in document.all("header")[0]["text"]
    assert not page.UNSEEN.search(attacked)
    assert "[U+202E]gnp.exe" in attacked


def test_hostile_text_reaches_the_explorers_as_it_was(attacked):
    data = Document(attacked).data("examples")
    prompts = {example["quotes"][0][1]["text"] for example in data["entries"]}
    assert "</script><script>window.planted = 3</script>" in prompts
    assert "line[U+2028]and[U+2029]end [U+0000][U+0007] &lt;b&gt; ]]> \\u003c" in prompts
    notes = {example["quotes"][0][1]["note"] for example in data["entries"]}
    (long,) = notes - {""}
    assert long == "cut: the first 2,000 of 100,003 characters"
    answers = Document(attacked).data("answers")
    assert "r <script>window.planted = 1</script>" in {t["text"] for t in answers["texts"]}
    assert len(attacked) < 5e6


def test_only_the_pages_own_script_and_style_may_run(attacked):
    document = Document(attacked)
    (policy,) = [e["content"] for e in document.all("meta") if "http-equiv" in e]
    parts = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert parts["default-src"] == "'none'"
    assert parts["img-src"] == "data:"
    for name, text in (
        ("script-src", document.all("script")[-1]["text"]),
        ("style-src", document.all("style")[0]["text"]),
    ):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert parts[name] == f"'sha256-{digest}'"
    assert not [e for e in document.found if "style" in e]


def test_embedded_data_cannot_end_its_element():
    value = {"</script>": ["<!--", "&amp;", "\u2028\u2029", "\x00\ud800", 1.5, None, "é"]}
    template = page._environment().from_string("{{ value|visible|tojson }}")
    text = template.render(value=value)
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == {
        "</script>": ["<!--", "&amp;", "[U+2028][U+2029]", "[U+0000][U+D800]", 1.5, None, "é"]
    }


def test_a_page_reads_in_order_and_names_its_controls(plain):
    document = Document(plain)
    levels = [int(e["tag"][1]) for e in document.all("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert [len(document.all(tag)) for tag in ("header", "nav", "main")] == [1, 1, 1]
    ids = [e["id"] for e in document.found if "id" in e]
    assert len(ids) == len(set(ids))
    for element in document.found:
        for name in ("aria-labelledby", "aria-controls"):
            assert element.get(name, ids[0]) in ids
    sections = [e["href"][1:] for e in document.all("a") if e["href"].startswith("#")]
    assert set(sections) == {e["aria-labelledby"] for e in document.all("section")}
    assert all("label" in e["inside"] for e in document.all("select"))
    assert all("scope" in e for e in document.all("th"))
    assert len([e for e in document.found if e.get("aria-live") == "polite"]) == 3
    assert all(e["alt"] for e in document.all("img"))
    scrolling = [e for e in document.found if e.get("tabindex") == "0"]
    assert all(e["role"] == "region" and e["aria-label"] for e in scrolling)


def test_without_script_a_few_of_every_list_can_be_read(plain):
    document = Document(plain)
    lists = [e for e in document.all("ol") if not e.get("id")]
    assert len(lists) == 5
    shown = [e["text"] for e in document.all("li") if e.get("class") == "card"]
    assert len(shown) == 25
    hidden = {e["id"] for e in document.found if "hidden" in e and "id" in e}
    assert hidden == {"examples-tool", "answers-tool"}


def test_results_without_texts_say_so(plain):
    text = Document(plain).all("main")[0]["text"]
    assert "The texts of this pool were not stored with the results." in text
    assert "The questions were not stored with the results." in text
    data = Document(plain).data("examples")
    assert all(text is None for example in data["entries"] for _, text in example["quotes"])
    assert all("s_C" in example["terms"][0][1] for example in data["entries"])


def test_results_without_selections_and_answers_give_a_page(make_results, tmp_path):
    every = {f"base@0#{seed}": {"stage": "train", "message": "no"} for seed in range(1)}
    text = render(make_results(rows=("base",), failures=every), tmp_path / "out")
    assert {e["aria-labelledby"] for e in Document(text).all("section")} == {
        *("results", "figures", "costs", "reading", "provenance")
    }


def test_texts_of_an_arm_are_its_own(make_results, tmp_path):
    folder = make_results(protocol={"arm": [{"name": "random-errors"}]})
    make_results(arm="random-errors", rng_seed=3)
    for arm in ("main", "random-errors"):
        name = "pool.parquet" if arm == "main" else f"pool-{arm}.parquet"
        ids = pd.read_parquet(folder / name)["id"]
        frame = pd.DataFrame({"id": ids, "prompt": f"asked in {arm}", "response": "said"})
        quotes.kept_examples(frame, None).to_parquet(
            folder / quotes.examples_file(arm), index=False
        )
    render(folder, tmp_path / "out")
    for arm in ("main", "random-errors"):
        path = tmp_path / "out" / ("" if arm == "main" else arm) / "index.html"
        data = Document(path.read_text(encoding="utf-8")).data("examples")
        assert {e["quotes"][0][1]["text"] for e in data["entries"]} == {f"asked in {arm}"}


def test_commands_are_ones_that_the_program_takes(make_results, tmp_path):
    folder = make_results(protocol={"arm": [{"name": "random-errors"}]})
    make_results(arm="random-errors", rng_seed=3)
    render(folder, tmp_path / "out")
    group = typer.main.get_command(app)
    for path in (tmp_path / "out" / "index.html", tmp_path / "out/random-errors/index.html"):
        document = Document(path.read_text(encoding="utf-8"))
        lines = [shlex.split(e["text"]) for e in document.all("code") if "dd" in e["inside"]]
        typed = [line[1:] for line in lines if line[0] == "cotsieve"]
        assert [line[0] for line in typed] == ["report", "compare", "explain", "subset"]
        for name, *arguments in typed:
            command = group.get_command(None, name)
            context = command.make_context(name, arguments)  # parses, and runs nothing
            named = context.params.get("experiments") or [context.params["experiment"]]
            assert named == ["quick"]
            assert context.params.get("arm", path.parent.name) in ("main", path.parent.name)
    assert "random-errors:" in next(line[2] for line in typed if line[0] == "explain")


def luminance(colour):
    """Relative luminance (WCAG 2.2)."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    dark, light = sorted(map(luminance, (one, other)))
    return (light + 0.05) / (dark + 0.05)


def test_contrast_by_a_pair_worked_by_hand():
    assert contrast("#000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#fff") == pytest.approx(4.478, abs=1e-3)  # WebAIM's example


def test_text_stands_out_in_light_dark_and_print():
    style = page._source("style.css")
    schemes = [
        dict(re.findall(r"--(\S+): (#\w+)", block))
        for block in re.findall(r":root \{(.*?)\}", style)
    ]
    assert len(schemes) == 3
    chips = [schemes[0] | {"chip": "#fff"}, schemes[1] | {"chip": "#10151a"}, schemes[2]]
    for colours in chips:
        for text in ("ink", "soft", "accent", "good-text", "bad"):
            for ground in ("page", "card", "wash"):
                assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground, colours)
        for ground in ("ink", "bad"):
            assert contrast(colours[ground], colours["warn"]) >= 4.5
        for ground in ("page", "card"):  # borders of controls
            assert contrast(colours["line"], colours[ground]) >= 3
        if "chip" in colours:
            assert contrast(colours["chip"], colours["good"]) >= 4.5
            assert contrast(colours["chip"], colours["bad"]) >= 4.5
    assert ".chip.better, .chip.worse { color: #10151a; }" in style
    assert ".chip.better { color: #fff; background: var(--good); }" in style
