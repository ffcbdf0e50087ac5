"""Environments as users write them: seeds reproduce, what nobody reads can't end a run."""

import csv
import random
import sys
from itertools import pairwise, product

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from probes import TWO_ACTIONS, UNIT_ACTIONS, compose_config

from rlopt import checkpoint
from rlopt.action_spaces import make_head
from rlopt.build import evaluation_limit, make_trainer
from rlopt.config import ConfigError
from rlopt.distributions import Categorical
from rlopt.envs import make_vector_env
from rlopt.evaluate import evaluate
from rlopt.faults import BrokenEnvError
from rlopt.recorder import Recorder, mode
from rlopt.seeding import seed_process
from rlopt.types import NonFiniteError

EPISODE = 5
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:gymnasium")


class Short(gym.Env):
    """Episodes of five steps; the observation is `self.x`, the reward what `_reward` says."""

    observation_space, action_space = UNIT_ACTIONS, TWO_ACTIONS

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.x = 0, self._draw()
        return np.float32([self.x]), self._info()

    def step(self, action):
        self.t, reward = self.t + 1, self._reward(action)
        self.x = self._draw()
        return np.float32([self.x]), reward, False, self.t >= EPISODE, self._info()

    def _draw(self):
        return self.np_random.uniform(-1, 1)

    def _reward(self, action):
        return float((self.x > 0) == action)

    def _info(self):
        return {}


class Draws(Short):
    """Draws from a generator that is not the environment's own."""

    own = spaces.Box(-1, 1, (1,))  # of the class: all copies would share its generator

    def __init__(self, source="numpy"):
        self.source, self.private = source, spaces.Dict(x=spaces.Box(-1, 1, (1,)))
        if source != "class action_space":
            self.action_space = spaces.Discrete(2)
        self.of_constructor = np.random.uniform(-1, 1), random.uniform(-1, 1)

    def _draw(self):
        draws = {
            "numpy": lambda: np.random.uniform(-1, 1),
            "python": lambda: random.uniform(-1, 1),
            "action_space": lambda: self.action_space.sample() - 0.5,
            "class action_space": lambda: self.action_space.sample() - 0.5,
            "own space": lambda: self.own.sample()[0],
            "private space": lambda: self.private.sample()["x"][0],
            "constructor": lambda: sum(self.of_constructor) / 2,
        }
        return float(draws[self.source]())


class Infos(Short):
    """An info whose entries differ between copies in shape or type."""

    def __init__(self, form):
        self.form = form

    def _info(self):
        coin = self.np_random.random() < 0.5
        forms = {
            "ragged": {"path": np.zeros(self.np_random.integers(1, 9))},
            "none": {"score": None if coin else 3},
            "mixed": {"score": 3 if coin else "lost"},
            "number or dict": {"score": 3 if coin else {"deep": {"er": 1}}},
            "array or number": {"score": np.zeros(2) if coin else 1.5},
            "large": {"score": 2**70 if coin else 1},
            "complex": {"score": 1j if coin else True},
            "unpicklable": {"f": lambda: None},
            "keys": {3: 4, None: 5},
        }
        return forms[self.form]


class Rewards(Short):
    """A reward that is no plain number."""

    def __init__(self, form):
        self.form = form

    def _reward(self, action):
        one = super()._reward(action)
        return {
            "float": one,
            "array": np.array([one]),
            "list": [one],
            "zero-dimensional": np.array(one),
            "float32": np.float32(one),
            "bool": bool(one),
            "vector": np.array([one, 0.0]),
            "none": None,
        }[self.form]


class Masked(Short):
    """Forbids action 0, in a mask of some type; five choices for each of two entries."""

    action_space = spaces.MultiDiscrete([2, 3])

    def __init__(self, form):
        self.form = form

    def _reward(self, action):
        return 0.0 if action[0] == 0 else 1.0

    def _info(self):
        mask = [0, 1, 1, 1, 1]
        return {"action_mask": {
            "array": np.array(mask, np.int8), "list": mask, "tuple": tuple(mask),
            "bools": [bool(x) for x in mask], "float": np.array(mask, float),
            "per entry": (np.array(mask[:2]), np.array(mask[2:])),
        }[self.form]}  # fmt: skip


class Loops(Short):
    """Ends by action 1 alone, which costs: the greedy policy never ends."""

    def _reward(self, action):
        return -1.0 if action else 1.0

    def step(self, action):
        obs, reward, *_ = super().step(action)
        return obs, reward, bool(action) and self.t >= EPISODE, False, {}


