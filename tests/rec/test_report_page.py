"""The page: whole, self-contained, escaped, readable without seeing; and its pictures."""

import dataclasses
import functools
import html.parser
import itertools
import json

import jax
import numpy as np
import pytest

from core_jax.config import from_dict, to_dict
from core_jax.errors import DataError
from rec_jax import plots
from rec_jax.baselines.item_knn import ItemKnnChoice, ItemKnnConfig, ItemKnnTrial
from rec_jax.evaluate import EvaluateConfig, EvaluationCase, MethodLists, evaluate
from rec_jax.evaluation_tables import Table, choice_line, choice_table
from rec_jax.quality_tables import quality_tables
from rec_jax.recommend import ItemWords, Sample, SessionWords
from rec_jax.report_page import Plot, ReportInputs, page_html, write_page
from rec_jax.semantic_ids.codebook import Codebook
from rec_jax.semantic_ids.quality import quality_report

EVIL = '<script>alert(1)</script> & "Tom\'s" <b>'
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Outline(html.parser.HTMLParser):
    """Collects tags and their attributes, and checks that every tag is closed in order."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.open, self.text = [], [], []
        self.feed(page)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


@functools.cache
def make_report():
    rng = np.random.default_rng(0)
    order = np.stack([rng.permutation(31) for _ in range(11)])
    case = EvaluationCase(
        targets=order[:, :3], history=order[:, 3:7], item_counts=rng.integers(1, 9, size=31)
    )
    methods = [
        MethodLists(name="popularity", items=order[:, 7:12]),
        MethodLists(
            name="OneRec session-wise",
            items=order[:, [0, 20, 21, 2, 22]],
            sessions=order[:, :3],
            code_entropy=(2.5, 0.5),
        ),
        MethodLists(name=EVIL, items=order[:, 13:18]),
    ]
    config = EvaluateConfig(ks=(3, 5), bootstrap_samples=53)
    pairs = [("OneRec session-wise", "popularity")]
    return evaluate(methods, case, config, compare=pairs, key=jax.random.key(0))


def make_inputs(folder):
    folder.mkdir(exist_ok=True)
    plots.plot_loss(folder / "loss.png", train_steps=[1, 2, 3], train_losses=[3.0, 2.0, 1.5])
    item = ItemWords(item_id="1", title=EVIL, categories=(EVIL,), is_hit=True, score=-1.0)
    return ReportInputs(
        title=f"Run {EVIL}",
        summary={"data": EVIL},
        evaluation=make_report(),
        plots=(Plot(path=str(folder / "loss.png"), caption=EVIL, description=EVIL),),
        semantic_ids=(Table(title=EVIL, note=EVIL, header=("a", EVIL), rows=(("b", EVIL),)),),
        samples=(
            Sample(
                heading=EVIL,
                num_history=7,
                history=(item,),
                sessions=(SessionWords(score=-1.0, items=(item,)),),
                targets=(item,),
            ),
        ),
        counts={"events": 12345},
        drops={"duplicate_row": 3},
        config={"model": {"name": EVIL}},
    )


def test_page_is_one_self_contained_well_formed_file(tmp_path):
    path = write_page(make_inputs(tmp_path / "report"), tmp_path / "report")
    assert path == tmp_path / "report" / "index.html"
    page = path.read_text(encoding="utf-8")
    outline = Outline(page)
    assert not outline.all("script") and not outline.all("link")
    for attrs in (attrs for _, attrs in outline.tags):
        assert not (attrs.get("src") or "data:").partition("data:")[0]
        assert (attrs.get("href") or "#").startswith("#")
    assert "http:" not in page and "https:" not in page and "url(" not in page


def test_every_text_is_escaped(tmp_path):
    page = page_html(make_inputs(tmp_path))
    assert "<script" not in page and "<b>" not in page
    outline = Outline(page)
    text = "".join(outline.text)
    assert text.count("alert(1)") >= 12  # title, summary, rows, caption, table, items, settings
    assert outline.all("img")[0]["alt"] == EVIL


def test_page_is_readable_without_seeing(tmp_path):
    outline = Outline(page_html(make_inputs(tmp_path)))
    assert outline.all("html")[0]["lang"] == "en"
    assert len(outline.all("h1")) == len(outline.all("main")) == 1
    assert all(attrs.get("alt") for attrs in outline.all("img"))
    assert all(attrs.get("scope") in ("col", "row") for attrs in outline.all("th"))
    assert len(outline.all("caption")) == len(outline.all("table")) >= 6
    levels = [int(tag[1]) for tag, _ in outline.tags if tag in ("h1", "h2", "h3", "h4")]
    assert all(deeper <= level + 1 for level, deeper in itertools.pairwise(levels))
    assert outline.text.count("hit") == 3  # a hit is a word, not only a colour


def test_links_lead_to_sections_and_counts_are_told(tmp_path):
    outline = Outline(page_html(make_inputs(tmp_path)))
    anchors = {attrs["href"][1:] for attrs in outline.all("a")}
    assert anchors == {attrs["id"] for attrs in outline.all("section")}
    text = "".join(outline.text)
    assert "12,345" in text and "duplicate row" in text and "Paired differences" in text


def test_picture_has_its_size(tmp_path):
    image = Outline(page_html(make_inputs(tmp_path))).all("img")[0]
    assert image["width"] == str(8 * plots.DOTS_PER_INCH) and int(image["height"]) > 100


def test_empty_parts_are_left_out():
    outline = Outline(page_html(ReportInputs(title="T", summary={})))
    assert not outline.all("section") and not outline.all("a")


def test_missing_or_other_pictures_are_errors(tmp_path):
    other = tmp_path / "other.png"
    for message in ("does not exist", "is no PNG"):
        inputs = ReportInputs(
            title="T", summary={}, plots=(Plot(path=str(other), caption="", description="x"),)
        )
        with pytest.raises(DataError, match=message):
            page_html(inputs)
        other.write_text("GIF89a")


def png_size(path):
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")


def test_every_plot_is_drawn_at_page_width(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "plot.png"
    draw = {
        "loss": lambda: plots.plot_loss(
            path,
            train_steps=[1, 2, 3],
            train_losses=[3.0, 2.0, 1.0],
            valid_steps=[2],
            valid_losses=[2.5],
            best_step=2,
        ),
        "codes": lambda: plots.plot_code_usage(
            path, counts=[np.full(7, 3), rng.integers(0, 5, size=11), np.zeros(3, np.int32)]
        ),
        "load": lambda: plots.plot_expert_load(path, load=rng.random((2, 5)) + 0.1),
        "many": lambda: plots.plot_expert_load(path, load=rng.random((17, 29)) + 0.1),
        "recall": lambda: plots.plot_recall(path, report=make_report()),
    }
    for name, plot in draw.items():
        plot()
        assert png_size(path)[0] == 8 * plots.DOTS_PER_INCH, name
        path.unlink()


def test_steps_and_codes_are_marked_in_whole_numbers(tmp_path, monkeypatch):
    ticks = []
    monkeypatch.setattr(
        plots.Figure,
        "savefig",
        lambda figure, *_, **__: ticks.extend(axes.get_xticks() for axes in figure.axes),
    )
    plots.plot_loss(tmp_path / "plot.png", train_steps=[5, 17], train_losses=[2.0, 1.0])
    plots.plot_code_usage(tmp_path / "plot.png", counts=[np.full(5, 3), np.full(31, 2)])
    assert len(ticks) == 3
    for marks in ticks:
        np.testing.assert_array_equal(marks, np.round(marks))


def test_plots_of_nothing_are_errors(tmp_path):
    path = tmp_path / "plot.png"
    with pytest.raises(DataError, match="one loss per step"):
        plots.plot_loss(path, train_steps=[1, 2], train_losses=[1.0])
    with pytest.raises(DataError, match="at least one level"):
        plots.plot_code_usage(path, counts=[])
    with pytest.raises(DataError, match="a layer has none"):
        plots.plot_expert_load(path, load=np.array([[1.0, 2.0], [0.0, 0.0]]))
    assert not path.exists()


def test_smoothing_keeps_length_mean_of_a_line_and_constants():
    line = np.linspace(0, 1, 401)
    smooth = plots._smoothed(line)
    assert smooth.shape == line.shape
    np.testing.assert_allclose(smooth[10:-10], line[10:-10])
    np.testing.assert_allclose(plots._smoothed(np.full(53, 7.0)), 7.0)


@functools.cache
def make_choice():
    """Three trials; the second one is the best."""
    trials = tuple(
        ItemKnnTrial(
            config=ItemKnnConfig(window=window, shrinkage=shrinkage, distance=2),
            recall=recall,
            ndcg=recall / 2,
        )
        for window, shrinkage, recall in [(1, 5.0, 0.2), (3, 0.0, 0.3), (1, 0.0, 0.1)]
    )
    return ItemKnnChoice(k=7, best=trials[1], trials=trials)


def test_choice_table_stars_and_marks_the_best_trial():
    table = choice_table("item-kNN", make_choice())
    assert table.title == "item-kNN: Recall@7 / NDCG@7 on validation"
    assert table.header[1:] == ("window 1", "window 3")
    assert table.rows == (
        ("distance 2, 5", "0.2000 / 0.1000", "-"),
        ("distance 2, 0", "0.1000 / 0.0500", "*0.3000 / 0.1500"),
    )
    assert table.marked == (1,)


def test_what_was_tried_is_folded_away_and_the_best_row_marked():
    table = choice_table(EVIL, make_choice())
    line = choice_line(EVIL, make_choice())
    outline = Outline(page_html(ReportInputs(title="T", summary={}, choices={line: table})))
    assert outline.all("details") == [{}]  # without `open`
    assert [attrs.get("class") for attrs in outline.all("tr")] == [None, None, "marked"]
    text = "".join(outline.text)
    assert f"{EVIL}: window 3, distance 2, shrinkage 0; the best of 3" in text
    assert "*0.3000 / 0.1500" in text


def test_choices_come_back_from_json():
    choice = make_choice()
    assert from_dict(ItemKnnChoice, json.loads(json.dumps(to_dict(choice)))) == choice


def test_quality_tables_read_what_the_report_writes():
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(13, 5)).astype(np.float32)
    centroids = tuple(rng.normal(size=(size, 5)).astype(np.float32) for size in (3, 2))
    codes = np.stack([np.arange(13) % 3, np.arange(13) % 2], axis=1).astype(np.int32)
    report = quality_report(Codebook(centroids=centroids, settings={}), embeddings, codes)
    whole, levels = quality_tables(json.loads(json.dumps(report.to_dict())))
    assert whole.rows[0][1:] == (
        f"{report.catalogue.reconstruction_loss:.4f}",
        f"{report.nearest.reconstruction_loss:.4f}",
    )
    names = ["1, catalogue", "1, nearest centroid", "2, catalogue", "2, nearest centroid"]
    assert [row[0] for row in levels.rows] == names
    largest = levels.header.index("largest bucket")
    assert levels.rows[0][1] == "100.0% of 3" and levels.rows[2][largest] == "7"
    assert levels.rows[3][largest] == f"{report.nearest.levels[1].largest_bucket}"
    assert "items whose collaborative factors are from text" not in dict(
        row[:2] for row in whole.rows
    )
    report = dataclasses.replace(report, predicted_share=0.25)
    whole, _ = quality_tables(json.loads(json.dumps(report.to_dict())))
    assert whole.rows[-1] == ("items whose collaborative factors are from text", "25.0%", "25.0%")
    for table in (whole, levels):
        assert all(len(row) == len(table.header) for row in table.rows)
