"""The job `rec.encode`, through the command line, on a run without any training."""

import dataclasses
import json
import shutil

import numpy as np
import polars as pl
import pytest

from launch import runtime
from launch.cli import main
from rec_jax.data.own_logs import OwnLogConfig
from rec_jax.jobs import JOBS
from rec_jax.presets import demo_tiny
from rec_jax.semantic_ids.codebook import load_codebook
from rec_jax.semantic_ids.embeddings import EmbeddingConfig, EmbeddingKind
from rec_jax.semantic_ids.residual import SemanticIdConfig, encode_nearest
from rec_jax.stages import encode, prepare, tokenize

NUM_USERS, NUM_ITEMS, NUM_GENRES = 29, 37, 5


def write_log(folder):
    """Items of NUM_GENRES genres, whose table has column names and a separator of its own."""
    rng = np.random.default_rng(0)
    rows = [
        {"user_id": f"u{user}", "item_id": f"i{item}", "timestamp": place, "rating": 5}
        for user in range(NUM_USERS)
        for place, item in enumerate(rng.permutation(NUM_ITEMS - 3)[:17])
    ]
    pl.DataFrame(rows).write_csv(folder / "log.csv")
    write_items(folder / "items.csv", [f"i{item}" for item in range(NUM_ITEMS)])


def write_items(path, item_ids, genres=None):
    """The genre of item n is n mod NUM_GENRES, unless others are given."""
    genres = genres or [f"genre{n % NUM_GENRES}; all" for n in range(len(item_ids))]
    titles = [f"Film {genre.partition(';')[0]}" for genre in genres]
    pl.DataFrame({"movie": item_ids, "name": titles, "genres": genres}).write_csv(path)


def make_config(folder, **embeddings):
    base = demo_tiny()
    return dataclasses.replace(
        base,
        run_dir=str(folder / "run"),
        log=OwnLogConfig(
            path=str(folder / "log.csv"),
            items_path=str(folder / "items.csv"),
            columns=("rating",),
            item_columns=("item_id=movie", "title=name", "categories=genres"),
            category_separator=";",
        ),
        embeddings=EmbeddingConfig(**embeddings) if embeddings else base.embeddings,
        semantic_ids=SemanticIdConfig(level_sizes=(5, 3)),
    )


def tokenise(config):
    runtime.open_run(config)
    assert prepare.run(config) and tokenize.run(config)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose items have semantic IDs; returns the folder above it."""
    folder = tmp_path_factory.mktemp("encode")
    write_log(folder)
    tokenise(make_config(folder))
    return folder


def call(folder, *arguments):
    command = ["rec.encode", "--run-dir", str(folder / "run"), *map(str, arguments)]
    return main(JOBS, command, program="test")


def test_new_items_are_encoded_and_told(run, capsys):
    """The run's own mapping and separator are taken; an unknown and a known item are warned of."""
    genres = ["genre3; all", "genre1; all", "nothing; known", "genre2; all"]
    write_items(run / "new.csv", ["n0", "n1", "n2", "i7"], genres)
    assert call(run, "--items", run / "new.csv", "--output", run / "ids.parquet") == 0
    text = capsys.readouterr().out
    assert "n0  Film genre3" in text and "i7  Film genre2 [in the catalogue]" in text
    assert "New items: 4." in text and "in the catalogue already: 1." in text
    table = pl.read_parquet(run / "ids.parquet")
    assert table["item_id"].to_list() == ["n0", "n1", "n2", "i7"]
    assert table["in_catalogue"].to_list() == [False, False, False, True]
    assert table["num_known_terms"].to_list() == [5, 5, 1, 5]  # film, genre and all; the categories
    quality = json.loads((run / "run/stages/tokenize/quality.json").read_text())
    mean = quality["nearest"]["reconstruction_loss"]
    np.testing.assert_allclose(table["error"] / mean, table["relative_error"], rtol=1e-12)


def test_an_item_like_unseen_ones_of_the_catalogue_gets_their_nearest_codes(run):
    """Items 34 to 36 have no events: an item with the words of one has its embedding."""
    write_items(run / "like.csv", ["n0", "n1", "n2"], [f"genre{n % 5}; all" for n in (34, 35, 36)])
    assert call(run, "--items", run / "like.csv", "--output", run / "like.jsonl") == 0
    table = pl.read_ndjson(run / "like.jsonl")
    folder = run / "run/stages/tokenize"
    item_ids = prepare.load(str(run / "run"))[1].item_ids
    rows = np.load(folder / "embeddings.npy")[[item_ids.index(f"i{n}") for n in (34, 35, 36)]]
    expected = encode_nearest(load_codebook(folder / "codebook.npz"), rows)
    assert table["codes"].to_list() == expected.tolist()


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_text_files_part_lists_by_a_bar(run, suffix):
    write_items(run / "one.csv", ["n0"])
    output = run / "deep" / f"ids.{suffix}"
    assert call(run, "--items", run / "one.csv", "--output", output, "--num-nearest", 2) == 0
    table = pl.read_csv(output, separator="\t" if suffix == "tsv" else ",", infer_schema=False)
    assert len(table["codes"][0].split("|")) == 2
    assert set(table["nearest"][0].split("|")) < {f"i{n}" for n in range(NUM_ITEMS)}