class LoopsVector(VectorEnv):
    """Never ends, as a vector environment."""

    def __init__(self, num_envs, **kwargs):
        self.metadata, self.num_envs = {"autoreset_mode": AutoresetMode.NEXT_STEP}, num_envs
        self.single_observation_space, self.single_action_space = UNIT_ACTIONS, TWO_ACTIONS
        self.observation_space = batch_space(UNIT_ACTIONS, num_envs)
        self.action_space = batch_space(TWO_ACTIONS, num_envs)

    def reset(self, *, seed=None, options=None):
        return np.zeros((self.num_envs, 1), np.float32), {}

    def step(self, actions):
        no = np.zeros(self.num_envs, bool)
        return self.reset()[0], np.ones(self.num_envs), no, no, {}


class Spoils(Short):
    """In a share of the episodes one number is not finite."""

    def __init__(self, what="reward", share=0.3):
        self.what, self.share = what, share

    def reset(self, *, seed=None, options=None):
        obs, info = super().reset(seed=seed)
        self.bad = self.np_random.random() < self.share
        return (obs * np.nan if self.bad and self.what == "first observation" else obs), info

    def step(self, action):
        obs, reward, *ends = super().step(action)
        if self.bad and self.t == 3:
            obs, reward = {"reward": (obs, np.inf), "observation": (obs * np.nan, reward)}.get(
                self.what, (obs, reward)
            )
        return obs, reward, *ends


class Pushed(Short):
    """Actions with one bound; the reward is the action."""

    def __init__(self, low=-np.inf, high=np.inf):
        self.action_space = spaces.Box(low, high, (1,), np.float32)

    def _reward(self, action):
        return float(action[0])


class Always(torch.nn.Module):
    """A policy that takes one action."""

    def __init__(self, action):
        super().__init__()
        self.logits = torch.eye(2)[action] * 50

    def forward(self, obs):
        assert torch.isfinite(obs).all()
        return Categorical(self.logits.expand(len(obs), 2))


for kind in (Short, Draws, Infos, Rewards, Masked, Spoils, Pushed):
    gym.register(f"User{kind.__name__}-v0", kind)
gym.register("UserLoops-v0", Loops)
gym.register("UserLoopsVector-v0", Loops, vector_entry_point=LoopsVector)

SMALL = [
    "~tuned",
    "env.num_envs=4",
    "rollout.num_steps=16",
    "eval.every=128",
    "eval.episodes=4",
    "eval.final_episodes=6",
    "policy.hidden_sizes=[8]",
    "baseline.hidden_sizes=[8]",
]
SOURCES = ["numpy", "python", "action_space", "class action_space", "own space", "private space"]


def trainer_of(folder, *overrides, state=None):
    return make_trainer(compose_config(*SMALL, "total_steps=256", *overrides), folder, state)


def train(folder, *overrides, state=None):
    """The rows of metrics.csv but for the times."""
    trainer = trainer_of(folder, *overrides, state=state)
    try:
        trainer.train()
    finally:
        trainer.logger.close()
        trainer.rollout.recorder.env.close()
    return rows_of(folder)


