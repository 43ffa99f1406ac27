"""Contrastive cDPO of sessions, end to end in a small world: stages, cuts, controls, errors."""

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from core_jax.errors import ConfigError, DataError
from core_jax.mesh import MeshConfig, make_mesh
from core_jax.token_weights import WeightConfig, WeightControl
from rec_jax.align.array_file import read_arrays, write_arrays
from rec_jax.align.methods import Method, MethodConfig
from rec_jax.align.run_config import AlignRunConfig, Folders, folders_of
from rec_jax.alignment import resolved, run_base, run_rounds, run_shared
from rec_jax.stages import align, align_evaluate, contrast, generators, groups
from rec_jax.stages.report import read_rows
from tests.end_to_end.shrunk_alignment import shrunk_alignment

pytestmark = pytest.mark.long

ROUNDS = 2
MODELS = [contrast.model_stage(number, side) for number in (1, 2) for side in contrast.SIDES]
STAGES = ("candidates", "groups", "positive", "negative", "scores", "train", "evaluate")


def configured(folder: pathlib.Path) -> AlignRunConfig:
    """The tiny preset with the method, on one device."""
    config = shrunk_alignment(folder, mesh=MeshConfig())
    method = MethodConfig(method=Method.CONTRASTIVE)
    align = dataclasses.replace(config.align, method=method, num_rounds=ROUNDS)
    evaluate = dataclasses.replace(config.evaluate, legality_users=0)
    return resolved(dataclasses.replace(config, align=align, evaluate=evaluate))


def copied(
    run: AlignRunConfig, folder: pathlib.Path, *, without: str
) -> tuple[Folders, pathlib.Path]:
    """A copy of the run in which the stages that match a pattern never ran."""
    shutil.copytree(run.run_dir, folder)
    for stage in (folder / "stages").glob(without):
        shutil.rmtree(stage)
    return Folders(base=run.run_dir, shared=run.run_dir, first=str(folder), run=str(folder)), folder


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> AlignRunConfig:
    """One whole run."""
    config = configured(tmp_path_factory.mktemp("contrastive") / "run")
    folders = folders_of(config)
    assert run_base(folders, config) and run_shared(folders, config)
    assert run_rounds(folders, config)
    return config


