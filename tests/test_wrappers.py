"""env.wrappers: around every environment of a run, the same after a resume; mistakes are a line."""

import gymnasium as gym
import numpy as np
import pytest
from omegaconf import OmegaConf
from probes import CONFIGS, compose_config, make_env
from test_env_state import play
from test_train_script import run_here, train

from rlopt import checkpoint, load
from rlopt.build import make_env as make_configured_env
from rlopt.build import make_trainer
from rlopt.config import ConfigError
from rlopt.env_state import capture, restore

WRAPPERS = "gymnasium.wrappers"


def listed(*wrappers):
    """The override that the command line gives: names with their settings."""
    items = (
        f"{{_target_: {name}{''.join(f', {s}' for s in settings)}}}" for name, *settings in wrappers
    )
    return f"env.wrappers=[{', '.join(items)}]"


def configured(env_id, *wrappers, evaluation=False, overrides=()):
    cfg = compose_config(f"env={env_id}", "env.num_envs=2", listed(*wrappers), *overrides)
    return make_configured_env(cfg, evaluation)


def test_wrappers_are_applied_in_order_with_lists_as_tuples():
    """An action of 1 is the torque 2; the flat observation is stacked, then reshaped."""
    env = configured(
        "Pendulum-v1",
        (f"{WRAPPERS}.RescaleAction", "min_action: -1", "max_action: 1"),
        (f"{WRAPPERS}.FrameStackObservation", "stack_size: 3"),
        (f"{WRAPPERS}.ReshapeObservation", "shape: [9]"),
    )
    assert env.single_action_space == gym.spaces.Box(-1, 1, (1,))
    plain = make_env("Pendulum-v1")
    obs, expected = env.reset(seed=3)[0], plain.reset(seed=3)[0]
    np.testing.assert_array_equal(obs, np.tile(expected, 3))
    half = np.full((2, 1), 0.5, np.float32)
    newest, expected = env.step(half)[0][:, 6:], plain.step(2 * half)[0]
    np.testing.assert_allclose(newest, expected, rtol=1e-6)


def test_nested_targets_are_made_too():
    negative = "func: {_target_: hydra.utils.get_method, path: numpy.negative}"
    env = configured("CartPole-v1", (f"{WRAPPERS}.TransformReward", negative))
    env.reset(seed=0)
    assert env.step(np.zeros(2, np.int64))[1].tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("wrapper", "reward"),
    [
        ((f"{WRAPPERS}.ClipReward", "max_reward: 0.25"), 0.25),
        ((f"{WRAPPERS}.NormalizeReward", "gamma: 0.9"), None),
    ],
)
def test_evaluation_is_without_wrappers_of_the_reward(wrapper, reward):
    time = (f"{WRAPPERS}.TimeAwareObservation",)
    for evaluation in (False, True):
        env = configured("CartPole-v1", wrapper, time, evaluation=evaluation)
        assert env.single_observation_space.shape == (5,)
        env.reset(seed=0)
        given = env.step(np.zeros(2, np.int64))[1]
        assert (given == 1).all() == evaluation
        assert evaluation or reward is None or (given == reward).all()


MISTAKES = [
    ("env.wrappers=[RescaleAction]", r"env\.wrappers\[0\] must be \{_target_: <class>"),
    (listed(("no_such.Wrapper",)), r"env\.wrappers\[0\]\._target_=no_such\.Wrapper: there is no"),
    (
        listed((f"{WRAPPERS}.TimeLimit", "max_episode_steps: 9"), (f"{WRAPPERS}.RescaleAction",)),
        r"env\.wrappers\[1\] can't wrap Box.*missing 2 required positional arguments: 'min_action'",
    ),
    (
        listed((f"{WRAPPERS}.TimeLimit", "max_steps: 9")),
        r"env\.wrappers\[0\]\.max_steps is no setting of TimeLimit: .*max_episode_steps",
    ),
    (listed((f"{WRAPPERS}.AtariPreprocessing",)), r"env\.wrappers\[0\] can't wrap"),
    (listed(("builtins.id",)), r"env\.wrappers\[0\] is no wrapper: it returns \d+"),
    (
        listed((f"{WRAPPERS}.NormalizeObservation",)),
        r"env\.wrappers\[0\]: NormalizeObservation .*policy\.normalize_obs=true",
    ),
    (listed(("test_wrappers.Spoken",)), r"env=Pendulum-v1: observations Text.* not supported"),
]


