"""Environments that misbehave end a run in one line that names them; extreme ones just work."""

import csv
import math
import os
import signal
from itertools import product

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from probes import TWO_ACTIONS, UNIT_ACTIONS, compose_config

from rlopt import checkpoint
from rlopt.build import EVALUATION_STREAM, make_trainer
from rlopt.envs import derive_seed
from rlopt.evaluate import Evaluation
from rlopt.faults import BrokenEnvError
from rlopt.recorder import EndlessEpisodeError

BAD = 1  # index of the environment at fault
BAD_SEED = derive_seed(0, 0) + BAD
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:gymnasium")


class Hostile(gym.Env):
    """Episodes of four steps; in its second one the environment of BAD_SEED does its worst."""

    observation_space, action_space = UNIT_ACTIONS, TWO_ACTIONS

    def __init__(self, fault):
        self.fault, self.episode, self.bad = fault, 0, False

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.bad |= seed == BAD_SEED
        self.episode, self.count = self.episode + 1, 0
        if self._is_due("reset"):
            raise KeyError("no such level")
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.count += 1
        obs, reward, end = np.zeros(1, np.float32), 0.0, self.count == 4
        if self._is_due("step"):
            raise ZeroDivisionError("the\nworld ended")
        if self._is_due("death"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self._is_due("tuple"):
            return obs, reward, end
        obs = self._worst(obs, {
            "shape": np.zeros(3, np.float32), "text": np.array(["a"]),
            "ragged": [[1.0], [2.0, 3.0]], "none": None, "nan observation": np.float32([math.nan]),
            "inf observation": np.float32([math.inf]),
        })  # fmt: skip
        reward = self._worst(reward, {
            "word": "ten", "list": [1.0, 2.0], "nan reward": math.nan, "inf reward": math.inf,
        })  # fmt: skip
        return obs, reward, end, False, {}

    def _is_due(self, fault):
        return self.bad and self.episode == 2 and fault == self.fault

    def _worst(self, good, by_fault):
        return next((bad for fault, bad in by_fault.items() if self._is_due(fault)), good)


class HostileVector(VectorEnv):
    """A native vector environment that returns the wrong arrays."""

    def __init__(self, num_envs, fault="", **kwargs):
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self.num_envs, self.fault = num_envs, fault
        self.single_observation_space, self.single_action_space = UNIT_ACTIONS, TWO_ACTIONS
        self.observation_space = batch_space(UNIT_ACTIONS, num_envs)
        self.action_space = batch_space(TWO_ACTIONS, num_envs)

    def reset(self, *, seed=None, options=None):
        return np.zeros((self.num_envs + (self.fault == "reset"), 1), np.float32), {}

    def step(self, actions):
        N, end = self.num_envs, np.zeros(self.num_envs, bool)
        obs = np.zeros((N, 1), object if self.fault == "objects" else np.float32)
        reward = np.zeros((N, 1) if self.fault == "column" else N)
        return obs, reward, end.astype(float) if self.fault == "floats" else end, end, {}


class Mild(gym.Env):
    """Extreme, and sound."""

    def __init__(self, reward=1.0, length=4, num_actions=2, constant=False):
        self.observation_space = UNIT_ACTIONS
        self.action_space = UNIT_ACTIONS if num_actions == 0 else spaces.Discrete(num_actions)
        self.reward, self.length, self.constant = reward, length, constant

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return self._obs(), {}

    def step(self, action):
        self.count += 1
        signed = float(np.sum(action)) * 2 - 1
        return self._obs(), self.reward * signed, self.count == self.length, False, {}

    def _obs(self):
        return np.float32([0.5 if self.constant else self.np_random.uniform(-1, 1)])


gym.register("Hostile-v0", Hostile)
gym.register("HostileVector-v0", Hostile, vector_entry_point=HostileVector)
gym.register("Mild-v0", Mild)

WHO = f"^env=Hostile-v0: environment {BAD}: "
FAULTS = [
    ("step", "sync", WHO + r"step raised ZeroDivisionError: the world ended \(test_hostile.py, "),
    ("step", "async", WHO + r"step raised ZeroDivisionError: the world ended \(test_hostile.py, "),
    ("reset", "sync", WHO + r"step raised KeyError: 'no such level' \(test_hostile.py, line \d+\)"),
    ("reset", "async", WHO + r"step raised KeyError: .*no such level.* \(test_hostile.py, line"),
    ("death", "async", WHO + r"its process has ended, exit code -9$"),
    ("tuple", "sync", WHO + r"step returned \(array.*, where \(obs, reward, .*\) is due"),
    ("tuple", "async", WHO + r"step returned \(array.*, where \(obs, reward, .*\) is due"),
    ("shape", "sync", WHO + r"step returned an observation of shape \(3,\) .* not in Box"),
    ("shape", "async", WHO + r"step raised ValueError: .*shape"),
    ("text", "sync", WHO + r"step returned an observation of shape \(1,\) and type <U1"),
    ("text", "async", WHO + r"step raised ValueError: .*'a'"),
    ("ragged", "sync", WHO + r"step returned the observation \[\[1.0\], \[2.0, 3.0\]\]"),
    ("none", "sync", WHO + r"step returned an observation of shape \(\) and type object"),
    ("word", "sync", WHO + r"step returned the reward 'ten', where one number is due"),
    ("word", "async", WHO + r"step returned the reward 'ten', where one number is due"),
    ("list", "sync", WHO + r"step returned the reward \[1.0, 2.0\] of shape \(2,\), where one n"),
    ("nan observation", "sync", rf"environment {BAD} gave a non-finite observation"),
    ("inf observation", "sync", rf"environment {BAD} gave a non-finite observation"),
    ("nan reward", "sync", rf"environment {BAD} gave a non-finite reward"),
    ("inf reward", "async", rf"environment {BAD} gave a non-finite reward"),
]


def trainer_of(folder, *overrides):
    return make_trainer(compose_config("~tuned", *overrides), folder)


def iterations(folder, *overrides, num=3, evaluate=False):
    """The metrics of some iterations."""
    overrides = [f"total_steps={10**6}", "eval.episodes=2", "eval.every=1", *overrides]
    trainer = trainer_of(folder, *overrides)
    if not evaluate:
        trainer.evaluate = lambda episodes: Evaluation([0.0], [1])
    log, rows = trainer.logger.log, []

    class EnoughError(Exception):
        pass

    def count(env_steps, metrics):
        log(env_steps, metrics)
        rows.append(metrics)
        if len(rows) == num:
            raise EnoughError

    trainer.logger.log = count
    try:
        trainer.train()
    except EnoughError:
        pass
    finally:
        trainer.logger.close()
        trainer.rollout.recorder.env.close()
    return rows


@pytest.mark.parametrize("rollout", ["steps", "episodes"])
@pytest.mark.parametrize(("fault", "backend", "message"), FAULTS, ids=lambda x: str(x)[:20])
def test_a_fault_is_one_line_with_the_id_and_the_index(fault, backend, message, rollout, tmp_path):
    size = {"steps": "rollout.num_steps=12", "episodes": "rollout.episodes=9"}[rollout]
    overrides = [f"rollout={rollout}", size, "env=Hostile-v0", f"+env.kwargs.fault={fault}"]
    with pytest.raises((BrokenEnvError, FloatingPointError), match=message) as raised:
        iterations(tmp_path, *overrides, f"env.backend={backend}", "env.num_envs=3")
    assert "\n" not in str(raised.value)
    saved = checkpoint.load(tmp_path / "checkpoints" / "last.pt")
    assert saved["env_steps"] == 0  # the first iteration meets the fault, and is undone
    assert saved["rejected_updates"] == isinstance(raised.value, FloatingPointError)


@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize("fault", ["step", "nan observation"])
def test_a_fault_in_an_evaluation_loses_no_iteration(fault, final, tmp_path, monkeypatch):
    """The row and the checkpoint are those of the iteration before it."""
    monkeypatch.setitem(globals(), "BAD_SEED", derive_seed(0, EVALUATION_STREAM) + BAD)
    overrides = ["env=Hostile-v0", f"+env.kwargs.fault={fault}", "env.num_envs=3"]
    overrides += ["rollout.num_steps=12", "eval.episodes=50", "eval.final_episodes=50"]
    more = ["total_steps=1"] if final else []
    with pytest.raises((BrokenEnvError, FloatingPointError)):
        iterations(tmp_path, *overrides, *more, evaluate=True)
    with (tmp_path / "metrics.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    saved = checkpoint.load(tmp_path / "checkpoints" / "last.pt")
    assert saved["env_steps"] == int(row["env_steps"]) > 0


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("reset", r"reset returned obs of shape \(4, 1\) .*\(3, 1\) are due"),
        ("objects", r"step returned obs of shape \(3, 1\) and type object"),
        ("column", r"step returned reward of shape \(3, 1\) .*\(3,\) are due"),
        ("floats", r"step returned terminated of shape \(3,\) and type float64, where bool"),
    ],
)
def test_wrong_arrays_of_a_vector_environment_are_named(fault, message, tmp_path):
    overrides = ["env=HostileVector-v0", f"+env.kwargs.fault={fault}", "env.num_envs=3"]
    with pytest.raises(BrokenEnvError, match=f"^env=HostileVector-v0: {message}"):
        iterations(tmp_path, *overrides)


