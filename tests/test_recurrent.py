"""Recurrent policies: what acting sees is what an update differentiates."""

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from oracles import SGD, finite_difference, flat, make_rule, moved
from probes import compose_config, make_env
from test_train_script import run_here, train
from torch.distributions import kl_divergence

from rlopt import checkpoint, load
from rlopt.audit import Audit
from rlopt.build import make_trainer
from rlopt.evaluate import evaluate
from rlopt.fisher import fisher_operator
from rlopt.linalg import dense, flatten
from rlopt.masks import MaskedBox
from rlopt.recurrent import GRUPolicy
from rlopt.rollout import EpisodeRollout, StepRollout
from rlopt.types import Batch, RecurrentPolicy
from rlopt.verify.watch import recorded_samples

BOX = spaces.Box(-1, 1, (2,))
ACTIONS = {"discrete": spaces.Discrete(3), "box": BOX}
LENGTHS = [3, 1, 4, 1, 2]
SMALL = ["policy=gru", "policy.state_size=8", "baseline.hidden_sizes=[8]", "env.backend=sync"]


def make_gru(observation_space=BOX, action_space=ACTIONS["discrete"], **settings):
    defaults = {
        "state_size": 3,
        "update_bias": 0.5,
        "hidden_sizes": [],
        "activation": "tanh",
        "distribution": "gaussian",
        "log_std_init": -0.3,
        "output_gain": 1.0,
        "orthogonal_init": True,
        "normalize_obs": False,
    }
    return GRUPolicy(observation_space, action_space, **(defaults | settings))


def make_rows(policy, lengths=LENGTHS, size=2):
    """Rows of sequences; states that must not be looked at are nan."""
    starts = torch.cat([torch.arange(n) == 0 for n in lengths])
    state = torch.randn(len(starts), policy.state_size)
    state[~starts] = torch.nan
    return torch.cat([torch.randn(len(starts), size), state, starts[:, None]], -1), starts


def make_batch(policy, lengths=LENGTHS, **settings):
    obs, starts = make_rows(policy, lengths)
    with torch.no_grad():
        action = policy(obs).sample()
    return Batch(obs, action, torch.randn(len(obs)), starts=starts, **settings)


def gru_by_hand(policy, x, h):
    """One step for one row, from Cho et al. 2014 as PyTorch documents it."""
    W, U, b, c = policy.cell.parameters()
    r_x, z_x, n_x = (W @ x + b).chunk(3)
    r_h, z_h, n_h = (U @ h + c).chunk(3)
    r, z = (r_x + r_h).sigmoid(), (z_x + z_h).sigmoid()
    return (1 - z) * (n_x + r * n_h).tanh() + z * h


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("normalize_obs", [True, False])
def test_whole_sequences_are_a_loop_by_hand(normalize_obs):
    policy = make_gru(hidden_sizes=[4], normalize_obs=normalize_obs)
    rows, _ = make_rows(policy)
    policy.update_statistics(torch.cat([3 + 2 * rows[:, :2], rows[:, 2:]], -1))
    expected, h = [], None
    for row in rows:
        x, state, first = row.split([2, 3, 1])
        if normalize_obs:
            x = (x - policy.normalizer.mean) / policy.normalizer.var.sqrt()
        h = gru_by_hand(policy, x, state if first else h)
        expected.append(policy.network(h))
    torch.testing.assert_close(policy.dist_params(rows), torch.stack(expected))
    assert policy.dist_params(rows[:0]).shape == (0, 3)


def test_a_mask_goes_past_the_memory():
    policy = make_gru(MaskedBox(spaces.Box(-1, 1, (2,)), 3))
    rows, _ = make_rows(policy, size=5)
    rows[:, 2:5] = torch.tensor([1.0, 0.0, 1.0])
    without = make_gru()
    without.load_state_dict(policy.state_dict())
    probs, free = policy(rows).probs, without(torch.cat([rows[:, :2], rows[:, 5:]], -1)).probs
    assert not probs[:, 1].any()
    torch.testing.assert_close(probs[:, 0] / probs[:, 2], free[:, 0] / free[:, 2])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("kind", ACTIONS)
