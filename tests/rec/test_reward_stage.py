"""The stage end to end: it learns a planted rule, loads to the same scores, refuses bad input."""

import dataclasses
import json
import shutil

import numpy as np
import polars as pl
import pytest

from core_jax.errors import CheckpointError, ConfigError, DataError
from core_jax.loop import LoopConfig
from core_jax.mesh import MeshConfig, make_mesh
from rec_jax.data.own_logs import OwnLogConfig
from rec_jax.presets import demo_tiny
from rec_jax.reward import judgement
from rec_jax.reward.config import (
    FusionConfig,
    RewardArchitecture,
    RewardConfig,
    TargetConfig,
    TargetKind,
)
from rec_jax.reward.fusion import fuse
from rec_jax.reward.presets import held_out_judge, kuairand_like_hate, short_video, training_judge
from rec_jax.reward.score import score_sessions
from rec_jax.reward.sessions import histories, in_fold
from rec_jax.stages import prepare, reward, tokenize
from tests.rec.reward_cases import NUM_ITEMS, REQUESTS, as_log, delivered_frame, reward_config

MESH = MeshConfig()


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    """A run with the stages prepare and tokenize, of a log whose likes follow a rule."""
    root = tmp_path_factory.mktemp("base")
    log = as_log(delivered_frame(num_users=61, rule=True))
    log.interactions.drop("row").write_parquet(root / "log.parquet")
    log.items.write_parquet(root / "items.parquet")
    return prepared(root, str(root / "run"))


def prepared(root, run_dir: str, seed: int = 0) -> str:
    preset = demo_tiny()
    config = dataclasses.replace(
        preset,
        run_dir=run_dir,
        seed=seed,
        log=OwnLogConfig(path=str(root / "log.parquet"), items_path=str(root / "items.parquet")),
        sessions=REQUESTS,
        model=dataclasses.replace(preset.model, session_items=5),
        semantic_ids=dataclasses.replace(preset.semantic_ids, level_sizes=(7 + seed, 5)),
        embeddings=dataclasses.replace(preset.embeddings, text_weight=0.5),
    )
    prepare.run(config)
    tokenize.run(config)
    return run_dir


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory) -> str:
    """Trained for a few steps, in a run folder of its own."""
    run_dir = str(tmp_path_factory.mktemp("reward"))
    assert reward.run(run_dir, base, reward_config(user_folds=2, user_fold=1), mesh=MESH)
    return run_dir


@pytest.mark.long
def test_a_planted_rule_is_learned(base, tmp_path):
    """Users like items of their own parity, and items below 10 are watched for long."""
    loop = LoopConfig(num_steps=120, log_every=40, evaluate_every=40)
    config = reward_config(loop=loop, user_folds=2, user_fold=1)
    assert reward.run(str(tmp_path), base, config, mesh=MESH)
    folder = reward.stage_folder(tmp_path, "reward")
    records = json.loads((folder / "quality.json").read_text())
    found = {(one["head"], one["users"], one["predictor"]): one for one in records}
    assert {users for _, users, _ in found} == {"own fold", "all users"}
    for head in ("swt", "ltr"):
        for users in ("own fold", "all users"):
            assert found[head, users, "model"]["auc"] > 0.9
            assert (
                found[head, users, "model"]["log_loss"]
                < (found[head, users, "model"]["constant_log_loss"])
            )
    assert "logistic regression" in {predictor for *_, predictor in found}
    assert "swt, own fold, model" in (folder / "quality.txt").read_text()


def test_a_loaded_model_gives_the_scores_that_the_stage_measured(base, trained):
    mesh = make_mesh(MESH)
    model = reward.load(trained, base, mesh)
    data = reward.load_data(trained, base)
    held_out = ~data.is_train
    history = histories(data, 11)[held_out]
    scores = score_sessions(model, history, data.items[held_out][:, None], mesh=mesh)
    assert scores.shape == (held_out.sum(), 1, 2)
    assert scores.dtype == np.float32
    records = json.loads((reward.stage_folder(trained, "reward") / "quality.json").read_text())
    for place, head in enumerate(model.names):
        kept = data.labels.mask[held_out, place]
        label = data.labels.values[held_out, place][kept].astype(np.float64)
        value = judgement.auc(judgement.classes(label), scores[kept, 0, place].astype(np.float64))
        recorded = [
            one["auc"]
            for one in records
            if (one["head"], one["users"], one["predictor"]) == (head, "all users", "model")
        ]
        assert recorded == [pytest.approx(value, abs=1e-6)]
    fused = fuse(model.fusion, scores)
    assert fused.shape == (held_out.sum(), 1)
    assert np.isfinite(fused).all()
    again = reward.load(trained, base, mesh)
    assert again.fingerprint == model.fingerprint


def test_scores_do_not_depend_on_batches_or_padding(base, trained):
    mesh = make_mesh(MESH)
    model = reward.load(trained, base, mesh)
    generator = np.random.default_rng(0)
    history = generator.integers(0, NUM_ITEMS, (19, 13)).astype(np.int32)
    sessions = generator.integers(0, NUM_ITEMS, (19, 3, 4)).astype(np.int32)
    whole = score_sessions(model, history, sessions, batch_size=32, mesh=mesh)
    parts = score_sessions(model, history, sessions, batch_size=8, mesh=mesh)
    np.testing.assert_allclose(whole, parts, rtol=1e-5)
    one = score_sessions(model, history[7:8, -11:], sessions[7:8, 1:2])
    np.testing.assert_allclose(one[0, 0], whole[7, 1], rtol=1e-4)
    assert score_sessions(model, history[:0], sessions[:0]).shape == (0, 3, 2)
    assert whole.min() >= 0
    assert whole.max() <= 1


