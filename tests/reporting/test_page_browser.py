"""Every page in a real Chromium: nothing from data runs, nothing is asked for, keys reach all."""

import os
import shutil
from pathlib import Path

import pytest

from harness.reporting import report

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "reports").glob("**/index.html"))
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
WIDTHS = (390, 1280)
SCHEMES = ("light", "dark")
CONTROLS = "a[href], button, select, summary, [tabindex='0']"
PATIENCE = 300_000
"""Milliseconds that a step may take: a machine may be doing other work as well."""

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser():
    """A Chromium: the one named by COTSIEVE_CHROMIUM, else one that is installed."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        own = Path(driver.chromium.executable_path)
        named = os.environ.get("COTSIEVE_CHROMIUM") or next(
            filter(None, map(shutil.which, NAMES)), None
        )
        if named is None and not own.exists():
            pytest.skip("no Chromium: install one, or name it in COTSIEVE_CHROMIUM")
        # Without a sandbox of its own: containers and root have none to give, and pages are ours.
        found = driver.chromium.launch(executable_path=named, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def built(tmp_path_factory, write_results, hostile):
    """Pages that no repository holds: a hostile one, and one with two arms and stored texts."""
    out = tmp_path_factory.mktemp("built")
    report.build(hostile, out / "hostile")
    return out


@pytest.fixture
def opened(browser):
    """Opens a page and afterwards holds everything against it that the browser said."""
    contexts, said = [], []

    def go(path, **settings):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | settings)
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.on("dialog", lambda dialog: said.append(f"dialog: {dialog.message}"))
        page.on("popup", lambda popup: said.append(f"popup: {popup.url}"))
        page.on("request", lambda asked: said.append(f"request: {asked.url[:200]}"))
        page.goto(path.as_uri())
        said[:] = [line for line in said if line != f"request: {path.as_uri()}"]
        said[:] = [line for line in said if not line.startswith("request: data:image/svg+xml")]
        said[:] = [line for line in said if line != "request: data:,"]
        return page

    yield go
    for context in contexts:
        context.close()
    assert said == []


def exercise(page):
    """Take every choice of every control once, and open everything that opens."""
    taken = 0
    for select in page.locator("select").all():
        for place in range(select.locator("option").count()):
            if select.is_visible():
                select.select_option(index=place)
                taken += 1
        if select.is_visible():
            select.select_option(index=0)
    for button in page.locator("button:visible").all():
        button.click()
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    return taken


def check(page):
    """What holds for every page, whatever is in it."""
    page.wait_for_load_state("load")
    assert page.evaluate("typeof window.planted") == "undefined"
    assert page.evaluate("document.querySelectorAll('iframe, object, svg, form').length") == 0
    outside = """[...document.querySelectorAll("*")].filter(one => [...one.attributes].some(
        attribute => attribute.name.startsWith("on") || /^\\s*javascript:/i.test(attribute.value)))
        .length"""
    assert page.evaluate(outside) == 0
    broken = "[...document.images].filter(one => !one.complete || !one.naturalWidth).length"
    assert page.evaluate(broken) == 0


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.parent.relative_to(ROOT)))
def test_committed_pages(opened, path):
    page = opened(path)
    check(page)
    exercise(page)
    check(page)


def test_hostile_texts_stay_texts(opened, built):
    page = opened(built / "hostile" / "index.html")
    check(page)
    assert exercise(page) > 40
    check(page)
    shown = page.locator("#examples-list").inner_text()
    assert "<img src=" in shown or "<script>" in shown
    for name in ("examples", "answers"):
        assert page.locator(f"#{name}-list > li").count() > 0
        assert page.locator(f"#{name}-lists").is_hidden()
    page.pdf()  # prints


def test_a_planted_script_would_be_stopped_by_the_policy(browser, built, tmp_path):
    # The escaping undone on purpose: then the policy is what stands in the way.
    text = (built / "hostile" / "index.html").read_text(encoding="utf-8")
    start = "<main>"
    attack = "<script>window.planted = 1</script><img src=x onerror='window.planted = 2'>"
    (tmp_path / "open.html").write_text(text.replace(start, start + attack, 1), encoding="utf-8")
    context = browser.new_context()
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    refused = []
    page.on("console", lambda message: refused.append(message.text))
    page.goto((tmp_path / "open.html").as_uri())
    assert page.evaluate("typeof window.planted") == "undefined"
    assert any("Content Security Policy" in line for line in refused)
    context.close()


def test_keys_reach_every_control(opened, built):
    page = opened(built / "hostile" / "index.html")
    page.evaluate(
        """wanted => { window.reached = new Set(); window.wanted = () =>
        [...document.querySelectorAll(wanted)].filter(one => one.checkVisibility()); }""",
        CONTROLS,
    )
    wanted = page.evaluate("window.wanted().length")
    for _ in range(3 * wanted):
        page.keyboard.press("Tab")
        reached = page.evaluate(
            """() => { const one = document.activeElement;
            if (one !== document.body) window.reached.add(one);
            const outline = one === document.body || getComputedStyle(one).outlineStyle !== "none";
            return [window.reached.size, outline, one.outerHTML.slice(0, 80)]; }"""
        )
        assert reached[1], f"no visible focus on {reached[2]}"
        if reached[0] >= wanted:
            break
    missing = page.evaluate(
        "window.wanted().filter(one => !window.reached.has(one)).map(one => one.outerHTML)"
    )
    assert missing == []


def test_keys_choose_sort_and_open(opened, built):
    page = opened(built / "hostile" / "index.html")
    page.locator("#examples-show").focus()
    before = page.locator("#examples-list").inner_text()
    page.keyboard.press("ArrowDown")
    assert page.locator("#examples-said").inner_text().startswith("Most pruned: 15 of 130")
    assert page.locator("#examples-list").inner_text() != before
    assert page.locator("#examples-list > li").count() == 5
    page.locator("#examples-more").focus()
    page.keyboard.press("Enter")
    assert page.locator("#examples-list > li").count() == 15
    assert page.locator("#examples-more").get_attribute("aria-expanded") == "true"
    head = page.locator("table.sortable thead th").nth(1)
    assert head.get_attribute("aria-sort") == "descending"
    head.locator("button").focus()
    page.keyboard.press("Space")
    assert head.get_attribute("aria-sort") == "ascending"
    assert (
        page.locator("#sorted").inner_text() == "Sorted by Accuracy, %, ascending, in each block."
    )
    means = (
        page.locator("table.sortable tbody").first.locator("tr td:first-of-type").all_inner_texts()
    )
    numbers = [float(text.split()[0]) for text in means if text[0].isdigit()]
    assert numbers == sorted(numbers)
    assert len(numbers) > 3


def test_choosing_a_row_that_wins_sets_it_against_the_reference(opened, built):
    page = opened(built / "hostile" / "index.html")
    page.locator("#answers-show").select_option("won")
    page.locator("#answers-row").select_option("influence/combined")
    assert page.locator("#answers-left").input_value() == "random"
    assert page.locator("#answers-right").input_value() == "influence/combined"
    said = page.locator("#answers-said").inner_text()
    assert said.startswith("Won from random by a row, influence/combined: ")
    assert "influence/combined is right more often than random on " in said
    heads = page.locator("#answers-list > li").first.locator(".pair h4").all_inner_texts()
    assert [head.split(",")[0] for head in heads] == ["random", "influence/combined"]


def test_without_script_the_lists_stand_there(opened, built):
    page = opened(built / "hostile" / "index.html", java_script_enabled=False)
    assert page.locator("#examples-lists > ol > li").count() == 15
    assert page.locator("#examples-lists").is_visible()
    assert page.locator("#examples-tool").is_hidden()


def test_print_shows_the_lists_and_no_controls(opened, built):
    page = opened(built / "hostile" / "index.html")
    page.emulate_media(media="print")
    assert page.locator("#examples-lists").is_visible()
    assert page.locator("#answers-lists").is_visible()
    assert page.locator("select:visible, nav:visible, .more:visible").count() == 0
    background = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(background) == "rgb(255, 255, 255)"


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_pages_fit_and_can_be_looked_at(opened, built, width, scheme):
    folder = Path(os.environ.get("COTSIEVE_SCREENSHOTS", built / "pictures"))
    folder.mkdir(parents=True, exist_ok=True)
    for path in (*PAGES, built / "hostile" / "index.html"):
        settings = {"viewport": {"width": width, "height": 900}, "color_scheme": scheme}
        page = opened(path, **settings, reduced_motion="reduce")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
        near = ROOT / "reports"
        name = path.parent.relative_to(near if near in path.parents else built)
        stem = "-".join([*name.parts, str(width), scheme])
        page.screenshot(path=folder / f"{stem}.png", full_page=True)
        page.close()