def rows_of(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return [
            {key: x for key, x in row.items() if not key.startswith("time/")}
            for row in csv.DictReader(file)
        ]


# Seeds


@pytest.mark.parametrize(
    ("source", "backend"),
    [*product([*SOURCES, "constructor"], ["sync"]), ("numpy", "async"), ("constructor", "async")],
)
def test_a_seed_reproduces_whatever_the_environment_draws_from(source, backend, tmp_path):
    overrides = ["env=UserDraws-v0", f"+env.kwargs.source='{source}'", f"env.backend={backend}"]
    first = train(tmp_path / "first", *overrides)
    np.random.seed(None), random.seed(None)
    assert train(tmp_path / "again", *overrides) == first
    assert train(tmp_path / "other", *overrides, "seed=1") != first
    assert len({row["rollout/return_mean"] for row in first}) > 1 or source == "constructor"


@pytest.mark.parametrize("source", [*SOURCES, "constructor"])
@pytest.mark.parametrize("backend", ["sync", "async"])
def test_copies_of_an_environment_draw_different_numbers(source, backend):
    seed_process(3)
    env = make_vector_env("UserDraws-v0", num_envs=4, backend=backend, kwargs={"source": source})
    recorder = Recorder(env, "cpu", mode)
    recorder.reset(0)
    drawn = np.stack([recorder.obs, *(env.step(np.zeros(4, int))[0] for _ in range(12))])[..., 0]
    env.close()
    for i, j in pairwise(range(4)):
        assert (drawn[:, i] != drawn[:, j]).any()


@pytest.mark.parametrize("source", ["numpy", "python", "class action_space", "own space"])
def test_an_evaluation_leaves_no_trace_in_training(source, tmp_path):
    """Its environments draw from the same global generators, and from spaces of the same class."""
    overrides = ["env=UserDraws-v0", f"+env.kwargs.source='{source}'"]
    often, seldom = (
        train(tmp_path / every, *overrides, f"eval.every={every}") for every in ("64", "1000")
    )
    for a, b in zip(often, seldom, strict=True):
        assert a["rollout/return_mean"] == b["rollout/return_mean"]
        assert a["policy/kl"] == b["policy/kl"]


IN_BRIEF = [("numpy", "steps"), ("own space", "steps"), ("python", "episodes")]


@pytest.mark.parametrize(
    ("source", "rollout"),
    [
        pytest.param(*pair, marks=[] if pair in IN_BRIEF else pytest.mark.slow)
        for pair in product(SOURCES, ["steps", "episodes"])
    ],
)
def test_a_resumed_run_draws_what_the_whole_one_drew(source, rollout, tmp_path):
    sizes = {"steps": "rollout.num_steps=16", "episodes": "rollout.episodes=8"}
    small = [o for o in SMALL if "num_steps" not in o]
    overrides = ["env=UserDraws-v0", f"+env.kwargs.source='{source}'", f"rollout={rollout}"]
    config = compose_config(*small, "total_steps=320", "checkpoint.every=64", *overrides,
                            sizes[rollout])  # fmt: skip
    whole = make_trainer(config.copy(), tmp_path / "whole")
    whole.train()
    half = make_trainer(config.copy(), tmp_path / "half")
    half.settings.total_steps = 160
    half.train()
    np.random.seed(None), random.seed(None)
    state = checkpoint.load(tmp_path / "half" / "checkpoints" / "last.pt")
    rest = make_trainer(config.copy(), tmp_path / "half", state)
    rest.train()
    for trainer in (whole, half, rest):
        trainer.logger.close()
    tail = [
        row for row in rows_of(tmp_path / "whole") if int(row["env_steps"]) > state["env_steps"]
    ]
    resumed = rows_of(tmp_path / "half")[-len(tail) :]
    assert tail
    for a, b in zip(tail, resumed, strict=True):
        assert a["rollout/return_mean"] == b["rollout/return_mean"]
        assert a["policy/kl"] == b["policy/kl"]


# What is never read


INFOS = ["ragged", "none", "mixed", "number or dict", "array or number", "large", "complex",
         "unpicklable", "keys"]  # fmt: skip


@pytest.mark.parametrize("form", INFOS)
@pytest.mark.parametrize("backend", ["sync", "async"])
def test_an_info_that_nobody_reads_cant_end_a_run(form, backend):
    env = make_vector_env("UserInfos-v0", num_envs=3, backend=backend, kwargs={"form": form})
    env.reset(seed=0)
    for _ in range(12):
        *_, info = env.step(np.zeros(3, int))
        assert info == {}
    env.close()


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_a_reward_of_one_number_is_taken_whatever_its_shape(backend):
    def rewards(form):
        env = make_vector_env("UserRewards-v0", num_envs=2, backend=backend, kwargs={"form": form})
        env.reset(seed=0)
        result = [env.step(np.ones(2, int))[1].tolist() for _ in range(8)]
        env.close()
        return result

    forms = ["float", "array", "list", "zero-dimensional", "float32", "bool"]
    first, *others = map(rewards, forms)
    assert {x for row in first for x in row} == {0.0, 1.0}
    assert all(other == first for other in others)


@pytest.mark.parametrize("backend", ["sync", "async"])
@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("vector", r"step returned the reward array\(\[.*\]\) of shape \(2,\), where one number"),
        ("none", r"step returned the reward None, where one number is due"),
    ],
)
def test_a_reward_that_is_no_number_is_one_line(form, message, backend, tmp_path):
    overrides = ["env=UserRewards-v0", f"+env.kwargs.form={form}", f"env.backend={backend}"]
    with pytest.raises(BrokenEnvError, match=rf"^env=UserRewards-v0: environment \d: {message}"):
        train(tmp_path, *overrides)


@pytest.mark.parametrize(
    ("form", "backend"),
    [
        *product(["array", "list", "tuple", "bools", "float", "per entry"], ["sync"]),
        ("list", "async"),
    ],
)
def test_a_mask_is_a_mask_whatever_its_type(form, backend, tmp_path):
    overrides = ["env=UserMasked-v0", f"+env.kwargs.form='{form}'", "env.action_mask=true"]
    (row, *_) = train(tmp_path, *overrides, f"env.backend={backend}", "total_steps=64")
    assert float(row["rollout/return_mean"]) == EPISODE  # action 0 was never taken


