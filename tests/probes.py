"""Toy environments, each of which isolates one fault, and the helpers that tests build with.

`Counting` shows where a row comes from: its observation is [step, episode], its reward step + 1.
The probes are a ladder; the first that fails names what is broken: the value (ConstantReward), its
inputs (RewardIsObservation), the discount (TwoSteps), the advantage and the policy (RewardIsAction)
and both together (RewardIsProduct).
"""

import functools
from pathlib import Path

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from rlopt.action_spaces import categories
from rlopt.config import Config
from rlopt.envs import make_vector_env
from rlopt.policies import MLPPolicy

GROUPS = {"algo", "policy", "advantage", "baseline", "rollout", "env", "tuned", "experiment"}
CONFIGS = Path(__file__).resolve().parent.parent / "configs"
COUNTS = spaces.Box(0.0, 1e6, (2,), np.float32)
TWO_ACTIONS = spaces.Discrete(2)
UNIT_ACTIONS = spaces.Box(-1.0, 1.0, (1,), np.float32)


class Counting(gym.Env):
    """Episode e lasts `lengths[e % len(lengths)]` steps and ends as `end` says."""

    def __init__(self, lengths=(3,), end="terminated"):
        self.observation_space, self.action_space = COUNTS, TWO_ACTIONS
        self.lengths, self.end = lengths, end
        self.episode = -1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        self.episode += 1
        return self._obs(), {}

    def step(self, action):
        self.count += 1
        done = self.count >= self.lengths[self.episode % len(self.lengths)]
        terminated = done and self.end in ("terminated", "both")
        truncated = done and self.end in ("truncated", "both")
        return self._obs(), float(self.count), terminated, truncated, {}

    def _obs(self):
        return np.array([self.count, self.episode], np.float32)


class CountingVector(VectorEnv):
    """`Counting` as a native vector environment; `reuse_buffers` hands out the same arrays."""

    def __init__(self, num_envs, lengths=(3,), end="terminated", reuse_buffers=False):
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self.num_envs = num_envs
        self.single_observation_space, self.single_action_space = COUNTS, TWO_ACTIONS
        self.observation_space = batch_space(COUNTS, num_envs)
        self.action_space = batch_space(TWO_ACTIONS, num_envs)
        self.lengths, self.end, self.reuse_buffers = np.array(lengths), end, reuse_buffers
        self.obs = np.array([[0, -1]] * num_envs, np.float32)
        self.reward = np.zeros(num_envs)
        self.done = np.zeros(num_envs, bool)

    def reset(self, *, seed=None, options=None):
        self.obs += [0, 1]
        self.obs[:, 0] = 0
        self.done[:] = False
        return self._hand_out(self.obs), {}

    def step(self, actions):
        restarts = self.done.copy()
        self.obs += np.where(restarts[:, None], [0, 1], [1, 0])
        self.obs[restarts, 0] = 0
        self.reward[:] = self.obs[:, 0]
        episode = self.obs[:, 1].astype(int)
        self.done[:] = self.obs[:, 0] >= self.lengths[episode % len(self.lengths)]
        terminated = self.done & (self.end in ("terminated", "both"))
        truncated = self.done & (self.end in ("truncated", "both"))
        return self._hand_out(self.obs), self._hand_out(self.reward), terminated, truncated, {}

    def _hand_out(self, x):
        return x if self.reuse_buffers else x.copy()


class RandomLength(gym.Env):
    """Reward 1 a step for 1 or 9 steps, by a fair coin: the mean return is 5."""

    def __init__(self):
        self.observation_space, self.action_space = UNIT_ACTIONS, TWO_ACTIONS

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = int(self.np_random.choice([1, 9]))
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.left -= 1
        return np.zeros(1, np.float32), 1.0, self.left == 0, False, {}