def test_the_gradient_goes_through_time(kind):
    policy = make_gru(action_space=ACTIONS[kind])
    batch = make_batch(policy)

    def objective(batch):
        return policy(batch.obs).log_prob(batch.action) * batch.advantage

    @torch.no_grad()
    def value(theta):
        new = moved(policy, theta)
        return float((new(batch.obs).log_prob(batch.action) * batch.advantage).mean())

    g = batch.gradient(objective, list(policy.parameters()))
    torch.testing.assert_close(g, finite_difference(value, flat(policy)), rtol=1e-6, atol=1e-8)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("kind", ACTIONS)
def test_the_fisher_matrix_is_the_hessian_of_the_kl(kind):
    policy = make_gru(action_space=ACTIONS[kind], state_size=2)
    batch = make_batch(policy, horizon=2.0)
    old = policy.dist(policy.dist_params(batch.obs).detach())
    parameters = list(policy.parameters())
    kl = batch.expect(kl_divergence(old, policy(batch.obs)))
    slope = flatten(torch.autograd.grad(kl, parameters, create_graph=True))
    hessian = torch.stack(
        [flatten(torch.autograd.grad(x, parameters, retain_graph=True)) for x in slope]
    )
    F = dense(fisher_operator(policy, batch, "exact"), flat(policy))
    torch.testing.assert_close(F, hessian)
    v, chunked = flat(policy), replace(batch, chunk_size=4)
    torch.testing.assert_close(fisher_operator(policy, chunked, "exact")(v), hessian @ v)


# What may not be separated


def sequences_of(batch):
    """The rows of each sequence, by the first entry of the observation."""
    starts = batch.starts.nonzero()[:, 0].tolist()
    return [tuple(part[:, 0].tolist()) for part in batch.obs.tensor_split(starts)[1:]]