@pytest.mark.parametrize("error", [ValueError, KeyError, AssertionError, RuntimeError])
def test_an_environment_that_cant_be_made_is_one_line(error, tmp_path):
    def broken():
        raise error("no licence")

    gym.register("Unmade-v0", broken)
    try:
        with pytest.raises(ValueError, match=r"^env=Unmade-v0 .* can't be made: .*no licence"):
            trainer_of(tmp_path, "env=Unmade-v0")
    finally:
        del gym.registry["Unmade-v0"]


FEW = ["rollout.num_steps=8", "algo.minibatch_size=4"]
EXTREMES = {
    "huge_rewards": [*FEW, "+env.kwargs.reward=1e30"],
    "huge_rewards_continuous": [*FEW, "+env.kwargs.reward=1e30", "+env.kwargs.num_actions=0"],
    "tiny_rewards": [*FEW, "+env.kwargs.reward=1e-30"],
    "no_rewards": [*FEW, "+env.kwargs.reward=0.0"],
    "constant_observations": [*FEW, "+env.kwargs.constant=true"],
    "one_step_episodes": [*FEW, "+env.kwargs.length=1"],
    "one_step_episodes_one_row": ["rollout.num_steps=1", "algo.minibatch_size=1",
                                  "+env.kwargs.length=1"],
    "never_ending_episodes": [*FEW, "+env.kwargs.length=0"],
    "one_environment": [*FEW, "env.num_envs=1"],
    "one_action": [*FEW, "+env.kwargs.num_actions=1"],
    "batch_of_one": ["env.num_envs=1", "rollout.num_steps=1", "algo.minibatch_size=1"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("algo", "baseline"),
    [*product(["pg", "npg", "trpo", "ppo"], ["mlp"]), ("npg", "linear"), ("ppo", "zero")],
)
@pytest.mark.parametrize("extreme", EXTREMES)
def test_an_extreme_environment_just_works(extreme, algo, baseline, tmp_path):
    choices = [f"algo={algo}", f"baseline={baseline}", "env=Mild-v0", "env.num_envs=3"]
    settings = [s for s in EXTREMES[extreme] if algo == "ppo" or "minibatch" not in s]
    rows = iterations(tmp_path, *choices, *settings)
    assert len(rows) == 3
    for row in rows:  # nan: nothing to report, where nothing varies or no episode ended
        assert not [tag for tag, x in row.items() if math.isinf(x)]
        assert not [tag for tag, x in row.items() if math.isnan(x) and not may_be_nan(tag)]
    with (tmp_path / "metrics.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 3


def may_be_nan(tag):
    return tag.startswith(("rollout/", "audit/gradient_snr")) or tag.endswith("explained_variance")


def test_huge_rewards_are_learned_from_as_others_are(tmp_path):
    """Powers of two change no bit: the same policy, whatever the unit of the reward."""
    big = float(2**100)
    rows = [
        iterations(tmp_path / str(reward), "env=Mild-v0", f"+env.kwargs.reward={reward!r}",
                   "rollout.num_steps=16", "baseline=zero", num=4)
        for reward in (1.0, big)
    ]  # fmt: skip
    for one, other in zip(*rows, strict=True):
        assert one["policy/kl"] == other["policy/kl"] > 0
        assert one["baseline/explained_variance"] == other["baseline/explained_variance"]


def test_a_never_ending_episode_of_a_rollout_ends_in_one_line(tmp_path):
    overrides = ["rollout=episodes", "rollout.episodes=9", "rollout.max_episode_steps=50"]
    message = "^an episode did not end within 50 steps: set env."
    with pytest.raises(EndlessEpisodeError, match=message):
        iterations(tmp_path, *overrides, "env=Mild-v0", "+env.kwargs.length=0", "env.num_envs=2")
