"""Masked actions: probability 0, no part in anything; where the mask comes from."""

from functools import partial

import gymnasium as gym
import numpy as np
import probes
import pytest
import torch
from probes import make_env
from space_table import MASKED_SPACES, SPACES, make_policy, random_obs
from torch.distributions import kl_divergence

from rlopt import env_state
from rlopt.action_spaces import categories
from rlopt.distributions import MASKED, Categorical
from rlopt.envs import fastest_backend
from rlopt.faults import BrokenEnvError
from rlopt.masks import mask_size
from rlopt.recorder import Recorder, sample
from rlopt.trained import TrainedPolicy


def allowed_parts(params, mask, sizes):
    """Categoricals over the allowed choices alone, of one sample, for each entry of the action."""
    for logits, allowed in zip(params.split(sizes), mask.split(sizes), strict=True):
        yield Categorical(logits[allowed == 1])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", MASKED_SPACES)
def test_masked_actions_have_no_part_in_entropy_kl_and_fisher(name):
    sizes, obs = categories(SPACES[name]), random_obs(name, 12)
    mask = obs[:, 3:]
    assert int((mask == 0).sum()) > 0
    policies = make_policy(name), make_policy(name)
    old_params, new_params = (policy.dist_params(obs).detach() for policy in policies)
    old, new = (policies[0].dist(params) for params in (old_params, new_params))
    u = torch.randn_like(mask)
    Mu = old.fisher_product(u)
    assert not Mu[mask == 0].any()
    entropy, kl = old.entropy(), kl_divergence(old, new)
    for b in range(12):
        p, q = (list(allowed_parts(x[b], mask[b], sizes)) for x in (old_params, new_params))
        assert float(entropy[b]) == pytest.approx(float(sum(x.entropy() for x in p)), abs=1e-12)
        truth = sum(kl_divergence(x, y) for x, y in zip(p, q, strict=True))
        assert float(kl[b]) == pytest.approx(float(truth), abs=1e-12)
        parts = zip(p, u[b].split(sizes), mask[b].split(sizes), strict=True)
        product = torch.cat([x.fisher_product(v[m == 1]) for x, v, m in parts])
        torch.testing.assert_close(Mu[b][mask[b] == 1], product)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", MASKED_SPACES)
def test_masked_actions_have_probability_0_and_finite_gradients(name, dtype):
    policy, obs, sizes = make_policy(name).to(dtype), random_obs(name, 30).to(dtype), []
    dist = policy(obs)
    masks = obs[:, 3:].split(categories(SPACES[name]), dim=-1)
    for part, mask in zip(getattr(dist, "parts", [dist]), masks, strict=True):
        assert not part.probs[mask == 0].any()
        action = part.sample(torch.Size([1000]))
        assert mask.expand(1000, -1, -1).gather(-1, action[..., None]).all()
        assert mask.gather(-1, part.mode[:, None]).all()
        sizes.append(mask.sum(-1))
    assert min(map(float, map(torch.min, sizes))) == 1  # one choice alone: entropy 0
    total = dist.entropy().sum() + dist.log_prob(dist.sample()).sum()
    gradients = torch.autograd.grad(total, list(policy.parameters()))
    assert all(torch.isfinite(g).all() for g in gradients)


@pytest.mark.usefixtures("float64")
def test_the_network_and_the_normaliser_do_not_see_the_mask():
    policy = make_policy("Discrete, masked", normalize_obs=True)
    obs = random_obs("Discrete, masked", 40)
    policy.update_statistics(obs)
    torch.testing.assert_close(policy.normalizer.shift, obs[:, :3].mean(0))
    everything = torch.cat([obs[:, :3], torch.ones(40, 4)], dim=-1)
    some, all_of_them = policy.dist_params(obs), policy.dist_params(everything)
    torch.testing.assert_close(some, all_of_them.masked_fill(obs[:, 3:] == 0, MASKED))


@pytest.mark.usefixtures("float64")
def test_a_mask_of_a_finished_episode_may_be_empty():
    obs = torch.zeros(1, 7)
    dist = make_policy("Discrete, masked")(obs)
    assert torch.equal(dist.probs, torch.full((1, 4), 0.25))


# Where the mask comes from


def masked_env(kind, backend="sync", **settings):
    return make_env(f"MatchMask{kind}-v0", 3, backend, action_mask="Info" in kind, **settings)