@pytest.mark.parametrize("size", [1, 3, 5, 1000])
def test_parts_of_a_batch_are_whole_sequences(size):
    batch = make_batch(make_gru())
    whole = sequences_of(batch)
    for parts in (
        [batch[rows] for rows in batch.minibatches(size)],
        replace(batch, chunk_size=size).chunks(),
        batch.halves(),
    ):
        assert sorted(s for part in parts for s in sequences_of(part)) == sorted(whole)
        assert all(map(len, parts))
    assert len(batch.minibatches(size)) == min(-(-11 // size), 5)
    assert sequences_of(batch.every(2)) == whole[::2]
    some = sequences_of(batch.subsample(size))
    assert set(some) <= set(whole)
    assert len(some) == {1: 1, 3: 1, 5: 2, 1000: 5}[size]


def test_rows_are_divided_as_they_were_before_there_were_sequences():
    batch = Batch(torch.arange(11.0)[:, None], torch.zeros(11), torch.zeros(11))
    torch.manual_seed(3)
    minibatches = batch.minibatches(4)
    torch.manual_seed(3)
    assert all(map(torch.equal, minibatches, torch.randperm(11).tensor_split(3)))
    first, second = batch.halves()
    assert (first.obs[:, 0].tolist(), second.obs[0, 0]) == ([0, 1, 2, 3, 4], 5)
    assert batch.every(4).obs[:, 0].tolist() == [0, 4, 8]
    assert len(set(batch.subsample(4).obs[:, 0].tolist())) == 4
    assert [len(chunk) for chunk in replace(batch, chunk_size=4).chunks()] == [4, 4, 3]


@pytest.mark.usefixtures("float64")
def test_the_audit_knows_the_gradient_of_unequal_halves():
    policy = make_gru()
    batch = make_batch(policy, lengths=[7, 1, 1])
    audit = Audit(policy, batch)
    old = flat(policy)
    make_rule("pg", policy, optimizer=SGD).step(batch)
    g = (flat(policy) - old) / 0.1
    gain = audit.metrics()["audit/predicted_gain"]
    assert gain == pytest.approx(0.1 * float(g.dot(g)), rel=1e-8)


# Acting


def sampler(kind, env):
    if kind == "steps":
        return StepRollout(env, "cpu", 0, num_steps=7)
    return EpisodeRollout(env, "cpu", 0, episodes=5, baseline_episodes=0, max_episode_steps=99)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("kind", ["steps", "episodes"])
def test_the_update_recomputes_what_acting_did(kind):
    env = make_env("CartPole-v1", num_envs=3, max_episode_steps=9)
    policy = make_gru(env.single_observation_space, env.single_action_space)
    rollout_of = sampler(kind, env)
    for _ in range(4):
        with recorded_samples(policy) as samples:
            rollout = rollout_of.collect(policy)
        starts = rollout.flatten(rollout.starts)
        obs = torch.cat([rollout.flatten(rollout.obs[:-1]), starts[:, None]], -1)
        log_prob = policy(obs).log_prob(rollout.flatten(rollout.action))
        acted = rollout.flatten(torch.stack(samples[-len(rollout.valid) :]))
        torch.testing.assert_close(log_prob, acted)
        memory, fresh = rollout.obs[..., 4:], rollout.step == 0
        assert not memory[fresh].any()  # also right after an episode's end
        assert (memory[~fresh] != 0).all()
        assert rollout.num_trajectories == starts.sum() >= 3
    assert (rollout.step[0] > 0).any() == (kind == "steps")  # begun in the middle of episodes


def test_the_baseline_sees_the_history_and_the_normaliser_does_not(tmp_path):
    trainer = make_trainer(compose_config("algo=npg", "env=CartPole-v1", *SMALL), tmp_path)
    trainer.iterate()
    assert isinstance(trainer.policy, RecurrentPolicy)
    assert trainer.policy.normalizer.mean.shape == (4,)
    assert trainer.baseline.normalizer.mean.shape == (4 + 8,)
    assert trainer.baseline.normalizer.var.min() > 0


def test_a_resumed_run_remembers(tmp_path):
    cfg = compose_config("algo=npg", "env=CartPole-v1", "~tuned", *SMALL, "rollout.num_steps=6")
    trainer = make_trainer(cfg, tmp_path)
    trainer.iterate()
    trainer.logger.close()
    checkpoint.save(tmp_path / "state.pt", trainer.state_dict())
    resumed = make_trainer(cfg, tmp_path / "resumed", checkpoint.load(tmp_path / "state.pt"))
    resumed.logger.close()
    memory = resumed.rollout.recorder.state
    assert memory.any()
    assert torch.equal(memory, trainer.rollout.recorder.state)
    torch.manual_seed(5)
    ours = [resumed.iterate() for _ in range(2)]
    torch.manual_seed(5)
    theirs = [trainer.iterate() for _ in range(2)]
    assert timeless(ours) == timeless(theirs)
    assert torch.equal(flat(resumed.policy), flat(trainer.policy))


def timeless(rows):
    return [[(k, x) for k, x in row.items() if x == x and "time/" not in k] for row in rows]


# A trained one


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(tmp_path_factory.mktemp("gru") / "run", "algo=npg", *SMALL)


def test_a_loaded_policy_remembers_until_it_is_reset(run):
    policy, env = load(run), gym.make("CartPole-v1", max_episode_steps=20)
    returns = []
    for seed in (7, 8, 9):
        obs, _ = env.reset(seed=seed)
        policy.reset()
        done, total = False, 0.0
        while not done:
            obs, reward, terminated, truncated, _ = env.step(policy(obs))
            done, total = terminated or truncated, total + float(reward)
        returns.append(total)
    vector = make_env("CartPole-v1", num_envs=3, max_episode_steps=20)
    options = {"seed": 7, "deterministic": True, "device": "cpu"}
    assert sorted(returns) == sorted(evaluate(policy.module, vector, episodes=3, **options).returns)
    with pytest.raises(ValueError, match=r"obs of 2 environments after those of 1 .* reset\(\)"):
        policy(np.zeros((2, 4)))


def test_some_environments_of_a_batch_are_reset(run):
    policy, obs = load(run), np.ones((3, 4), np.float32)
    policy(obs)
    first = policy.state
    policy.reset([True, False, True])
    policy(obs)
    assert torch.equal(policy.state[[0, 2]], first[[0, 2]])
    assert not torch.equal(policy.state[1], first[1])


def test_the_exported_program_is_one_step(run, monkeypatch):
    monkeypatch.setattr("rlopt.export.ONNX", ("no_such_module",))
    code, out = run_here("export.py", f"run={run}")
    assert code is None
    assert "obs [B, 4] and state [B, 8] to actions" in out
    program = torch.export.load(run / "policy.pt2").module()
    obs, state = torch.randn(5, 4), torch.randn(5, 8)
    action, new = program(obs, state)
    dist, expected = load(run).module.advance(obs, state)
    torch.testing.assert_close(new, expected)
    assert torch.equal(action, dist.mode)