@pytest.mark.parametrize(
    ("bounds", "start"),
    [
        ({"low": 100.0}, 101.0),
        ({"high": -50.0}, -51.0),
        ({"low": 0.0}, 1.0),
        ({"low": -5.0}, 0.0),
        ({"low": -3.0, "high": 5.0}, 1.0),
        ({}, 0.0),
    ],
)
def test_a_box_starts_inside_its_bounds(bounds, start):
    space = spaces.Box(**({"low": -np.inf, "high": np.inf} | bounds), shape=(2,))
    for name in ("gaussian", "gaussian_state_std", "full_gaussian"):
        head = make_head(space, name, -20.0)
        params = head(torch.zeros(1, head.num_outputs))
        assert torch.equal(head.dist(params).mode, torch.full((1, 2), start))


# Evaluations that do not end, or are not finite


def test_an_evaluation_cuts_what_does_not_end_and_training_goes_on(tmp_path, caplog):
    rows = train(tmp_path, "env=UserLoops-v0", "eval.max_episode_steps=50", "total_steps=1000",
                 "algo.max_kl=0.5", "gamma=0.999")  # fmt: skip
    assert int(rows[-1]["env_steps"]) >= 1000
    last = rows[-1]
    assert float(last["eval/cut_episodes"]) == 6
    assert float(last["eval/return_mean"]) == float(last["eval/length_mean"]) == 50
    assert "evaluation: 6 of 6 episodes did not end and were cut after 50 steps" in caplog.text


@pytest.mark.parametrize("backend", ["sync", "async", "vector_entry_point"])
@pytest.mark.parametrize(("episodes", "num_envs"), [(1, 3), (7, 3), (3, 3)])
def test_the_number_of_cut_episodes_is_exact(episodes, num_envs, backend):
    env = make_vector_env("UserLoopsVector-v0", num_envs=num_envs, backend=backend)
    result = evaluate(Always(0), env, episodes=episodes, seed=0, deterministic=True, device="cpu",
                      max_episode_steps=20)  # fmt: skip
    env.close()
    assert result.returns == [20.0] * episodes
    assert result.lengths == [20] * episodes
    assert result.num_cut == episodes


def test_an_episode_that_ends_at_the_limit_is_not_cut():
    env = make_vector_env("UserShort-v0", num_envs=2, backend="sync")
    options = {"episodes": 5, "seed": 0, "deterministic": True, "device": "cpu"}
    whole = evaluate(Always(0), env, **options, max_episode_steps=EPISODE)
    assert whole.num_cut == 0
    assert whole == evaluate(Always(0), env, **options, max_episode_steps=1000)
    assert evaluate(Always(0), env, **options, max_episode_steps=EPISODE - 1).num_cut == 5


@pytest.mark.parametrize(
    ("overrides", "limit"),
    [
        (["env=UserLoops-v0"], 10_000),
        (["env=CartPole-v1"], 500),
        (["env=CartPole-v1", "env.max_episode_steps=40000"], 40_000),
        (["env=CartPole-v1", "eval.max_episode_steps=70"], 70),
    ],
)
def test_where_an_evaluation_cuts(overrides, limit):
    assert evaluation_limit(compose_config(*overrides)) == limit


def test_a_game_is_not_cut_before_its_own_limit():
    pytest.importorskip("ale_py")
    assert evaluation_limit(compose_config("env=ALE/Pong-v5")) == 27_000


@pytest.mark.parametrize("what", ["reward", "observation", "first observation"])
def test_a_nonfinite_number_in_an_evaluation_is_counted_under_skip(what, tmp_path, caplog):
    overrides = ["env=UserSpoils-v0", f"+env.kwargs.what='{what}'", "eval.final_episodes=40"]
    rows = train(tmp_path, *overrides, "on_nonfinite=skip")
    assert int(rows[-1]["env_steps"]) >= 256
    left_out = int(rows[-1]["eval/nonfinite_episodes"])
    assert 4 <= left_out <= 24  # 12 expected of 40
    assert 0 <= float(rows[-1]["eval/return_mean"]) <= EPISODE
    assert f"{left_out} of 40 episodes are left out" in caplog.text


