"""The captured state of an environment: it goes on as the one that it was taken from."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from probes import make_env, make_policy

from rlopt import checkpoint
from rlopt.env_state import UnknownStateError, capture, restore, unknown_state
from rlopt.rollout import StepRollout

CAPTURED = [
    ("CartPole-v1", "vector_entry_point"),
    ("CartPole-v1", "sync"),
    ("Pendulum-v1", "sync"),
    ("Acrobot-v1", "sync"),
    ("MountainCarContinuous-v0", "sync"),
    ("FrozenLake-v1", "sync"),
    ("Taxi-v4", "sync"),
    ("Counting-v0", "vector_entry_point"),
    ("RandomLength-v0", "sync"),
    ("Sharing-v0", "sync"),
]


class Sharing(gym.Env):
    """One generator, list and array under two names each, changed in place by the other name."""

    def __init__(self):
        self.observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float64)
        self.action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.random = self.np_random
        self.x = self.also_x = np.zeros(3)
        self.history = {"visits": [0]}
        self.visits = self.history["visits"]
        self.last = (np.float32(0.1), np.int64(3), None, "text")
        return self.x.copy(), {}

    def step(self, action):
        self.also_x += [action, self.random.random(), self.np_random.normal()]
        self.visits.append(len(self.visits))
        return self.x.copy(), float(self.history["visits"][-1]), len(self.visits) > 9, False, {}


gym.register("Sharing-v0", entry_point=Sharing)


def play(env, rows, seed):
    """What `rows` steps of actions by seed give."""
    env.action_space.seed(seed)
    return [[np.array(x) for x in env.step(env.action_space.sample())[:4]] for _ in range(rows)]


@pytest.mark.parametrize(("env_id", "backend"), CAPTURED)
def test_a_restored_environment_goes_on_bitwise(env_id, backend, tmp_path):
    limit = {} if env_id == "Counting-v0" else {"max_episode_steps": 20}
    env, other = (make_env(env_id, 3, backend, **limit) for _ in range(2))
    env.reset(seed=5)
    play(env, 13, 0)
    checkpoint.save(tmp_path / "it.pt", {"env": capture({"env": env})})
    other.reset(seed=99)
    play(other, 4, 1)
    restore(checkpoint.load(tmp_path / "it.pt")["env"], {"env": other})
    for ours, theirs in zip(play(env, 60, 2), play(other, 60, 2), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)


def test_capturing_changes_nothing_and_shares_no_memory():
    env, other = (make_env("Sharing-v0", 2) for _ in range(2))
    for e in (env, other):
        e.reset(seed=1)
    state = capture({"env": env})
    for ours, theirs in zip(play(env, 30, 2), play(other, 30, 2), strict=True):
        np.testing.assert_array_equal(ours[0], theirs[0])
    assert state == capture({"env": restore(state, {"env": other})["env"]})


@pytest.mark.parametrize(
    ("env_id", "backend", "named"),
    [
        ("CartPole-v1", "async", "env."),
        ("CartPole-v1", "envpool", "_pool"),
        ("LunarLander-v3", "sync", "world"),
    ],
)
def test_a_state_that_is_no_plain_data_is_named(env_id, backend, named):
    pytest.importorskip({"envpool": "envpool", "sync": "Box2D"}.get(backend, "gymnasium"))
    env = make_env(env_id, 2, backend)
    assert named in unknown_state(env)
    env.close()


def test_arrays_that_share_memory_are_refused_not_torn_apart():
    x = np.zeros(4)
    with pytest.raises(UnknownStateError, match="b shares memory"):
        capture({"a": x[:2], "b": x})


@pytest.mark.parametrize("order", ["C", "F"])
def test_an_array_keeps_type_shape_layout_and_bits(order):
    x = np.array([[0.1, np.nan, -0.0], [1e-310, np.inf, 3.0]], order=order)
    for array in (x, x.astype(np.float16), x > 0, np.array(["ab", "c"]), np.zeros((0, 2))):
        y = restore(capture([array]), None)[0]
        assert (y.dtype, y.shape, y.strides) == (array.dtype, array.shape, array.strides)
        assert y.tobytes() == array.tobytes()
        assert y.flags.writeable


def test_the_state_of_a_torch_tensor_is_not_guessed_at():
    with pytest.raises(UnknownStateError, match="torch"):
        capture({"x": torch.zeros(1)})


def without_classes(state):
    """A captured state as older versions wrote it: an object did not say what it is of."""
    if not isinstance(state, list):
        return state
    kind, *content = state if state else [None]
    return [kind, content[0]] if kind == "object" else [without_classes(x) for x in state]


def test_the_state_of_another_class_is_refused():
    """Of an older version, say, which put other wrappers around the environments."""
    env = make_env("Counting-v0", 2)
    env.reset(seed=0)
    state = capture({"env": env})
    env.envs = [inner.env for inner in env.envs]
    with pytest.raises(UnknownStateError, match=r"can't take .* of a rlopt\.contr"):
        restore(state, {"env": env})


def test_a_resume_from_the_state_of_an_older_version_starts_new_episodes(caplog):
    env = make_env("Counting-v0", 2)
    policy = make_policy(env)
    sampler = StepRollout(env, "cpu", seed=3, num_steps=4)
    sampler.collect(policy)
    state = sampler.state_dict()
    other = StepRollout(env, "cpu", seed=3, num_steps=4)
    other.load_state_dict(state | {"recorder": without_classes(state["recorder"])})
    assert "this resume starts new episodes" in caplog.text
    assert "an older version of rlopt" in caplog.text
    assert other.recorder.needs_reset
    assert other.collect(policy).step[0].tolist() == [0, 0]
