"""The viewer in a real browser: it draws, is driven by keys, and no text in it does anything."""

import dataclasses
import itertools
import math

import pytest

from reasoning_jax.view.page import write_view
from reasoning_jax.view.view_data import ViewData
from tests.reasoning.browser import open_browser
from tests.reasoning.test_view_page import evil_view
from tests.reasoning.view_cases import made_view

NUM_PROBLEMS = 31


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with open_browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    path = tmp_path_factory.mktemp("view") / "index.html"
    return write_view(path, made_view(NUM_PROBLEMS)).as_uri()


@pytest.fixture
def page(browser, address):
    browser.look(1280, 800)
    browser.open(address)
    return browser


def no_complaints(page):
    """No error on the console, no request but the file's own."""
    bad = [one for one in page.events if one.get("method") in ("Runtime.exceptionThrown",)]
    bad += [one for one in page.events if one.get("method") == "Log.entryAdded"]
    sent = [one for one in page.events if one.get("method") == "Network.requestWillBeSent"]
    addresses = {one["params"]["request"]["url"].partition(":")[0] for one in sent}
    return not bad and addresses == {"file"}


def test_a_problem_is_shown_with_both_solutions(page):
    problem = made_view(1).problems[0]
    assert page.text("#question") == problem.question
    assert page.text("#gold") == problem.gold
    assert page.text("#place") == f"1 of {NUM_PROBLEMS}"
    assert page.run("[...document.querySelectorAll('.verdict')].map((one) => one.textContent)") == [
        "\u2717 Wrong",
        "\u2713 Right",
    ]
    glyphs = "document.querySelectorAll('.glyph').forEach((one) => one.remove())"
    page.run(glyphs)
    shown = page.run("[...document.querySelectorAll('.tokens')].map((one) => one.innerText)")
    for text, solution in zip(shown, problem.solutions, strict=True):
        assert text.replace("\u00a0", " ").rstrip("01\n") == "".join(solution.pieces).rstrip("01\n")
    assert no_complaints(page)


def test_low_scores_are_strong_shades(page):
    """The shade's share is 1 - s, to 3 decimals; underlined are a tenth of the tokens."""
    solution = made_view(1).problems[0].solutions[0]
    shares = page.run(
        "[...document.querySelectorAll('.wrong .token')].map("
        "(one) => +one.style.getPropertyValue('--w'))"
    )
    expected = [1 - math.exp(log) for log in solution.log_scores]
    assert shares == pytest.approx(expected, abs=1.1e-3)
    assert page.count(".wrong .token.low") == len(solution.pieces) // 10
    lightness = page.run(
        "[...document.querySelectorAll('.wrong .token')].map((one) => "
        "+getComputedStyle(one).backgroundColor.match(/oklab[(]([0-9.]+)/)[1])"
    )
    # Even steps in OKLab, from paper (lightness 1) to the strongest shade (0.7).
    assert lightness == pytest.approx([1 - 0.3 * share for share in expected], abs=2e-3)


def test_marks_stand_at_their_tokens(page):
    """Index of the marked tokens; the curve's dot stands under the critical one."""
    solution = made_view(1).problems[0].solutions[0]
    for name, index in (("critical", solution.critical), ("error", solution.first_error)):
        found = page.run(
            f"[...document.querySelectorAll('.wrong .token')].findIndex("
            f"(one) => one.classList.contains('{name}'))"
        )
        assert found == index
    token, dot = page.run(
        "['.wrong .token.critical', '.dot'].map((one) => {"
        "const rect = document.querySelector(one).getBoundingClientRect();"
        "return [rect.left, rect.right, rect.top, rect.bottom]; })"
    )
    assert abs((token[0] + token[1]) / 2 - (dot[0] + dot[1]) / 2) < 1.0
    assert 0 < (dot[2] + dot[3]) / 2 - token[3] < 30


def test_curve_follows_its_lines_when_the_window_changes(page):
    """As many pieces of the curve as lines of text, before and after."""

    def lines():
        bottoms = page.run(
            "[...document.querySelectorAll('.wrong .token')].flatMap((one) => "
            "[...one.getClientRects()].filter((rect) => rect.width >= 1)"
            ".map((rect) => rect.bottom))"
        )
        return 1 + sum(after - before > 20 for before, after in itertools.pairwise(bottoms))

    wide = lines()
    assert page.count(".wrong .stroke") == wide
    page.look(390, 844)
    page.run("new Promise((done) => setTimeout(done, 200))")
    assert page.count(".wrong .stroke") == lines() > wide


def test_keys_lead_through_problems_and_tokens(page):
    page.press("n", text="n")
    page.press("ArrowRight")
    page.press("p", text="p")
    assert page.text("#place") == f"2 of {NUM_PROBLEMS}"
    assert page.run("location.hash") == "#steps-0001"
    page.press("c", text="c")
    solution = made_view(2).problems[1].solutions[0]
    count = len(solution.pieces)
    assert f"token {solution.critical + 1} of {count}" in page.text("#tip")
    page.press("ArrowLeft")
    assert f"token {solution.critical} of {count}" in page.text("#tip")
    assert page.text("#place") == f"2 of {NUM_PROBLEMS}"  # an arrow on a token is no way to leave
    log = solution.positive[solution.critical - 1]
    assert f"{log:.2f} nats".replace("-", "\u2212") in page.text("#tip")
    page.press("Escape")
    assert page.run("document.getElementById('tip').hidden")
    page.press("/", text="/")
    page.press("n", text="n")  # now a letter of the search
    assert page.run("[document.activeElement.id, document.activeElement.value]") == ["search", "n"]
    assert page.text("#name") == "Problem steps-0001"


