import importlib.util

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from probes import MATCHES, PROBES, TWO_ACTIONS, UNIT_ACTIONS, make_env

from rlopt.envs import derive_seed, fastest_backend, find_spec, make_vector_env

HAS_ENVPOOL = importlib.util.find_spec("envpool") is not None
needs_envpool = pytest.mark.skipif(not HAS_ENVPOOL, reason="needs envpool")
ENVPOOL = pytest.param("envpool", marks=needs_envpool)
BACKENDS = ["sync", "async", "vector_entry_point", ENVPOOL]


def zeros(env):
    return np.zeros_like(env.action_space.sample())


def first_obs(env, seed=None):
    return env.reset(seed=seed)[0].copy()


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_offers_the_same_interface(backend):
    env = make_env("CartPole-v1", num_envs=3, backend=backend)
    assert env.num_envs == 3
    assert env.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    assert env.single_observation_space.shape == (4,)
    assert env.single_action_space == spaces.Discrete(2)
    assert env.reset(seed=0)[0].shape == (3, 4)
    obs, reward, terminated, truncated, _ = env.step(np.zeros(3, np.int64))
    assert obs.shape == (3, 4)
    assert reward.shape == terminated.shape == truncated.shape == (3,)
    env.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_max_episode_steps_reaches_the_environment_and_truncates(backend):
    env = make_env("CartPole-v1", backend=backend, max_episode_steps=5)
    env.reset(seed=0)
    ends = [env.step(np.full(2, t % 2))[2:4] for t in range(12)]
    assert not any(terminated.any() for terminated, _ in ends)
    assert [t for t, (_, truncated) in enumerate(ends) if truncated.all()] == [4, 10]
    assert sum(truncated.any() for _, truncated in ends) == 2
    env.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_fallen_pole_is_terminated_and_not_truncated(backend):
    env = make_env("CartPole-v1", num_envs=1, backend=backend)
    env.reset(seed=0)
    ends = [env.step(np.ones(1, np.int64))[2:4] for _ in range(20)]
    assert sum(terminated.any() for terminated, _ in ends) >= 1
    assert not any(truncated.any() for _, truncated in ends)
    env.close()


@pytest.mark.parametrize("backend", ["sync", ENVPOOL])
def test_pendulums_end_is_a_truncation(backend):
    env = make_env("Pendulum-v1", backend=backend)
    env.reset(seed=0)
    for _ in range(200):
        _, _, terminated, truncated, _ = env.step(zeros(env))
        assert not terminated.any()
    assert truncated.all()
    env.close()


