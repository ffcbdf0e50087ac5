"""Atari: the standard preprocessing, our contract of rows, real scores in evaluation."""

import importlib.util
import sys

import numpy as np
import pytest
from probes import compose_config, make_env
from test_train_script import run_here, train

from rlopt import load
from rlopt.build import make_env as make_configured_env
from rlopt.build import make_trainer
from rlopt.config import ConfigError
from rlopt.envs import find_spec

FRAME = 84 * 84
OTHERS = {"stack_num": 2, "frameskip": 3, "img_height": 60, "img_width": 50, "grayscale": False}
PLAIN = {"noop_max": 0, "repeat_action_probability": 0.0}


needs_ale = pytest.mark.skipif(importlib.util.find_spec("ale_py") is None, reason="needs ale-py")


def play(env, rows, seed=0):
    """What `rows` steps of random actions give; observations first."""
    obs = [env.reset(seed=seed)[0].copy()]
    env.action_space.seed(seed)
    steps = []
    for _ in range(rows):
        x, *step, _ = env.step(env.action_space.sample())
        obs.append(np.array(x))
        steps.append([np.array(y) for y in step])
    return np.stack(obs), *map(np.stack, zip(*steps, strict=True))


@needs_ale
def test_the_rows_are_those_of_next_step_autoreset():
    """Random play loses Breakout's five lives in some 200 steps."""
    env = make_env("ALE/Breakout-v5", 2, "auto")
    assert env.single_observation_space.shape == (4 * FRAME,)
    obs, reward, terminated, truncated = play(env, 300)
    assert obs.dtype == env.observation_space.dtype == np.uint8
    assert env.observation_space.contains(obs[-1])
    rows, envs = np.nonzero(terminated[:-1])
    assert len(rows) >= 2
    assert not truncated.any()
    assert not terminated[rows + 1, envs].any()
    assert not reward[rows + 1, envs].any()
    assert obs[rows, envs, :FRAME].any(axis=-1).all()
    assert not obs[rows + 2, envs, : 3 * FRAME].any()  # a fresh stack, of one frame
    assert set(np.unique(reward)) == {0, 1}
    env.close()


@needs_ale
def test_a_seed_determines_every_row():
    env, other = (make_env("ALE/Pong-v5", 1, "auto") for _ in range(2))
    first = play(env, 20)
    for again in (other, env):
        for a, b in zip(first, play(again, 20), strict=True):
            np.testing.assert_array_equal(a, b)
    assert (play(env, 20, seed=7)[0] != first[0]).any()


@needs_ale
@pytest.mark.parametrize("settings", [{}, pytest.param(OTHERS, marks=pytest.mark.slow)])
def test_a_single_game_is_one_of_the_vectors(settings):
    pytest.importorskip("cv2")
    kwargs = {**PLAIN, "reward_clipping": False, **settings}
    vector, single = (make_env("ALE/Breakout-v5", 1, x, **kwargs) for x in ("auto", "sync"))
    assert vector.observation_space == single.observation_space
    ours, theirs = play(vector, 240), play(single, 240)
    for a, b in zip(ours[1:], theirs[1:], strict=True):
        np.testing.assert_array_equal(a, b)
    difference = ours[0].astype(int) - theirs[0]
    assert abs(difference).max() <= 2  # two builds of OpenCV round apart
    assert (difference != 0).mean() < 1e-3
    assert ours[2].any()  # a game has ended, and begun again


@needs_ale
@pytest.mark.parametrize("backend", ["vector_entry_point", "sync"])
def test_max_episode_steps_counts_decisions_not_frames(backend):
    env = make_env("ALE/Pong-v5", 1, backend, max_episode_steps=5, frameskip=3)
    _, _, terminated, truncated = play(env, 12)
    assert not terminated.any()
    assert np.flatnonzero(truncated).tolist() == [4, 10]


@needs_ale
def test_evaluation_counts_the_games_own_score():
    cfg = compose_config("env=ALE/MsPacman-v5", "env.num_envs=1")
    envs = [make_configured_env(cfg, evaluation) for evaluation in (False, True)]
    assert [play(env, 100)[1].max() for env in envs] == [1, 10]  # a dot


@needs_ale
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("env.kwargs.framskip=3", "framskip"),
        ("env.kwargs.life_loss_info=true", "kwargs.life_loss_info is not supported"),
        ("env.kwargs.batch_size=1", "kwargs.batch_size is not supported"),
    ],
)
@pytest.mark.parametrize("backend", ["auto", "sync"])
def test_settings_that_do_not_suit_are_named(setting, message, backend, tmp_path):
    cfg = compose_config("env=ALE/Pong-v5", f"env.backend={backend}", setting)
    with pytest.raises(ConfigError, match=message) as caught:
        make_trainer(cfg, tmp_path)
    assert "\n" not in str(caught.value)


@needs_ale
@pytest.mark.parametrize(
    "name", ["PongNoFrameskip-v4", "Pong-v0", "Pong-v5", "Pong-ramDeterministic-v4"]
)
def test_an_old_name_is_answered_with_the_present_one(name):
    with pytest.raises(ValueError, match=f"^env={name} is an old name: write env=ALE/Pong-v5$"):
        find_spec(name)


@needs_ale
def test_a_misspelt_game_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean ALE/Pong-v5"):
        find_spec("ALE/Pongg-v5")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(ValueError, match=r"^env=ALE/Pong-v5 needs .*pip install -e '\.\[atari\]'$"):
        find_spec("ALE/Pong-v5")
    with pytest.raises(ValueError, match=r"write env=ALE/Pong-v5$"):
        find_spec("PongNoFrameskip-v4")


@needs_ale
@pytest.mark.slow
def test_a_run_is_evaluated_drawn_and_loaded(tmp_path):
    pytest.importorskip("moviepy")
    pytest.importorskip("cv2")
    run = train(tmp_path / "run", "env=ALE/Breakout-v5", "env.max_episode_steps=60")
    code, out = run_here("evaluate.py", f"run={run}", "episodes=2", "video=true")
    assert code is None, out
    assert len(list((run / "videos").glob("*.mp4"))) == 1
    policy = load(run)
    env = policy.make_env()
    assert policy(env.reset(seed=0)[0]) in env.action_space
    assert env.observation_space == policy.observation_space