def test_what_is_told_of_a_token_stays_when_the_page_scrolls_to_it(page):
    page.look(390, 500)
    page.press("c", text="c")
    page.run("new Promise((done) => setTimeout(done, 300))")
    assert page.run("scrollY") > 0
    token, tip = page.run(
        "['.wrong .token.critical', '#tip'].map((one) => {"
        "const rect = document.querySelector(one).getBoundingClientRect();"
        "return [rect.top, rect.bottom]; })"
    )
    assert tip[1] > tip[0] >= 0 and tip[1] <= 500  # wholly in the window, beside its token
    assert tip[0] >= token[1] or tip[1] <= token[0]


def test_a_finger_asks_as_a_pointer_does(page):
    page.look(390, 844)
    page.call("Emulation.setTouchEmulationEnabled", enabled=True)
    page.run("document.querySelector('.wrong .token.critical').scrollIntoView({block: 'center'})")
    page.run("new Promise((done) => setTimeout(done, 200))")
    for _ in range(2):
        x, y = page.run(
            "(() => { const rect = document.querySelector('.wrong .token.critical')"
            ".getBoundingClientRect();"
            "return [(rect.left + rect.right) / 2, (rect.top + rect.bottom) / 2]; })()"
        )
        page.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        page.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
        page.run("new Promise((done) => setTimeout(done, 400))")
        assert not page.run("document.getElementById('tip').hidden")
        assert "critical by rollouts" in page.text("#tip")
    page.call("Emulation.setTouchEmulationEnabled", enabled=False)


def test_filters_and_order(page):
    view = made_view(NUM_PROBLEMS)
    agreed = sum(number % 3 != 2 for number in range(NUM_PROBLEMS))
    page.choose("outcome", "agrees")
    assert page.text("#place") == f"1 of {agreed}"
    page.choose("outcome", "differs")
    assert page.text("#place") == f"1 of {NUM_PROBLEMS - agreed}"
    assert "contrast differs" in page.text(".findings")
    page.choose("outcome", "all")
    page.choose("which", "right")
    assert page.count(".solution.right") == page.count(".solution") == 1
    page.choose("which", "both")
    page.choose("sort", "lowest")
    least = min(view.problems, key=lambda one: min(one.solutions[0].log_scores))
    assert page.text("#name") == f"Problem {least.problem_id}"
    page.choose("search", view.problems[5].problem_id.upper())
    assert page.text("#place") == "1 of 1" and page.text("#question") == view.problems[5].question
    page.choose("search", "nobody says this")
    assert page.text("#place") == "none"
    assert page.run("document.getElementById('problem').hidden")
    page.choose("search", "")
    assert page.text("#place").endswith(f"of {NUM_PROBLEMS}")
    assert no_complaints(page)


def test_an_address_names_a_problem(browser, address):
    browser.open(f"{address}#steps-0007")
    assert browser.text("#place") == f"8 of {NUM_PROBLEMS}"
    browser.open(f"{address}#%")
    assert browser.text("#place") == f"1 of {NUM_PROBLEMS}"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_can_be_read_on_the_strongest_shade(page, theme):
    """Contrast of WCAG 2: at least 4.5 between ink and the shade of s = 0."""
    page.look(1280, 800, theme=theme)
    ink, shade = page.run(
        """(() => {
          const canvas = document.createElement('canvas').getContext('2d');
          const probe = document.body.appendChild(document.createElement('i'));
          return ['--ink', '--shade'].map((name) => {
            probe.style.color = `var(${name})`;
            canvas.fillStyle = getComputedStyle(probe).color;
            canvas.fillRect(0, 0, 1, 1);
            return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
          });
        })()"""
    )

    def luminance(color):
        parts = [one / 255 for one in color]
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
        return sum(share * x for share, x in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    dark, light = sorted((luminance(ink), luminance(shade)))
    assert (light + 0.05) / (dark + 0.05) >= 4.5


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_nothing_is_wider_than_the_window(page, width):
    page.look(width, 800)
    page.run("new Promise((done) => setTimeout(done, 100))")
    assert page.run("document.documentElement.scrollWidth") <= width


def test_a_hostile_text_is_shown_and_does_nothing(browser, tmp_path):
    view = evil_view()
    browser.open(write_view(tmp_path / "index.html", view).as_uri())
    browser.press("c", text="c")
    assert browser.run("window.broken === undefined")
    question = view.problems[0].question
    assert browser.text("#question") == question
    assert browser.text("#name") == f"Problem {question}"
    assert browser.text(".tokens .token") == question
    assert browser.count("main img, main b:not(.legend b, .gold b)") == 0
    assert no_complaints(browser)


def test_a_large_page_opens_quickly(browser, tmp_path):
    """500 problems; parsing, the list and the first problem take well under 3 s on a slow core."""
    browser.open(write_view(tmp_path / "index.html", made_view(500)).as_uri())
    assert browser.count(".list li") == 500
    assert browser.count(".solution") == 2  # the others are drawn when they are looked at
    assert browser.run("performance.timing.domComplete - performance.timing.navigationStart") < 3000


def test_scores_and_rollouts_may_be_absent(browser, tmp_path):
    problem = made_view(1).problems[0]
    bare = tuple(
        dataclasses.replace(
            one, log_scores=None, positive=None, negative=None, success=None, critical=None
        )
        for one in problem.solutions
    )
    view = ViewData(title="t", problems=(dataclasses.replace(problem, solutions=bare),))
    browser.open(write_view(tmp_path / "index.html", view).as_uri())
    assert browser.count(".solution") == 2 and browser.count(".stroke") == 0
    assert browser.run("document.querySelector('#outcome option[value=agrees]').disabled")
    assert no_complaints(browser)