def test_sessions_that_cannot_be_scored(base, trained):
    model = reward.load(trained, base, make_mesh(MESH))
    history = np.full((2, 11), -1, np.int32)
    good = np.zeros((2, 1, 5), np.int32)
    with pytest.raises(DataError, match=r"session of user 1 has item 29, .* ends at item 28"):
        score_sessions(model, history, good + 29 * (np.arange(2) == 1)[:, None, None])
    with pytest.raises(DataError, match=r"history of user 0 has item 31"):
        score_sessions(model, history + 32, good)
    with pytest.raises(DataError, match=r"session 0 of user 0 has no item"):
        score_sessions(model, history, good - 1)
    with pytest.raises(ConfigError, match=r"have 6 items, .* model.session_items to 6"):
        score_sessions(model, history, np.zeros((2, 1, 6), np.int32))
    with pytest.raises(CheckpointError, match="trained on the catalogue"):
        score_sessions(model, history, good, catalogue="another")


def test_another_catalogue_is_refused(base, trained, tmp_path):
    root = reward.stage_folder(base, "prepare").parents[2]
    other = prepared(root, str(tmp_path / "other"), seed=1)
    with pytest.raises(CheckpointError, match=r"trained on the catalogue .* score sessions of its"):
        reward.load(trained, other, make_mesh(MESH))


@pytest.mark.long
def test_only_the_folds_users_train(base, tmp_path):
    """The other fold's labels say nothing: turned over in the log, the parameters stay."""
    config = reward_config(user_folds=2, user_fold=0, targets=reward_config().targets[1:])
    first = tmp_path / "first"
    assert reward.run(str(first), base, config, mesh=MESH)
    log, data = prepare.load(base)
    number = {user: place for place, user in enumerate(data.user_ids)}
    is_other = pl.col("user_id").replace_strict(
        {user: not in_fold(np.array([place]), 0, 2)[0] for user, place in number.items()}
    )
    copy = tmp_path / "copy"
    shutil.copytree(base, copy)
    share = TargetConfig(name="ltr", kind=TargetKind.SHARE, column="other")
    turned = log.interactions.with_columns(
        other=pl.when(is_other).then(~pl.col("like")).otherwise("like")
    )
    turned.write_parquet(reward.stage_folder(copy, "prepare") / "interactions.parquet")
    second = tmp_path / "second"
    assert reward.run(
        str(second), str(copy), dataclasses.replace(config, targets=(share,)), mesh=MESH
    )
    mesh = make_mesh(MESH)
    history = np.tile(np.arange(11, dtype=np.int32), (3, 1))
    session = np.arange(15, dtype=np.int32).reshape(3, 1, 5)
    scores = [
        score_sessions(reward.load(str(run), base, mesh), history, session, mesh=mesh)
        for run in (first, second)
    ]
    np.testing.assert_array_equal(*scores)


@pytest.mark.long
def test_the_judge_is_another_stage_of_the_same_run(base, tmp_path):
    config = dataclasses.replace(
        reward_config(),
        model=dataclasses.replace(
            reward_config().model, architecture=RewardArchitecture.POOLED, p_score=True
        ),
        fusion=FusionConfig(weights=("p_score=1",)),
    )
    assert reward.run(str(tmp_path), base, config, name=reward.JUDGE_NAME, mesh=MESH)
    judge = reward.load(str(tmp_path), base, make_mesh(MESH), name=reward.JUDGE_NAME)
    assert judge.names == ("swt", "ltr", "p_score")
    assert judge.fusion.weights == (0.0, 0.0, 1.0)
    assert reward.run(str(tmp_path), base, config, name=reward.JUDGE_NAME, mesh=MESH)  # done
    with pytest.raises(ConfigError, match="another configuration"):
        reward.run(str(tmp_path), base, dataclasses.replace(config, seed=1), name=reward.JUDGE_NAME)


def test_a_stage_that_cannot_work(base, tmp_path):
    follow = TargetConfig(name="wtr", kind=TargetKind.ANY, column="follow")
    with pytest.raises(ConfigError, match=r"'wtr'.*'follow'"):
        reward.run(str(tmp_path), base, reward_config(targets=(follow,)), mesh=MESH)
    never = TargetConfig(name="ltr", kind=TargetKind.ANY, column="like", threshold=2.0)
    with pytest.raises(DataError, match=r"'ltr' is constant"):
        reward.run(str(tmp_path), base, reward_config(targets=(never,)), mesh=MESH)
    with pytest.raises(DataError, match=r"fold 996 of 997 .* no session is left to train"):
        reward.run(str(tmp_path), base, reward_config(user_folds=997, user_fold=996), mesh=MESH)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"fusion": FusionConfig(weights=("lrt=1",))}, r"'lrt'.*swt, ltr.*mean 'ltr'"),
        ({"targets": ()}, "at least one"),
        ({"user_folds": 2, "user_fold": 2}, "between 0 and 1"),
        ({"valid_share": 0.0}, "valid_share"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_configs_that_cannot_work(values, message):
    with pytest.raises(ConfigError, match=message):
        reward_config(**values)


def test_presets_differ_in_users_architecture_and_seed():
    for preset in (short_video(), kuairand_like_hate()):
        assert isinstance(preset, RewardConfig)
        first, second = training_judge(preset), held_out_judge(preset)
        assert first.user_folds == second.user_folds == 2
        assert first.user_fold != second.user_fold
        assert first.seed != second.seed
        assert first.model.architecture is not second.model.architecture
        assert first.targets == second.targets