@pytest.mark.parametrize(
    ("env_id", "backend", "kwargs", "field"),
    [
        ("Pendulum-v1", "sync", {"g": 3.0}, "g"),
        ("Pendulum-v1", "async", {"g": 3.0}, "g"),
        ("CartPole-v1", "vector_entry_point", {"sutton_barto_reward": True}, None),
        pytest.param("HalfCheetah-v4", "envpool", {"reset_noise_scale": 0.0}, None),
    ],
)
def test_kwargs_reach_the_environment(env_id, backend, kwargs, field):
    if backend == "envpool":
        pytest.importorskip("envpool")
    env = make_env(env_id, backend=backend, **kwargs)
    obs = first_obs(env, seed=0)
    if field is not None:
        assert env.get_attr(field) == (3.0, 3.0)
    elif backend == "envpool":
        assert (obs[0] == obs[1]).all()
    else:
        assert (env.step(np.zeros(2, np.int64))[1] == 0).all()
    env.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_unknown_kwargs_are_named(backend):
    with pytest.raises(ValueError, match="gravitas"):
        make_env("CartPole-v1", backend=backend, gravitas=1.0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_seeded_reset_is_reproducible_and_seeds_differ(backend):
    env = make_env("CartPole-v1", num_envs=3, backend=backend)
    first = first_obs(env, seed=5)
    env.step(np.zeros(3, np.int64))
    other, again = first_obs(env, seed=6), first_obs(env, seed=5)
    assert (first == again).all()
    assert (first != other).any()
    assert len(np.unique(first, axis=0)) == 3
    env.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_unseeded_resets_go_on_in_the_seeds_stream(backend):
    def three_resets(seed):
        env = make_env("CartPole-v1", backend=backend)
        obs = [first_obs(env, seed), first_obs(env), first_obs(env)]
        env.close()
        return np.stack(obs)

    assert (three_resets(1) == three_resets(1)).all()
    assert len(np.unique(three_resets(1).reshape(6, -1), axis=0)) == 6
    assert (three_resets(1) != three_resets(2)).any(axis=-1).all()


@needs_envpool
def test_envpool_replays_a_seed_over_episodes_ends():
    env = make_env("CartPole-v1", backend="envpool")

    def run():
        return [first_obs(env, 3)] + [env.step(np.ones(2, np.int64))[0].copy() for _ in range(30)]

    assert (np.stack(run()) == np.stack(run())).all()
    env.close()


@needs_envpool
def test_envpool_mid_episode_reset_starts_fresh_episodes():
    env = make_env("CartPole-v1", backend="envpool", max_episode_steps=4)
    env.reset(seed=0)
    for _ in range(3):
        env.step(np.zeros(2, np.int64))
    env.reset()
    ends = [env.step(np.full(2, t % 2))[3] for t in range(4)]
    assert [end.all() for end in ends] == [False, False, False, True]
    env.close()


def test_fastest_backend_prefers_an_environments_own_vector_version():
    assert fastest_backend("CartPole-v1", {}) == "vector_entry_point"
    assert fastest_backend("CartPole-v1", {"sutton_barto_reward": True}) == "sync"  # not compared


def test_fastest_backend_is_sync_for_ones_own_environment():
    assert fastest_backend("RandomLength-v0", {}) == "sync"


def test_fastest_backend_without_envpool_is_sync(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert fastest_backend("Pendulum-v1", {}) == "sync"


DROPPED = pytest.mark.parametrize("env_id", ["Walker2d-v3", "Hopper-v3"])


@DROPPED
def test_an_environment_that_gymnasium_dropped_is_a_value_error(env_id):
    with pytest.raises(ValueError, match=env_id):
        make_env(env_id, backend="sync")


@needs_envpool
@DROPPED
def test_envpool_may_have_what_gymnasium_dropped(env_id):
    with pytest.raises(ValueError, match=f"EnvPool has a {env_id}, use env.backend=envpool"):
        make_env(env_id, backend="auto")
    assert make_env(env_id, backend="envpool").single_observation_space.shape in [(17,), (11,)]


def test_missing_envpool_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"\.\[envpool\]"):
        make_env("Pendulum-v1", backend="envpool")


@pytest.mark.parametrize(
    ("env_id", "suggestion"),
    [
        ("CartPole", "CartPole-v1"),
        ("CartPol-v1", "CartPole-v1"),
        ("cartpole-v1", "CartPole-v1"),
        ("Pendulum-v9", "Pendulum-v1"),
    ],
)
def test_unknown_id_suggests_the_nearest(env_id, suggestion):
    with pytest.raises(ValueError, match=f"env={env_id}: .*did you mean .*{suggestion}"):
        find_spec(env_id)


@pytest.mark.parametrize("env_id", ["no_such_package:Env-v0", "xqzjkw"])
def test_hopeless_id_is_named(env_id):
    with pytest.raises(ValueError, match=f"env={env_id}"):
        make_env(env_id)


def test_an_id_may_name_the_module_to_import():
    assert find_spec("probes:Counting-v0").id == "Counting-v0"
    assert make_env("probes:Counting-v0").single_observation_space.shape == (2,)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Text(3),
        spaces.Box(0, 5, (2,), np.int64),
        spaces.Tuple([TWO_ACTIONS, spaces.Sequence(TWO_ACTIONS)]),
    ],
    ids=lambda space: type(space).__name__,
)
def test_unsupported_actions_are_named(space):
    with pytest.raises(ValueError, match=r"WithSpaces-v0.*actions .* not supported"):
        make_env("WithSpaces-v0", action_space=space)


@pytest.mark.parametrize("space", [spaces.Graph(UNIT_ACTIONS, None), spaces.Sequence(UNIT_ACTIONS)])
def test_unsupported_observations_are_named(space):
    with pytest.raises(ValueError, match=r"WithSpaces-v0.*observations .* not supported"):
        make_env("WithSpaces-v0", observation_space=space)


@pytest.mark.parametrize(
    ("space", "size"),
    [
        (spaces.Discrete(4), 4),
        (spaces.MultiDiscrete([2, 3]), 5),
        (spaces.Box(0, 255, (2, 3), np.uint8), 6),
        (spaces.Dict(a=spaces.Discrete(3), b=spaces.Box(-1.0, 1.0, (2,))), 5),
        (spaces.Tuple([spaces.Discrete(3), spaces.Discrete(2)]), 5),
    ],
    ids=["Discrete", "MultiDiscrete", "image", "Dict", "Tuple"],
)
def test_observations_become_flat_boxes(space, size):
    env = make_env("WithSpaces-v0", num_envs=3, observation_space=space)
    assert isinstance(env.single_observation_space, spaces.Box)
    assert env.single_observation_space.shape == (size,)
    assert first_obs(env, seed=0).shape == (3, size)
    assert env.step(np.zeros(3, np.int64))[0].shape == (3, size)


