"""`env.backend=auto` trains the environment that was named and nothing else."""

import copy
import importlib.metadata
import re
import sys
import types

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.classic_control import acrobot
from gymnasium.envs.classic_control.cartpole import CartPoleEnv, CartPoleVectorEnv
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import TimeLimit
from probes import compose_config, make_env
from test_train_script import run_here, train

from rlopt import backends, load
from rlopt.build import make_trainer, remarks_on_backend
from rlopt.config import ConfigError
from rlopt.envs import fastest_backend
from rlopt.pristine import is_unchanged

ACROBOT = "gymnasium.envs.classic_control.acrobot:AcrobotEnv"
HAS_ENVPOOL = backends.envpool_env.is_installed()
needs_envpool = pytest.mark.skipif(not HAS_ENVPOOL, reason="needs envpool")


@pytest.fixture(autouse=True)
def versions_that_were_compared(monkeypatch):
    """What is installed does not decide these tests."""
    entries = [entry for ids in backends.comparisons().values() for entry in ids.values()]
    rows = [row for entry in entries for row in entry["compared"]]
    known = {name: version for row in rows for name, version in row["versions"].items()}
    monkeypatch.setattr(backends, "_version", known.get)


@pytest.fixture
def registry(monkeypatch):
    """Gymnasium's registry, which is put back afterwards."""
    monkeypatch.setattr(gym.envs.registration, "registry", copy.deepcopy(gym.registry))
    monkeypatch.setattr(gym, "registry", gym.envs.registration.registry)
    return gym.registry