@pytest.mark.parametrize("backend", ["sync", "async"])
@pytest.mark.parametrize("kind", ["Info", "Key", "MultiInfo", "MultiKey"])
def test_the_mask_is_last_in_the_observation_and_no_forbidden_action_is_taken(kind, backend):
    env = masked_env(kind, backend)
    sizes = categories(env.single_action_space)
    assert env.single_observation_space.mask_size == sum(sizes)
    recorder = Recorder(env, "cpu", sample)
    recorder.reset(0)
    rollout = recorder.record(probes.make_policy(env), quota=None, num_rows=40)
    env.close()
    context, *masks = rollout.obs.split([2, *sizes], dim=-1)
    assert rollout.reward.min() > -100
    assert torch.equal(context.sum(-1), torch.ones(41, 3))
    assert all(((mask == 0).sum(-1) == 1).all() for mask in masks)
    assert len(rollout.episode_returns) == 3 * (40 // 6)


def test_the_state_of_masked_environments_can_be_restored():
    env, other = (masked_env("Info") for _ in range(2))
    env.reset(seed=0)
    env.step(np.full(3, 2))
    other.reset(seed=1)
    env_state.restore(env_state.capture({"env": env}), {"env": other})
    for _ in range(12):
        obs, again = (e.reset()[0] for e in (env, other))
        assert (obs == again).all()


class Masked(gym.Env):
    """Two actions, episodes of two steps, and `mask` at the given step."""

    observation_space, action_space = probes.UNIT_ACTIONS, probes.TWO_ACTIONS

    def __init__(self, mask=None, at=1):
        self.mask, self.at = mask, at

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return np.zeros(1, np.float32), self.info()

    def step(self, action):
        self.count += 1
        return np.zeros(1, np.float32), 0.0, self.count == 2, False, self.info()

    def info(self):
        mask = self.mask if self.count == self.at else [1, 1]
        return {} if mask is None else {"action_mask": np.array(mask, np.int8)}


gym.register("Masked-v0", entry_point=Masked)


@pytest.mark.parametrize(
    ("mask", "at", "message"),
    [
        ([0, 0], 1, "step: environment 0 gave an action_mask that allows no action"),
        (None, 1, r"step: an action_mask of shape \(2,\) is due, got none in info"),
        (None, 0, r"reset: an action_mask .* is due, got none in info"),
        ([1, 1, 1], 0, r"environment 0: reset gave the wrong mask .* \(2,\) is due, .* \(3,\)$"),
    ],
)
def test_a_mask_that_cant_be_is_named(mask, at, message):
    env = make_env("Masked-v0", action_mask=True, mask=mask, at=at)
    recorder = Recorder(env, "cpu", sample)
    with pytest.raises(BrokenEnvError, match=rf"^env=Masked-v0: {message}"):
        recorder.reset(0)
        recorder.record(probes.make_policy(env), quota=None, num_rows=3)


@pytest.mark.parametrize("mask", [[0, 0], None])
def test_the_last_observation_of_an_episode_needs_no_mask(mask):
    env = make_env("Masked-v0", action_mask=True, mask=mask, at=2)
    recorder = Recorder(env, "cpu", sample)
    recorder.reset(0)
    rollout = recorder.record(probes.make_policy(env), quota=None, num_rows=9)
    assert len(rollout.episode_returns) == 6


def test_masks_of_other_actions_are_refused():
    message = r"^env=Echo-v0: action masks are for Discrete and MultiDiscrete, not for Box"
    with pytest.raises(ValueError, match=message):
        make_env("Echo-v0", action_mask=True)


def test_a_key_that_does_not_fit_the_actions_is_refused():
    space = gym.spaces.Dict(action_mask=gym.spaces.MultiBinary(3), x=probes.UNIT_ACTIONS)
    message = r"^env=WithSpaces-v0: .* action_mask has 3 entries, Discrete\(2\) needs 2"
    with pytest.raises(ValueError, match=message):
        make_env("WithSpaces-v0", observation_space=space)


def test_a_policy_needs_something_beside_the_mask_to_see():
    space = gym.spaces.Dict(action_mask=gym.spaces.MultiBinary(2))
    with pytest.raises(ValueError, match=r"^env=WithSpaces-v0: .* nothing beside its action_mask"):
        make_env("WithSpaces-v0", observation_space=space)


def test_envpool_is_not_chosen_for_masks_of_info():
    assert fastest_backend("Acrobot-v1", {}, action_mask=True) == "sync"


@pytest.mark.parametrize("kind", ["MaskInfo", "MaskKey", "MaskMultiInfo", "MaskMultiKey", "Dict"])
def test_a_loaded_policy_gives_a_users_loop_allowed_actions(kind):
    make_own = partial(gym.make, f"Match{kind}-v0")
    env = make_own()
    flat = make_env(f"Match{kind}-v0", action_mask="Info" in kind)
    size = mask_size(flat.single_observation_space)
    about = env.observation_space, env.action_space, f"Match{kind}-v0", 0, "cpu", size, make_own
    policy = TrainedPolicy(probes.make_policy(flat), *about)
    obs, info = env.reset(seed=0)
    for _ in range(5):
        action = policy(obs, deterministic=False, action_mask=info.get("action_mask"))
        assert env.action_space.contains(action)
        obs, reward, _, _, info = env.step(action)
        assert reward > -100
    if "Info" in kind:
        with pytest.raises(ValueError, match=rf"action_mask of shape \({size},\) is due, got none"):
            policy(obs)
