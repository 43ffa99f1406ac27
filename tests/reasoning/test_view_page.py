"""The viewer's page: whole, self-contained, escaped, small; and every error of its data."""

import dataclasses
import html.parser
import json
import math

import pytest

from core_jax.errors import DataError
from reasoning_jax.view.page import json_text, page_html, write_view
from reasoning_jax.view.view_data import ViewData, ViewProblem, ViewSolution
from tests.architecture.sources import PACKAGES, ROOT
from tests.reasoning.view_cases import EVIL, made_view

SOLUTION = ViewSolution(sample=0, pieces=("2", "+", "3"), is_correct=False, answer=None)


def evil_view():
    """A view in which every text is hostile."""
    solution = ViewSolution(
        sample=0,
        pieces=(EVIL, "<!--", "<script>", "\u2028\u2029", "\ud83d", "\U0001f600"),
        is_correct=False,
        answer=EVIL,
        critical=0,
    )
    problem = ViewProblem(problem_id=EVIL, question=EVIL, gold=EVIL, solutions=(solution,))
    return ViewData(title=EVIL + "\ud83d", problems=(problem,), facts={EVIL: EVIL})


class Tags(html.parser.HTMLParser):
    """Collects tags with their attributes, and what stands in scripts."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.scripts = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] == "script":
            self.scripts.append(data)


def test_page_is_one_self_contained_file(tmp_path):
    path = write_view(tmp_path / "view" / "index.html", made_view(3))
    page = path.read_text(encoding="utf-8")
    tags = Tags(page).tags
    assert not [tag for tag, _ in tags if tag in ("link", "img", "iframe")]
    assert not [attrs for _, attrs in tags if attrs.keys() & {"src", "href", "onclick", "onload"}]
    assert page.count("http") == page.count("http://www.w3.org/2000/svg") + 1  # and http-equiv
    policy = next(attrs["content"] for _, attrs in tags if "http-equiv" in attrs)
    assert policy.startswith("default-src 'none';") and "unsafe" not in policy
    assert [attrs.get("type") for tag, attrs in tags if tag == "script"] == [
        "application/json",
        None,
    ]


def test_no_text_becomes_markup():
    """Tags are those of a harmless page; the data are the hostile texts, letter for letter."""
    hostile, harmless = Tags(page_html(evil_view())), Tags(page_html(made_view(2)))
    assert {tag for tag, _ in hostile.tags} <= {tag for tag, _ in harmless.tags}
    assert sum(tag == "script" for tag, _ in hostile.tags) == 2
    problem = json.loads(hostile.scripts[0])["problems"][0]
    assert problem["id"] == problem["question"] == problem["gold"] == EVIL
    solution = problem["solutions"][0]
    assert solution["answer"] == EVIL
    pieces = evil_view().problems[0].solutions[0].pieces
    assert solution["text"] == "".join(pieces)
    assert solution["lengths"] == [len(EVIL), 4, 8, 2, 1, 2]  # a script counts UTF-16 units
    page_html(evil_view()).encode()  # no lone surrogate is left


def test_numbers_are_rounded_as_documented():
    solution = dataclasses.replace(
        SOLUTION,
        log_scores=(-0.00049, -1.2346, -math.inf),
        positive=(-0.004, -7.126, 1e-7),
        negative=(-0.006, -200.0, 0.0),
        success=(1 / 3, None, 0.0),
        critical=2,
        first_error=1,
    )
    problem = ViewProblem(problem_id="p", question="q", gold="5", solutions=(solution,))
    fields = json.loads(json_text(ViewData(title="t", problems=(problem,))))
    found = fields["problems"][0]["solutions"][0]
    assert found["log_scores"] == [0, -1235, -99000]
    assert found["positive"] == [0, -713, 0]
    assert found["negative"] == [-1, -9900, 0]
    assert found["success"] == [0.3333, None, 0.0]
    assert (found["critical"], found["first_error"]) == (2, 1)
    assert fields["top_share"] == 0.1


def test_legend_tells_only_what_there_is():
    problem = ViewProblem(problem_id="p", question="q", gold="5", solutions=(SOLUTION,))
    bare = page_html(ViewData(title="t", problems=(problem,)))
    full = page_html(made_view(2))
    for words in ("contrastive score", "lowest 10% of s", "critical token by", "first arithmetic"):
        assert f"{words}" in full.partition('id="data"')[0]
        assert f"{words}" not in bare.partition('id="data"')[0]


def test_five_hundred_problems_stay_small():
    """Pairs of 151 tokens each, with all numbers."""
    view = made_view(7)
    long = []
    for number in range(500):
        problem = view.problems[number % 7]
        solutions = tuple(lengthened(one, 151) for one in problem.solutions)
        long.append(dataclasses.replace(problem, problem_id=str(number), solutions=solutions))
    page = page_html(dataclasses.replace(view, problems=tuple(long)))
    assert len(page.encode()) < 5e6


def lengthened(solution, length):
    """The solution again and again, up to a number of tokens."""
    names = ("pieces", "log_scores", "positive", "negative", "success")
    rows = {name: getattr(solution, name) for name in names}
    return dataclasses.replace(
        solution, **{name: row and (row * 7)[:length] for name, row in rows.items()}
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pieces": ()}, "has no token"),
        ({"log_scores": (-1.0,)}, "log_scores has 1 numbers for 3 tokens"),
        ({"positive": (-1.0, 0.5, -1.0)}, r"positive of token 1 is 0\.5; expected a log-prob"),
        ({"negative": (-1.0, -1.0, math.nan)}, "negative of token 2 is nan"),
        ({"success": (0.5, None, 1.5)}, r"success of token 2 is 1\.5; expected a share"),
        ({"critical": 3}, "critical is 3; expected a token from 0 to 2"),
        ({"first_error": -1}, "first_error is -1"),
    ],
)
def test_numbers_must_belong_to_the_tokens(change, message):
    with pytest.raises(DataError, match=message):
        dataclasses.replace(SOLUTION, **change)


def test_views_must_make_sense():
    problem = ViewProblem(problem_id="p", question="q", gold="5", solutions=(SOLUTION,))
    with pytest.raises(DataError, match="no problem to show"):
        ViewData(title="t", problems=())
    with pytest.raises(DataError, match="problem 'p' is there twice"):
        ViewData(title="t", problems=(problem, problem))
    with pytest.raises(DataError, match=r"top_share is 0\.0"):
        ViewData(title="t", problems=(problem,), top_share=0.0)


def test_setup_py_ships_every_file_of_the_packages(monkeypatch):
    """What is no Python in our packages is listed, or an installed page would have no script."""
    declared = {}
    monkeypatch.setattr("setuptools.setup", lambda **fields: declared.update(fields))
    source = (ROOT / "setup.py").read_text()
    monkeypatch.chdir(ROOT)
    exec(compile(source, "setup.py", "exec"), {"__file__": str(ROOT / "setup.py")})
    listed = {
        f"{package.replace('.', '/')}/{name}"
        for package, names in declared["package_data"].items()
        for name in names
    }
    files = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    assert listed == files