class Echo(gym.Env):
    """The observation is the action that arrived; episodes of four steps."""

    def __init__(self):
        self.action_space = spaces.Box(np.float32([-1, -0.5]), np.float32([1, 0.5]))
        self.observation_space = spaces.Box(-1e6, 1e6, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.count += 1
        return action.copy(), 0.0, False, self.count == 4, {}


class Faulty(gym.Env):
    """What `fault` names is `value` at step `at` of the environment that was seeded `bad_seed`."""

    def __init__(self, fault, value, at, bad_seed, continuous=False):
        self.observation_space = UNIT_ACTIONS
        self.action_space = UNIT_ACTIONS if continuous else TWO_ACTIONS
        self.fault, self.value, self.at, self.bad_seed = fault, float(value), at, bad_seed

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        self.bad = seed == self.bad_seed
        return np.zeros(1, np.float32), {}

    def step(self, action):
        obs, reward = 0.0, 0.0
        if self.bad and self.count == self.at:
            obs, reward = (self.value, 0.0) if self.fault == "observation" else (0.0, self.value)
        self.count += 1
        return np.array([obs], np.float32), reward, False, self.count >= 20, {}


class WithSpaces(gym.Env):
    """Any spaces, random observations, episodes of three steps."""

    def __init__(self, observation_space=UNIT_ACTIONS, action_space=TWO_ACTIONS):
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.count += 1
        return self.observation_space.sample(), 0.0, self.count == 3, False, {}


class StrictSpaces(WithSpaces):
    """The same, and an action that is not in the space is an error."""

    def step(self, action):
        assert self.action_space.contains(action), action
        return super().step(action)


class Match(gym.Env):
    """Five steps; the reward is 0 for the action that goes with the context, less for others.

    In context c the action is `targets[c]`; each entry of its flattened form that differs costs as
    much as it differs by. `mask` is `info` or `key`, where the environment hands out a mask: each
    entry's choice before the target's is forbidden, and costs 100.
    """

    def __init__(self, action_space=TWO_ACTIONS, mask=None):
        self.action_space, self.mask = action_space, mask
        action_space.seed(1)
        self.targets = [spaces.flatten(action_space, action_space.sample()) for _ in range(2)]
        self.observation_space = spaces.Discrete(2)
        if mask == "key":
            masks = spaces.MultiBinary(spaces.flatdim(action_space))
            self.observation_space = spaces.Dict(action_mask=masks, context=spaces.Discrete(2))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return self._draw()

    def step(self, action):
        taken = spaces.flatten(self.action_space, action)
        self.count += 1
        reward = -float(np.abs(taken.astype(float) - self.targets[self.context]).sum())
        if self.mask and (taken * (1 - self.allowed)).any():
            reward = -100.0
        obs, info = self._draw()
        return obs, reward, False, self.count == 5, info

    def _draw(self):
        self.context = int(self.np_random.integers(2))
        target = self.targets[self.context]
        if self.mask:
            parts = np.split(target, np.cumsum(categories(self.action_space))[:-1])
            self.allowed = 1 - np.concatenate([np.roll(part, -1) for part in parts]).astype(np.int8)
        if self.mask == "key":
            return {"action_mask": self.allowed, "context": self.context}, {}
        return self.context, {"action_mask": self.allowed} if self.mask else {}


class Bytes(gym.Env):
    """Four rows of bytes an episode; the best action is 1 where the first byte is large."""

    def __init__(self):
        self.observation_space = spaces.Box(0, 255, (48,), np.uint8)
        self.action_space = TWO_ACTIONS

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return self._draw(), {}

    def step(self, action):
        reward = float((self.obs[0] > 127) == action)
        self.count += 1
        return self._draw(), reward, self.count == 4, False, {}

    def _draw(self):
        self.obs = self.np_random.integers(0, 256, 48, np.uint8)
        return self.obs.copy()


class Spot(gym.Env):
    """Four images; the reward is 1 for telling on which side of the image the bright spot is.

    With `signs` the observation is a Dict of the image and a number, and the reward is for telling
    the number's sign too. With `mask` it holds an action mask that allows all.
    """

    def __init__(self, shape=(16, 16, 1), signs=False, mask=False):
        self.shape, self.signs, self.mask = shape, signs, mask
        self.action_space = spaces.MultiDiscrete([2, 2]) if signs else TWO_ACTIONS
        self.observation_space = image = spaces.Box(0, 255, shape, np.uint8)
        if signs or mask:
            parts = {"image": image, "sign": UNIT_ACTIONS}
            masks = {"action_mask": spaces.MultiBinary(4 if signs else 2)} if mask else {}
            self.observation_space = spaces.Dict(parts | masks)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return self._draw(), {}

    def step(self, action):
        right = (self.right, self.sign > 0) if self.signs else self.right
        self.count += 1
        return self._draw(), float(np.all(action == np.array(right))), False, self.count == 4, {}

    def _draw(self):
        self.right, self.sign = bool(self.np_random.integers(2)), self.np_random.uniform(-1, 1)
        image = self.np_random.integers(0, 30, self.shape, np.uint8)
        height, width = self.shape[:2]
        row = self.np_random.integers(height - 3)
        column = self.np_random.integers(width // 2 - 3) + self.right * width // 2
        image[row : row + 3, column : column + 3] = 255
        if not isinstance(self.observation_space, spaces.Dict):
            return image
        masks = {"action_mask": np.ones(4 if self.signs else 2, np.int8)} if self.mask else {}
        return {"image": image, "sign": np.float32([self.sign]), **masks}


class Board(gym.Env):
    """A board of 3 x 3: the agent is 1, its goal 2, anywhere; -0.1 a step and 1 at the goal.

    The same numbers in any `form` (flat, grid, cube, or a grid in a dict or tuple) and `kind`.
    """

    def __init__(self, form="flat", kind="float32", high=2):
        self.form = form
        kind, shape = np.dtype(kind).type, {"flat": (9,), "cube": (3, 3, 1)}.get(form, (3, 3))
        low = 0 if high == 2 else -high
        self.board = board = spaces.Box(low, high, shape, kind)
        nested = {"dict": spaces.Dict({"a": spaces.Dict(b=board)}), "tuple": spaces.Tuple([board])}
        self.observation_space = nested.get(form, board)
        self.action_space = spaces.Discrete(4)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count, (self.at, self.goal) = 0, self.np_random.choice(9, 2, replace=False)
        return self._obs(), {}

    def step(self, action):
        self.count += 1
        row, column = np.clip(
            np.add(divmod(self.at, 3), [(0, 1), (1, 0), (0, -1), (-1, 0)][action]), 0, 2
        )
        self.at = 3 * row + column
        done = bool(self.at == self.goal)
        return self._obs(), 1.0 if done else -0.1, done, self.count == 8, {}

    def _obs(self):
        x = np.zeros(9, self.board.dtype)
        x[self.goal], x[self.at] = 2, 1
        x = x.reshape(self.board.shape)
        return {"dict": {"a": {"b": x}}, "tuple": (x,)}.get(self.form, x)


class Scaled(gym.Env):
    """Four steps; the best action is 1 where offset + scale * x has x > 0, uniform on [-1, 1]."""

    def __init__(self, offset=0.0, scale=1.0, kind="float64"):
        self.offset, self.scale, self.kind = offset, scale, np.dtype(kind)
        whole = np.issubdtype(self.kind, np.integer)
        high = np.iinfo(self.kind).max if whole else np.inf
        self.observation_space = spaces.Box(-high, high, (2,), self.kind.type)
        self.action_space = TWO_ACTIONS

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return self._draw(), {}

    def step(self, action):
        self.count += 1
        reward = float(action == (self.x[0] > 0))
        return self._draw(), reward, False, self.count == 4, {}

    def _draw(self):
        self.x = self.np_random.uniform(-1, 1, 2)
        return (self.offset + self.scale * self.x).astype(self.kind)


class TMaze(gym.Env):
    """A corridor of `length` steps: a sign at its start, -1 or 1, says where to turn at its end.

    The observation is [sign, at the end]; the reward 1 for the turn that the sign named, else -1.
    At the end a policy without memory sees [0, 1] whatever the sign was: its return is 0 at best.
    """

    def __init__(self, length=5):
        self.observation_space, self.action_space = spaces.Box(-1, 1, (2,)), TWO_ACTIONS
        self.length = length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count, self.sign = 0, int(self.np_random.choice([-1, 1]))
        return np.array([self.sign, 0], np.float32), {}

    def step(self, action):
        self.count += 1
        done = self.count == self.length
        reward = float(self.sign * (2 * action - 1)) if done else 0.0
        return np.array([0, self.count == self.length - 1], np.float32), reward, done, False, {}


class Positions(gym.ObservationWrapper):
    """CartPole without its velocities."""

    def __init__(self):
        super().__init__(gym.make("CartPole-v1"))
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def observation(self, obs):
        return obs[[0, 2]]


class OneStep(gym.Env):
    """One step an episode; the action is -1 or 1, or any number between them."""

    observations = (0.0,)

    def __init__(self, continuous=False):
        self.observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.action_space = UNIT_ACTIONS if continuous else TWO_ACTIONS
        self.continuous = continuous

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.obs = np.float32([self.np_random.choice(self.observations)])
        return self.obs.copy(), {}

    def step(self, action):
        signed = float(action[0]) if self.continuous else 2.0 * float(action) - 1.0
        return self.obs.copy(), self.reward(float(self.obs[0]), signed), True, False, {}


class ConstantReward(OneStep):
    """V = 1 and the policy can't matter."""

    def reward(self, obs, action):
        return 1.0


class RewardIsObservation(OneStep):
    """V(s) = s and the policy can't matter."""

    observations = (-1.0, 1.0)

    def reward(self, obs, action):
        return obs


class RewardIsAction(OneStep):
    """The best action is 1."""

    def reward(self, obs, action):
        return action


class RewardIsProduct(OneStep):
    """The best action is the observation."""

    observations = (-1.0, 1.0)

    def reward(self, obs, action):
        return obs * action


class TwoSteps(OneStep):
    """Observation 0, then 1; reward 0, then 1: V(1) = 1 and V(0) = gamma."""

    def step(self, action):
        last = bool(self.obs[0] == 1.0)
        self.obs = np.ones(1, np.float32)
        return self.obs.copy(), float(last), last, False, {}


PROBES = [ConstantReward, RewardIsObservation, TwoSteps, RewardIsAction, RewardIsProduct]

for env_class in (
    Counting, RandomLength, Echo, Faulty, WithSpaces, StrictSpaces, Match, TMaze, Positions, Spot,
    Bytes, Board, Scaled,
):  # fmt: skip
    options = {"vector_entry_point": CountingVector} if env_class is Counting else {}
    gym.register(f"{env_class.__name__}-v0", entry_point=env_class, **options)
MATCHES = {
    "MultiDiscrete": {"action_space": spaces.MultiDiscrete([3, 2])},
    "MultiBinary": {"action_space": spaces.MultiBinary(3)},
    "Dict": {"action_space": spaces.Dict(a=spaces.Discrete(3, start=1), b=UNIT_ACTIONS)},
    "Box": {"action_space": spaces.Box(np.float32([-1, 0]), np.float32([1, 2]))},
    "MaskInfo": {"action_space": spaces.Discrete(4), "mask": "info"},
    "MaskKey": {"action_space": spaces.Discrete(4), "mask": "key"},
    "MaskMultiInfo": {"action_space": spaces.MultiDiscrete([3, 2]), "mask": "info"},
    "MaskMultiKey": {"action_space": spaces.MultiDiscrete([3, 2]), "mask": "key"},
}
for name, options in MATCHES.items():
    gym.register(f"Match{name}-v0", entry_point=Match, kwargs=options)
for env_class in PROBES:
    gym.register(f"{env_class.__name__}-v0", entry_point=env_class)
    gym.register(
        f"{env_class.__name__}Continuous-v0", entry_point=env_class, kwargs={"continuous": True}
    )


def make_env(
    env_id, num_envs=2, backend="sync", max_episode_steps=None, action_mask=False, **kwargs
):
    """`make_vector_env` with settings that most tests want."""
    return make_vector_env(
        env_id,
        num_envs=num_envs,
        backend=backend,
        max_episode_steps=max_episode_steps,
        kwargs=kwargs,
        action_mask=action_mask,
    )


def make_policy(env, **settings):
    """A small random policy for the spaces of `env`; wide enough that its actions vary."""
    defaults = {
        "hidden_sizes": [8],
        "activation": "tanh",
        "distribution": "gaussian",
        "log_std_init": 0.0,
        "output_gain": 1.0,
        "orthogonal_init": True,
        "normalize_obs": True,
    }
    return MLPPolicy(env.single_observation_space, env.single_action_space, **(defaults | settings))


@functools.cache
def _compose(*choices):
    ConfigStore.instance().store("schema", Config)
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("train", list(choices), return_hydra_config=True)


def compose_config(*overrides):
    """The config that `scripts/train.py <overrides>` sees, resolved.

    Hydra takes a quarter of a second, so it composes each choice of groups once; values are merged
    into a copy.
    """
    choices = [o for o in overrides if o.lstrip("~+").split("=")[0] in GROUPS]
    values = [o.removeprefix("+") for o in overrides if o not in choices]
    cfg = _compose(*choices)
    HydraConfig.instance().set_config(cfg)
    cfg = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
    OmegaConf.set_struct(cfg, False)
    cfg = OmegaConf.merge(cfg, OmegaConf.from_dotlist(values))
    OmegaConf.resolve(cfg)
    return cfg