@pytest.mark.parametrize("backend", ["sync", ENVPOOL])
def test_discrete_observations_become_one_hot(backend):
    env = make_env("FrozenLake-v1", num_envs=3, backend=backend)
    assert (first_obs(env, seed=0) == np.eye(16)[[0, 0, 0]]).all()
    env.close()


OUR_ENVS = [
    "RandomLength",
    "Echo",
    "Bytes",
    "Spot",
    *(f"Match{name}" for name in MATCHES),
    *(f"{c.__name__}" for c in PROBES),
]


@pytest.mark.filterwarnings("ignore::UserWarning:gymnasium")
@pytest.mark.parametrize("name", OUR_ENVS)
def test_the_toy_environments_pass_gymnasiums_checker(name):
    check_env(gym.make(f"{name}-v0").unwrapped, skip_render_check=True)


PROMISES = [  # single environments pass Gymnasium's checker; it has none for vectors
    ("CartPole-v1", "vector_entry_point", False),
    ("FrozenLake-v1", "sync", False),
    ("Blackjack-v1", "async", False),
    ("Taxi-v4", "sync", True),
    ("MatchMaskKey-v0", "sync", False),
    ("MatchDict-v0", "sync", False),
    ("Spot-v0", "sync", False),
    pytest.param("CartPole-v1", "envpool", False, marks=needs_envpool),
    pytest.param("FrozenLake-v1", "envpool", False, marks=needs_envpool),
    pytest.param("HalfCheetah-v4", "envpool", False, marks=needs_envpool),
]


@pytest.mark.parametrize(("env_id", "backend", "mask"), PROMISES)
def test_a_vector_environment_gives_what_its_spaces_say(env_id, backend, mask):
    env = make_env(env_id, 3, backend, action_mask=mask)
    space = env.observation_space
    assert batch_space(env.single_observation_space, 3) == space
    assert batch_space(env.single_action_space, 3) == env.action_space
    assert space.shape == (3, *env.single_observation_space.shape)
    obs, info = env.reset(seed=0)
    assert isinstance(info, dict)
    for _ in range(12):
        assert obs.dtype == space.dtype
        assert space.contains(obs)
        obs, reward, terminated, truncated, info = env.step(env.action_space.sample())
        assert reward.dtype.kind in "fi"
        assert terminated.dtype == truncated.dtype == bool
        assert reward.shape == terminated.shape == truncated.shape == (3,)
    env.close()


def test_another_autoreset_mode_is_refused(monkeypatch):
    env = gym.make_vec("CartPole-v1", num_envs=1)
    monkeypatch.setitem(env.unwrapped.metadata, "autoreset_mode", AutoresetMode.SAME_STEP)
    monkeypatch.setattr(gym, "make_vec", lambda *args, **kwargs: env)
    with pytest.raises(ValueError, match="NEXT_STEP"):
        make_env("CartPole-v1")


@pytest.mark.parametrize(
    ("setting", "value"),
    [("num_envs", 0), ("backend", "threads"), ("max_episode_steps", 0)],
)
def test_wrong_settings_are_named(setting, value):
    settings = {"num_envs": 1, "backend": "sync", "max_episode_steps": None, "kwargs": {}}
    with pytest.raises(ValueError, match=f"{setting} .*{value}"):
        make_vector_env("CartPole-v1", **(settings | {setting: value}))


@pytest.mark.parametrize(
    ("env_id", "backend"), [("RandomLength-v0", "vector_entry_point"), ("Counting-v0", "envpool")]
)
def test_a_backend_that_does_not_know_the_id_says_so(env_id, backend):
    if backend == "envpool":
        pytest.importorskip("envpool")
    with pytest.raises(ValueError, match=f"{backend}.*{env_id}.*backend=auto"):
        make_env(env_id, backend=backend)


def test_derived_seeds_and_the_environments_after_them_do_not_overlap():
    """A vector environment takes seed, seed + 1, ...: 64 each of 100 seeds' two streams."""
    seeds = sorted(derive_seed(seed, stream) for seed in range(100) for stream in range(2))
    assert min(np.diff(seeds)) > 64
    assert seeds[0] >= 0
    assert seeds[-1] < 2**31


def test_derived_seeds_are_stable():
    assert derive_seed(3, 1) == derive_seed(3, 1)
    assert derive_seed(3, 1) != derive_seed(1, 3)