class Own(gym.Env):
    """A user's environment under a known id: zeros, and 7 for every step."""

    observation_space = spaces.Box(-np.inf, np.inf, (17,), np.float64)
    action_space = spaces.Box(-1, 1, (6,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(17), {}

    def step(self, action):
        self.t += 1
        return np.zeros(17), 7.0, self.t == 5, False, {}


class HeavyAcrobot(acrobot.AcrobotEnv):
    LINK_MASS_1 = 2.0


# Registrations that are not Gymnasium's


@needs_envpool
def test_auto_takes_what_was_compared_and_agrees():
    assert fastest_backend("Acrobot-v1", {}) == "envpool"
    assert fastest_backend("Acrobot-v1", {}, max_episode_steps=50) == "envpool"
    assert fastest_backend("Acrobot-v1", {"render_mode": None}) == "sync"
    assert fastest_backend("CartPole-v1", {}, max_episode_steps=50) == "vector_entry_point"
    assert fastest_backend("Pendulum-v1", {}) == "sync"
    assert fastest_backend("Blackjack-v1", {}) == "sync"


def test_a_module_that_registers_a_known_id_is_trained(registry, monkeypatch):
    module = types.ModuleType("takes_over")
    monkeypatch.setitem(sys.modules, "takes_over", module)
    gym.registry.pop("HalfCheetah-v4")  # Gymnasium warns of ids that are registered twice
    gym.register("HalfCheetah-v4", Own)
    assert fastest_backend("takes_over:HalfCheetah-v4", {}) == "sync"
    env = make_env("takes_over:HalfCheetah-v4", backend="auto")
    env.reset(seed=0)
    assert (env.step(np.zeros((2, 6)))[1] == 7).all()


def wrapped(spec):
    spec.additional_wrappers = (TimeLimit.wrapper_spec(max_episode_steps=3),)


CHANGES = {
    "time limit": lambda spec: setattr(spec, "max_episode_steps", 77),
    "no time limit": lambda spec: setattr(spec, "max_episode_steps", None),
    "kwargs": lambda spec: spec.kwargs.update(render_mode=None),
    "subclass": lambda spec: setattr(spec, "entry_point", HeavyAcrobot),
    "another class": lambda spec: setattr(spec, "entry_point", f"{__name__}:HeavyAcrobot"),
    "a function": lambda spec: setattr(spec, "entry_point", lambda **kwargs: HeavyAcrobot()),
    "wrappers": wrapped,
}


@pytest.mark.parametrize("env_id", ["Acrobot-v1", "CartPole-v1", "FrozenLake-v1"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_registration_changed_in_place_runs_on_gymnasium(env_id, change, registry):
    CHANGES[change](gym.spec(env_id))
    assert fastest_backend(env_id, {}) == "sync"


def test_a_changed_time_limit_holds(registry):
    gym.spec("Acrobot-v1").max_episode_steps = 3
    for backend in ["auto", *(["envpool"] if HAS_ENVPOOL else [])]:
        env = make_env("Acrobot-v1", backend=backend)
        env.reset(seed=0)
        ends = [env.step(np.ones(2, np.int64))[3].all() for _ in range(3)]
        assert ends == [False, False, True], backend
        env.close()


def test_an_id_of_ones_own_namespace_runs_on_gymnasium(registry):
    gym.register("mine/Acrobot-v1", ACROBOT, max_episode_steps=500)
    assert fastest_backend("mine/Acrobot-v1", {}) == "sync"


# Classes that were changed in place


def patched(monkeypatch):
    monkeypatch.setattr(acrobot.AcrobotEnv, "LINK_MASS_1", 2.0)


def patched_method(monkeypatch):
    monkeypatch.setattr(acrobot.AcrobotEnv, "_terminal", lambda self: False)


def patched_function(monkeypatch):
    monkeypatch.setattr(acrobot, "wrap", lambda x, m, M: x)


def replaced_class(monkeypatch):
    monkeypatch.setattr(acrobot, "AcrobotEnv", HeavyAcrobot)


def added_attribute(monkeypatch):
    monkeypatch.setattr(acrobot.AcrobotEnv, "extra", 1, raising=False)


@pytest.mark.parametrize(
    "patch", [patched, patched_method, patched_function, replaced_class, added_attribute]
)
def test_a_class_that_was_patched_runs_on_gymnasium(patch, monkeypatch):
    assert is_unchanged(ACROBOT)
    patch(monkeypatch)
    assert not is_unchanged(ACROBOT)
    assert fastest_backend("Acrobot-v1", {}) == "sync"


def test_a_changed_map_runs_on_gymnasium(monkeypatch):
    from gymnasium.envs.toy_text import frozen_lake

    monkeypatch.setitem(frozen_lake.MAPS, "4x4", ["SFFF", "FFFF", "FFFF", "FFFG"])
    assert fastest_backend("FrozenLake-v1", {}) == "sync"


def test_the_listed_classes_are_unchanged_after_use():
    for env_id in ("Acrobot-v1", "CartPole-v1", "MountainCar-v0", "FrozenLake-v1"):
        gym.make(env_id).reset(seed=0)
        assert is_unchanged(gym.spec(env_id).entry_point), env_id
    gym.make_vec("CartPole-v1", 2).reset(seed=0)
    assert is_unchanged(gym.spec("CartPole-v1").vector_entry_point)


def test_other_versions_than_were_compared_run_on_gymnasium(monkeypatch):
    monkeypatch.setattr(backends, "_version", lambda package: "0.0.1")
    assert fastest_backend("Acrobot-v1", {}) == "sync"
    assert fastest_backend("CartPole-v1", {}) == "sync"
    remark = backends.remark(gym.spec("CartPole-v1"), "sync")
    assert "not taken: it was compared with Gymnasium's for gymnasium" in remark


def test_versions_are_those_that_are_installed(monkeypatch):
    monkeypatch.undo()
    assert backends._version("gymnasium") == importlib.metadata.version("gymnasium")
    assert backends._version("no-such-package") is None


# A user's own vector version


class OwnVector(CartPoleVectorEnv):
    """In NEXT_STEP mode; takes a time limit."""


class SameStep(CartPoleVectorEnv):
    metadata = CartPoleVectorEnv.metadata | {"autoreset_mode": AutoresetMode.SAME_STEP}


class NoLimit(CartPoleVectorEnv):
    def __init__(self, num_envs):
        super().__init__(num_envs, max_episode_steps=10**6)


class DropsLimit(CartPoleVectorEnv):
    def __init__(self, num_envs, **ignored):
        super().__init__(num_envs, max_episode_steps=10**6)


class NoKwargs(CartPoleVectorEnv):
    def __init__(self, num_envs, max_episode_steps=500):
        super().__init__(num_envs, max_episode_steps=max_episode_steps)


def register_vector(vector, limit=None):
    gym.register("OwnPole-v0", CartPoleEnv, max_episode_steps=limit, vector_entry_point=vector)


@pytest.mark.parametrize(
    ("vector", "registered", "asked", "kwargs", "expected"),
    [
        (OwnVector, None, None, {}, "vector_entry_point"),
        (OwnVector, 9, None, {}, "vector_entry_point"),
        (OwnVector, 9, 5, {"sutton_barto_reward": True}, "vector_entry_point"),
        (NoLimit, None, None, {}, "vector_entry_point"),
        (DropsLimit, None, None, {}, "vector_entry_point"),
        (SameStep, None, None, {}, "sync"),
        (NoLimit, 5, None, {}, "sync"),
        (NoLimit, None, 5, {}, "sync"),
        (DropsLimit, 5, None, {}, "sync"),
        (DropsLimit, None, 5, {}, "sync"),
        (NoKwargs, None, None, {"sutton_barto_reward": True}, "sync"),
    ],
)
def test_a_users_own_vector_version(vector, registered, asked, kwargs, expected, registry):
    register_vector(vector, registered)
    assert fastest_backend("OwnPole-v0", kwargs, max_episode_steps=asked) == expected
    env = make_env("OwnPole-v0", backend="auto", max_episode_steps=asked, **kwargs)
    env.reset(seed=0)
    limit = asked or registered
    if limit is not None:
        ends = [env.step(np.full(2, t % 2))[3].any() for t in range(limit)]
        assert ends == [False] * (limit - 1) + [True]
    env.close()


def test_by_hand_a_vector_version_that_drops_the_limit_is_refused(registry):
    register_vector(DropsLimit, 5)
    with pytest.raises(ValueError, match=r"keep a time limit of 5 steps, use env\.backend=sync"):
        make_env("OwnPole-v0", backend="vector_entry_point")


def test_cart_poles_own_vector_version_does_not_stand_in_for_another_entry_point(registry):
    gym.spec("CartPole-v1").entry_point = Own
    assert gym.spec("CartPole-v1").vector_entry_point is not None
    assert fastest_backend("CartPole-v1", {}) == "sync"


# EnvPool by hand


@needs_envpool
@pytest.mark.parametrize(
    ("env_id", "said"),
    [
        ("Pendulum-v1", "EnvPool's Pendulum-v1 is not Gymnasium's: it differs: largest"),
        ("Blackjack-v1", "EnvPool's Blackjack-v1 is not Gymnasium's: it was not compared"),
        ("Walker2d-v3", "EnvPool's Walker2d-v3 is not Gymnasium's: it has not been compared"),
    ],
)
def test_envpool_by_hand_says_what_differs(env_id, said):
    cfg = compose_config(f"env={env_id}", "env.backend=envpool")
    (line,) = remarks_on_backend(cfg)
    assert "\n" not in line
    assert re.match(said, line), line


@needs_envpool
@pytest.mark.parametrize("choice", ["env=Acrobot-v1 env.backend=envpool", "env=CartPole-v1"])
def test_an_implementation_that_agrees_needs_no_note(choice, tmp_path):
    cfg = compose_config(*choice.split())
    make_trainer(cfg, tmp_path).logger.close()
    assert cfg.env.backend in ("envpool", "vector_entry_point")
    assert remarks_on_backend(cfg) == []


@needs_envpool
def test_envpool_refuses_what_only_the_registration_has(registry, tmp_path):
    wrapped(gym.spec("Acrobot-v1"))
    gym.spec("FrozenLake-v1").kwargs = {"map_name": "8x8"}
    for env_id, message in (("Acrobot-v1", "can't have the wrappers"), ("FrozenLake-v1", "kwargs")):
        with pytest.raises(ConfigError, match=f"{message}.*sync") as caught:
            make_trainer(compose_config(f"env={env_id}", "env.backend=envpool"), tmp_path)
        assert "\n" not in str(caught.value)


@needs_envpool
@pytest.mark.parametrize("env_id", ["CliffWalking-v1", "CliffWalkingSlippery-v1", "FrozenLake-v1"])
def test_envpool_keeps_a_time_limit(env_id):
    env = make_env(env_id, 64, "envpool", max_episode_steps=4)
    env.reset(seed=0)
    env.action_space.seed(0)
    elapsed, done = np.zeros(64), np.zeros(64, bool)
    both = 0
    for _ in range(200):
        obs, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        elapsed = np.where(done, 0, elapsed + 1)
        assert (truncated == (elapsed == 4)).all()
        assert (obs.argmax(1)[done] == (36 if "Cliff" in env_id else 0)).all()
        assert (reward[done] == 0).all()
        assert not terminated[done].any()
        both += (terminated & truncated).sum()
        done = terminated | truncated
    assert both > 0 or "Cliff" in env_id  # a fall at the last step is both, as with Gymnasium
    env.close()


@needs_envpool
def test_no_id_ends_the_choice_in_a_traceback():
    import envpool

    for env_id in sorted({*gym.registry, *envpool.list_all_envs()[::10]}):
        try:
            choice = fastest_backend(env_id, {})
        except ValueError as error:
            assert "\n" not in str(error)
        else:
            assert choice in backends.BACKENDS


@needs_envpool
def test_a_run_on_envpool_loads_and_is_evaluated_on_gymnasium(tmp_path, monkeypatch):
    """Also one that asks for a time limit, and where EnvPool is not installed."""
    options = ["env.backend=envpool", "env.max_episode_steps=5", "~tuned"]
    run = train(tmp_path / "run", "env=CliffWalking-v1", *options)
    with monkeypatch.context() as without:
        without.setattr(backends.envpool_env, "is_installed", lambda: False)
        policy = load(run)
        env = policy.make_env()
        assert policy.action_space == env.action_space
        assert policy(env.reset(seed=0)[0]) in env.action_space
    code, out = run_here("evaluate.py", f"run={run}", "episodes=2")
    assert code is None, out
    assert "return mean" in out