def test_unknown_words_are_warned_of_and_long_tables_cut(run, capsys):
    ids = [f"n{n}" for n in range(encode.NUM_PRINTED + 3)]
    pl.DataFrame({"movie": ids, "name": ["zzz"] * len(ids), "genres": ["q"] * len(ids)}).write_csv(
        run / "odd.csv"
    )
    assert call(run, "--items", run / "odd.csv") == 0
    text = capsys.readouterr().out
    assert f"any word or category that the catalogue knows: {len(ids)}." in text
    assert "... and 3 more" in text and "n19  zzz" in text and "n20  zzz" not in text


def test_dropped_rows_are_counted(run, caplog):
    write_items(run / "twice.csv", ["n0", "n0", ""])
    assert call(run, "--items", run / "twice.csv") == 0
    assert "{'absent_id_in_items': 1, 'duplicate_item': 1}" in caplog.text


def test_errors_name_what_to_do(run, capsys, tmp_path):
    write_items(run / "new.csv", ["n0"])
    pl.DataFrame({"item_id": ["n0"], "title": ["x"]}).write_csv(run / "canonical.csv")
    shutil.copytree(run / "run", tmp_path / "run")
    tokenized = tmp_path / "run/stages/tokenize"
    (tokenized / "embedder.npz").unlink()
    done = json.loads((tokenized / "done.json").read_text())
    del done["files"]  # as in runs of before sizes were written down
    (tokenized / "done.json").write_text(json.dumps(done))
    for folder, arguments, message in [
        (run, [], "give a table of new items: --items new_items.csv"),
        (run, ["--items", run / "none.csv"], "none.csv' is no file"),
        (run, ["--items", run / "canonical.csv"], "no column 'movie'"),
        (run, ["--items", run / "new.csv", "--output", "ids.xls"], "must end in .csv"),
        (run, ["--items", run / "new.csv", "--num-nearest", 0], "must be at least 1"),
        (run, ["--items", run / "new.csv", "--embeddings", "x.npy"], "leave the file out"),
        (run / "other", ["--items", run / "new.csv"], "stage 'tokenize' of run"),
        (tmp_path, ["--items", run / "new.csv"], "before embedders were kept"),
    ]:
        assert call(folder, *arguments) in (1, 2)
        assert message in " ".join(capsys.readouterr().err.replace("\u2502", " ").split())
    columns = ["--item-columns", "item_id", "title"]
    assert call(run, "--items", run / "canonical.csv", *columns) == 0


def test_a_run_tokenised_anew_has_an_embedder_and_the_same_ids(run, tmp_path):
    """The remedy of the error: the IDs, on which the model depends, stay."""
    shutil.copytree(run / "run", tmp_path / "run")
    folder = tmp_path / "run/stages/tokenize"
    before = tokenize.load(str(tmp_path / "run"))
    for name in ("embedder.npz", "done.json"):
        (folder / name).unlink()
    config = dataclasses.replace(make_config(run), run_dir=str(tmp_path / "run"))
    assert tokenize.run(config)
    assert tokenize.load(str(tmp_path / "run")).fingerprint == before.fingerprint
    write_items(tmp_path / "new.csv", ["n0"])
    assert call(tmp_path, "--items", tmp_path / "new.csv") == 0


def test_a_run_with_embeddings_of_its_own_reads_those_of_new_items(tmp_path, capsys):
    write_log(tmp_path)
    rng = np.random.default_rng(0)
    own = {"item_ids": [f"i{n}" for n in range(NUM_ITEMS)]}
    own["embeddings"] = rng.normal(size=(NUM_ITEMS, 5)).astype(np.float32)
    np.savez(tmp_path / "own.npz", **own)
    tokenise(make_config(tmp_path, kind=EmbeddingKind.FILE, path=str(tmp_path / "own.npz")))
    write_items(tmp_path / "new.csv", ["n0", "n1"])
    assert call(tmp_path, "--items", tmp_path / "new.csv") == 1
    assert "of the same 5 dimensions" in capsys.readouterr().err
    np.savez(tmp_path / "new.npz", item_ids=["n1", "n0"], embeddings=own["embeddings"][:2])
    arguments = ["--embeddings", tmp_path / "new.npz", "--output", tmp_path / "ids.parquet"]
    assert call(tmp_path, "--items", tmp_path / "new.csv", *arguments) == 0
    table = pl.read_parquet(tmp_path / "ids.parquet")
    codebook = load_codebook(tmp_path / "run/stages/tokenize/codebook.npz")
    expected = encode_nearest(codebook, own["embeddings"][[1, 0]])
    assert table["codes"].to_list() == expected.tolist()
    assert table["num_known_terms"].null_count() == 2
    assert "no known term" not in capsys.readouterr().out


def test_the_share_of_predicted_items_is_kept(run):
    """Items 34 to 36 have no events at all; 37 items."""
    quality = json.loads((run / "run/stages/tokenize/quality.json").read_text())
    assert quality["predicted_share"] == pytest.approx(3 / NUM_ITEMS)