def test_an_evaluation_without_a_finite_episode_ends_too():
    env = make_vector_env("UserSpoils-v0", num_envs=3, backend="sync", kwargs={"share": 1.0})
    result = evaluate(Always(0), env, episodes=7, seed=0, deterministic=True, device="cpu",
                      on_nonfinite="skip")  # fmt: skip
    assert (result.returns, result.num_nonfinite) == ([], 7)
    assert np.isnan(result.mean)


@pytest.mark.parametrize("what", ["reward", "observation"])
def test_a_nonfinite_number_in_an_evaluation_is_one_line_without_skip(what):
    env = make_vector_env("UserSpoils-v0", num_envs=3, backend="sync", kwargs={"what": what})
    message = rf"^environment \d gave a non-finite {what} at step 3 of its episode"
    with pytest.raises(NonFiniteError, match=message):
        evaluate(Always(0), env, episodes=40, seed=0, deterministic=True, device="cpu")


# What an environment keeps, and how it ends


class Keeps(Short):
    """Keeps the action that it was given; `how`: as it is, or in an object of its own."""

    action_space = spaces.Dict(x=spaces.Box(-1, 1, (1,)), y=TWO_ACTIONS)

    def __init__(self, how="plain"):
        self.how, self.kept = how, None

    def _reward(self, action):
        before, self.kept = self.kept, action if self.how == "plain" else Kept(action)
        if before is None:
            return 0.0
        last = before if self.how == "plain" else before.action
        return -float(abs(action["x"] - last["x"])[0])


class Kept:
    """No plain data: its state can't be saved."""

    def __init__(self, action):
        self.action = action


class Quits(Short):
    """Calls sys.exit(0) where `at` says."""

    def __init__(self, at="step"):
        self.at = at
        if at == "constructor":
            sys.exit(0)

    def reset(self, *, seed=None, options=None):
        if self.at == "reset":
            sys.exit(0)
        return super().reset(seed=seed, options=options)

    def _reward(self, action):
        return sys.exit(0) if self.at == "step" else 1.0


gym.register("UserKeeps-v0", Keeps)
gym.register("UserQuits-v0", Quits)


def test_an_environment_that_keeps_its_action_resumes_exactly(tmp_path):
    cfg = compose_config(*SMALL, "total_steps=320", "checkpoint.every=64", "env=UserKeeps-v0")
    whole = make_trainer(cfg.copy(), tmp_path / "whole")
    whole.train()
    half = make_trainer(cfg.copy(), tmp_path / "half")
    half.settings.total_steps = 160
    half.train()
    assert half.rollout.why_inexact() is None
    state = checkpoint.load(tmp_path / "half" / "checkpoints" / "last.pt")
    rest = make_trainer(cfg.copy(), tmp_path / "half", state)
    rest.train()
    for trainer in (whole, half, rest):
        trainer.logger.close()
    last = [rows_of(tmp_path / name)[-1] for name in ("whole", "half")]
    assert last[0]["rollout/return_mean"] == last[1]["rollout/return_mean"]
    assert last[0]["policy/kl"] == last[1]["policy/kl"]


def test_a_state_that_becomes_unknown_after_the_first_step_is_said(tmp_path, caplog):
    caplog.set_level("INFO")
    trainer = trainer_of(tmp_path, "env=UserKeeps-v0", "+env.kwargs.how=object")
    assert trainer.rollout.why_inexact() is None
    trainer.train()
    trainer.logger.close()
    assert "Kept" in trainer.rollout.why_inexact()
    assert caplog.text.count("resume starts new episodes: the state of env") == 1
    state = checkpoint.load(tmp_path / "checkpoints" / "last.pt")
    assert state["rollout"]["recorder"] is None
    trainer_of(tmp_path, "env=UserKeeps-v0", "+env.kwargs.how=object", state=state).logger.close()
    assert "this resume starts new episodes" in caplog.text


@pytest.mark.parametrize("backend", ["sync", "async"])
@pytest.mark.parametrize("at", ["step", "reset"])
def test_an_environment_that_exits_is_at_fault(at, backend, tmp_path):
    overrides = ["env=UserQuits-v0", f"+env.kwargs.at={at}", f"env.backend={backend}"]
    fault = rf"({at} raised SystemExit: 0|its process has ended, exit code 0)"
    with pytest.raises(BrokenEnvError, match=rf"^env=UserQuits-v0: environment \d: {fault}"):
        train(tmp_path, *overrides)


def test_an_environment_whose_constructor_exits_is_at_fault(tmp_path):
    with pytest.raises(ConfigError, match=r"^env=UserQuits-v0 .* can't be made: SystemExit: 0"):
        trainer_of(tmp_path, "env=UserQuits-v0", "+env.kwargs.at=constructor")