def results(folders: Folders, number: int) -> list[np.ndarray]:
    """Parameters of M_t, and its sessions."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    leaves = jax.tree.leaves(generators.load(folders, number, mesh)[1])
    leaves += vars(contrast.load(folders, number)).values()
    leaves += vars(align_evaluate.load(folders, number)).values()
    return [np.asarray(leaf) for leaf in leaves]


def assert_same(left: Folders, right: Folders) -> None:
    for number in range(1, ROUNDS + 1):
        pairs = zip(results(left, number), results(right, number), strict=True)
        for one, other in pairs:
            np.testing.assert_array_equal(one, other)


def test_every_round_trains_two_models_and_scores_its_pairs(run):
    done = {path.parent.name for path in pathlib.Path(run.run_dir).glob("stages/round_*/done.json")}
    expected = {f"round_{number}_{stage}" for number in (1, 2) for stage in STAGES}
    assert done == expected | {"round_0_evaluate"}
    for number in (1, 2):
        scores, preferences = (
            contrast.load(folders_of(run), number),
            groups.load(folders_of(run), number),
        )
        np.testing.assert_array_equal(scores.codes, preferences.codes)
        rows = read_rows(pathlib.Path(run.run_dir) / "stages" / generators.train_stage(number))
        assert all(0 < row["rejected_weight"] < 1 for row in rows)


def test_the_models_learn_the_sessions_that_they_are_named_after(run):
    """The one of better sessions gives the chosen ones more than the other does."""
    for number in (1, 2):
        path = pathlib.Path(run.run_dir) / "stages" / contrast.stage_name(number) / "done.json"
        facts = json.loads(path.read_text())["facts"]
        assert facts["log p+/p- of chosen sessions"] > facts["log p+/p- of rejected sessions"]
        assert facts["pairs ordered right"] > 0.5


def cut_in(function):
    """The function, which fails the first time: a training after 3 of 6 steps, others at once."""
    calls = []

    def cut(*arguments, **options):
        calls.append(arguments)
        if len(calls) > 1:
            return function(*arguments, **options)
        if "config" in options:
            half = dataclasses.replace(options["config"], num_steps=3)
            function(*arguments, **(options | {"config": half}))
        raise RuntimeError("cut off")

    return cut


def test_a_round_that_was_cut_off_anywhere_ends_as_if_it_had_not_been(run, tmp_path, monkeypatch):
    """In turn: in the positive model's training, in the scores, and in the training of the round.

    A training that is cut off has left a checkpoint, and no `done.json`.
    """
    folders, folder = copied(run, tmp_path / "cut", without="round_[12]_[!c]*")
    cuts = (
        (contrast, "fit", contrast.model_stage(1, "positive")),
        (contrast, "write_arrays", contrast.stage_name(1)),
        (align, "fit", generators.train_stage(1)),
    )
    for module, place, stage in cuts:
        with monkeypatch.context() as patch:
            patch.setattr(module, place, cut_in(getattr(module, place)))
            with pytest.raises(RuntimeError, match="cut off"):
                run_rounds(folders, run)
        begun = folder / "stages" / stage
        assert begun.is_dir() and not (begun / "done.json").exists()
        assert place != "fit" or (begun / "checkpoints" / "3").is_dir()
    assert run_rounds(folders, run)
    assert_same(folders, folders_of(run))


def test_a_second_run_repeats_nothing(run):
    folder = pathlib.Path(run.run_dir)
    before = {path: path.stat().st_mtime_ns for path in folder.glob("stages/*/done.json")}
    assert run_rounds(folders_of(run), run)
    assert before == {path: path.stat().st_mtime_ns for path in before}


def with_control(run: AlignRunConfig, control: WeightControl) -> AlignRunConfig:
    weights = WeightConfig(control=control)
    align = dataclasses.replace(
        run.align, num_rounds=1, contrast=dataclasses.replace(run.align.contrast, weights=weights)
    )
    return dataclasses.replace(run, align=align)


def test_controls_share_models_and_scores_and_uniform_weights_are_dpo(run, tmp_path):
    """The same parameters: factors of 1 change at most the order of operations."""
    whole = {"base": run.run_dir, "shared": run.run_dir, "first": run.run_dir}
    dpo = dataclasses.replace(
        run, align=dataclasses.replace(run.align, num_rounds=1, method=MethodConfig())
    )
    cases = {
        "uniform": with_control(run, WeightControl.UNIFORM),
        "shuffled": with_control(run, WeightControl.SHUFFLED),
        "dpo": dpo,
    }
    found = {}
    for name, config in cases.items():
        folders = Folders(**whole, run=str(tmp_path / name))
        assert run_rounds(folders, config)
        found[name] = jax.tree.leaves(
            generators.load(folders, 1, make_mesh(MeshConfig(), jax.devices()[:1]))[1]
        )
        made = {path.name for path in (tmp_path / name / "stages").iterdir()}
        assert not made & set(MODELS)
        assert ("round_1_scores" in made) is (name != "dpo")
    for one, other in zip(found["uniform"], found["dpo"], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    pairs = zip(found["shuffled"], found["dpo"], strict=True)
    assert any(np.abs(one - other).max() > 1e-5 for one, other in pairs)


def test_scores_of_other_codes_and_cut_off_files_are_refused(run, tmp_path):
    folders, folder = copied(run, tmp_path / "other", without="round_1_train")
    path = folder / "stages" / contrast.stage_name(1) / "scores.npz"
    arrays = read_arrays(path, remedy="")
    write_arrays(path, arrays | {"codes": arrays["codes"][::-1]})
    with pytest.raises(DataError, match=r"are of other codes.*remove the round's stage of scores"):
        align.run(folders, run, 1)
    size = path.stat().st_size
    path.write_bytes(bytes(size))
    with pytest.raises(DataError, match=r"scores\.npz' cannot be read .*run the round again"):
        align.run(folders, run, 1)
    path.write_bytes(bytes(100))
    cut_off = rf"scores\.npz' of .* has 100 of its {size} bytes; .*so that the stage is done again"
    with pytest.raises(DataError, match=cut_off):
        align.run(folders, run, 1)
    shutil.rmtree(path.parent)
    with pytest.raises(DataError, match=r"stage 'round_1_scores' .* is not done"):
        align.run(folders, run, 1)


def test_other_models_or_weights_in_the_same_round_are_named(run):
    settings = run.align.contrast
    for changes, stage in (
        ({"share": 0.5}, r"round_1_positive.*share: 0\.25 -> 0\.5"),
        ({"beta": 0.5}, r"round_1_scores.*beta: 1\.0 -> 0\.5"),
    ):
        other = dataclasses.replace(settings, **changes)
        config = dataclasses.replace(run, align=dataclasses.replace(run.align, contrast=other))
        with pytest.raises(ConfigError, match=stage):
            contrast.run(folders_of(run), config, 1)
    with pytest.raises(ConfigError, match=r"weights\.control: .*none.* -> .*constant"):
        align.run(folders_of(run), with_control(run, WeightControl.CONSTANT), 1)


def test_a_method_without_weights_does_not_depend_on_how_they_are_made(run):
    """Its runs from before there were any go on, and no stage of theirs is asked for."""
    dpo = dataclasses.replace(run.align, method=MethodConfig())
    config = dataclasses.replace(run, align=dpo)
    assert contrast.run(Folders(base="", shared="", first="", run=""), config, 1)
    other = dataclasses.replace(dpo, contrast=dataclasses.replace(dpo.contrast, beta=3.0))
    parts = [
        align._parts(folders_of(run), dataclasses.replace(run, align=one), 1)
        for one in (dpo, other)
    ]
    assert parts[0] == parts[1] and set(parts[0]) == {"align", "seed", "start", "groups"}
    assert "contrast" not in parts[0]["align"]