class Spoken(gym.ObservationWrapper):
    """Observations that no policy here takes."""

    def __init__(self, env):
        super().__init__(env)
        self.observation_space = gym.spaces.Text(3)


@pytest.mark.parametrize(("override", "message"), MISTAKES)
def test_mistakes_are_one_line_before_training(override, message, tmp_path):
    with pytest.raises(ConfigError, match=message) as caught:
        make_trainer(compose_config("env=Pendulum-v1", override), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("backend", ["envpool", "vector_entry_point"])
def test_backends_without_single_environments_refuse_wrappers(backend):
    with pytest.raises(ConfigError, match=rf"env\.backend {backend} can't have wrappers.*sync"):
        configured(
            "CartPole-v1",
            (f"{WRAPPERS}.TimeAwareObservation",),
            overrides=[f"env.backend={backend}"],
        )


STATEFUL = [
    [(f"{WRAPPERS}.TimeAwareObservation",), (f"{WRAPPERS}.NormalizeReward",)],
    [
        (f"{WRAPPERS}.FrameStackObservation", "stack_size: 3"),
        (f"{WRAPPERS}.RecordEpisodeStatistics",),
    ],
    [
        (f"{WRAPPERS}.DelayObservation", "delay: 2"),
        (f"{WRAPPERS}.StickyAction", "repeat_action_probability: 0.3"),
    ],
]


@pytest.mark.parametrize("wrappers", STATEFUL, ids=lambda w: w[0][0].rpartition(".")[2])
def test_the_state_of_wrappers_is_captured_bitwise(wrappers, tmp_path):
    env, other = (configured("CartPole-v1", *wrappers) for _ in range(2))
    env.reset(seed=5)
    play(env, 30, 0)
    checkpoint.save(tmp_path / "it.pt", {"env": capture({"env": env})})
    other.reset(seed=99)
    play(other, 4, 1)
    restore(checkpoint.load(tmp_path / "it.pt")["env"], {"env": other})
    for ours, theirs in zip(play(env, 60, 2), play(other, 60, 2), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_run_with_wrappers_is_evaluated_loaded_and_drawn_alike(tmp_path):
    wrappers = listed(
        (f"{WRAPPERS}.RescaleAction", "min_action: -1", "max_action: 1"),
        (f"{WRAPPERS}.NormalizeReward",),
        (f"{WRAPPERS}.TimeAwareObservation",),
    )
    run = train(tmp_path / "run", "env=Pendulum-v1", wrappers, "eval.final_episodes=3")
    code, out = run_here("evaluate.py", f"run={run}", "episodes=3")
    assert code is None, out
    assert float(out.split("return mean ")[1].split()[0]) < -30  # torques' costs, not standardised
    policy = load(run)
    env = policy.make_env()
    assert env.observation_space == policy.observation_space
    assert env.observation_space.shape == (4,)
    assert env.action_space.high == 1
    obs, _ = env.reset(seed=0)
    assert policy(obs) in env.action_space


def test_the_env_file_that_the_readme_shows(tmp_path):
    pytest.importorskip("Box2D")
    pytest.importorskip("cv2")
    text = (CONFIGS / "env" / "README.md").read_text()
    lines = [line.removeprefix("    ") for line in text.splitlines() if line.startswith("    ")]
    cfg = compose_config("env=CarRacing-v3")
    cfg.env = OmegaConf.merge(cfg.env, OmegaConf.create("\n".join(lines)), {"num_envs": 1})
    env = make_configured_env(cfg)
    assert env.unwrapped.single_observation_space.shape == (4, 64, 64)
    obs, _ = env.reset(seed=0)
    assert obs.dtype == np.uint8
    assert env.observation_space.contains(obs)
    assert obs[0].reshape(4, 64, 64).std() > 10  # a picture
    env.close()
