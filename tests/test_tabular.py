"""Exact solutions against brute force over all trajectories, finite differences and Gymnasium."""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from rlopt import tabular
from rlopt.algos.npg import NPG
from rlopt.enumeration import enumerate_trajectories, exact_rollout, example, tiny_mdp
from rlopt.envs import make_vector_env
from rlopt.fisher import fisher_operator
from rlopt.linalg import dense
from rlopt.mdp import TabularEnv
from rlopt.rollout import EpisodeRollout
from rlopt.tabular import TabularMDP, action_probabilities, parameters_of, tabular_policy
from rlopt.types import Batch


@pytest.fixture(scope="module")
def ex():
    return example(seed=0)


def one_hot(index, size):
    return torch.eye(size, dtype=torch.float64)[index]


def random_pi(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).softmax(-1)


def enumerated_return(mdp, pi):
    taus = enumerate_trajectories(mdp)
    returns = (mdp.R[taus.state, taus.action] * taus.active).sum(-1)
    return taus.log_prob(pi).exp() @ returns


def restart(mdp, state, horizon):
    mu = one_hot(state, len(mdp.mu))
    return TabularMDP(mdp.P, mdp.R, mu, horizon, mdp.terminal)


# Values


def test_probabilities_of_all_trajectories_sum_to_one():
    mdp, pi, _ = tiny_mdp()
    total = enumerate_trajectories(mdp).log_prob(random_pi(*pi.shape)).exp().sum()
    assert total == pytest.approx(1, abs=1e-12)


def test_v_is_the_mean_return_over_all_trajectories():
    mdp, pi, _ = tiny_mdp()
    V = tabular.values(mdp, pi).V
    assert (V[mdp.horizon] == 0).all()
    for h in range(mdp.horizon):
        for s in range(3):  # the last state is terminal
            expected = enumerated_return(restart(mdp, s, mdp.horizon - h), pi)
            assert V[h, s] == pytest.approx(float(expected), abs=1e-12)


def test_q_and_a_are_those_of_a_forced_first_action():
    mdp, pi, _ = tiny_mdp()
    V, Q, A = tabular.values(mdp, pi)
    for h in range(mdp.horizon):
        for s in range(3):
            start = restart(mdp, s, mdp.horizon - h)
            taus = enumerate_trajectories(start)
            returns = (mdp.R[taus.state, taus.action] * taus.active).sum(-1)
            rho = taus.log_prob(pi).exp()
            for a in range(3):
                chosen = rho * (taus.action[:, 0] == a)
                expected = chosen @ returns / chosen.sum()
                assert Q[h, s, a] == pytest.approx(float(expected), abs=1e-12)
    torch.testing.assert_close(A, Q - V[:-1, :, None])


def test_values_of_a_policy_that_depends_on_the_step():
    mdp = tabular.random_mdp(3, 2, 2, seed=0)
    pi = random_pi(2, 3, 2)
    taus = enumerate_trajectories(mdp)
    steps = torch.arange(2).expand_as(taus.state)
    rho = taus.chance * pi[steps, taus.state, taus.action].prod(-1)
    expected = rho @ mdp.R[taus.state, taus.action].sum(-1)
    assert tabular.expected_return(mdp, pi) == pytest.approx(float(expected), abs=1e-12)


def test_visits_count_every_trajectory_that_acts_there():
    mdp, pi, _ = tiny_mdp()
    taus = enumerate_trajectories(mdp)
    rho = taus.log_prob(pi).exp()
    here = one_hot(taus.state, 4) * taus.active[..., None]
    expected = torch.einsum("n,nhs->hs", rho, here)
    torch.testing.assert_close(tabular.visits(mdp, pi), expected)
    torch.testing.assert_close(
        tabular.state_distributions(mdp, pi).sum(-1), torch.ones(3, dtype=torch.float64)
    )


def test_advantage_averages_to_zero_under_its_policy():
    mdp, pi = tabular.random_mdp(5, 3, 4, seed=1), random_pi(5, 3)
    assert (pi * tabular.values(mdp, pi).A).sum(-1).abs().max() < 1e-12


# Gradient, Fisher matrix, KL


def test_gradient_by_autograd_theorem_and_finite_differences(ex):
    g = tabular.policy_gradient(ex.mdp, ex.policy)
    torch.testing.assert_close(g, tabular.policy_gradient_theorem(ex.mdp, ex.policy))
    for i in (0, 17, 50):
        x = 1e-5 * one_hot(i, len(g))
        up, down = (tabular.expected_return(ex.mdp, ex.at(ex.theta + e)) for e in (x, -x))
        assert (up - down) / 2e-5 == pytest.approx(float(g[i]), abs=1e-8)


def test_fisher_matrix_is_the_operators_on_uniform_states():
    """H = 1 from uniform states: the batch of all states once has the right expectation."""
    S, A = 5, 3
    P = torch.eye(S, dtype=torch.float64)[:, None].expand(S, A, S)
    mu, alive = torch.full((S,), 1 / S, dtype=torch.float64), torch.zeros(S, dtype=torch.bool)
    mdp = TabularMDP(P, torch.zeros(S, A, dtype=torch.float64), mu, 1, alive)
    torch.manual_seed(0)
    policy = tabular_policy(random_pi(S, A), hidden_sizes=[7, 6])
    batch = Batch(torch.eye(S, dtype=torch.float64), torch.zeros(S), torch.zeros(S))
    F = dense(fisher_operator(policy, batch, "exact"), parameters_of(policy))
    torch.testing.assert_close(tabular.fisher_matrix(mdp, policy), F)


def test_terminal_states_count_neither_in_fisher_nor_in_kl():
    mdp, pi, _ = tiny_mdp()
    other = pi.clone()
    other[3] = torch.tensor([0.1, 0.1, 0.8])
    assert tabular.trajectory_kl(mdp, pi, other) == 0
    policy = tabular_policy(pi)
    F = tabular.fisher_matrix(mdp, policy)
    terminal_weights = [action * 4 + 3 for action in range(3)]
    assert (F[terminal_weights] == 0).all()


def test_trajectory_kl_over_all_trajectories_and_its_direction():
    mdp, pi, _ = tiny_mdp()
    new, taus = random_pi(4, 3, seed=3), enumerate_trajectories(mdp)
    p, q = taus.log_prob(pi), taus.log_prob(new)
    expected = (p.exp() * (p - q)).sum()
    assert tabular.trajectory_kl(mdp, pi, new) == pytest.approx(float(expected), abs=1e-12)
    assert tabular.trajectory_kl(mdp, pi, new) != pytest.approx(
        float(tabular.trajectory_kl(mdp, new, pi)), abs=1e-3
    )


def test_kl_of_deterministic_policies():
    mdp, pi, _ = tiny_mdp()
    sure = one_hot(torch.zeros(4, dtype=torch.long), 3)
    assert tabular.trajectory_kl(mdp, sure, sure) == 0
    assert math.isfinite(tabular.trajectory_kl(mdp, sure, pi))
    assert tabular.trajectory_kl(mdp, pi, sure) == math.inf


@pytest.mark.parametrize("hidden_sizes", [[], [6], [8, 6]])
def test_tabular_policy_has_the_given_probabilities(hidden_sizes):
    pi = random_pi(5, 3)
    policy = tabular_policy(pi, hidden_sizes)
    torch.testing.assert_close(action_probabilities(policy, 5), pi)


def test_functions_of_theta_leave_the_policy_alone(ex):
    before = {name: x.clone() for name, x in ex.policy.state_dict().items()}
    action_probabilities(ex.policy, 4, ex.theta + 1)
    tabular.natural_gradient_step(ex.mdp, ex.policy, 0.1)
    tabular.trust_region_step(ex.mdp, ex.policy, 0.01)
    assert all(torch.equal(x, before[name]) for name, x in ex.policy.state_dict().items())


# Steps


def test_npg_with_damping_is_the_packages(ex):
    rule = NPG(
        tabular_policy(ex.pi), max_kl=0.01, step_size=None, fisher="exact", fisher_samples=None,
        solver="dense", damping=0.1, cg_iterations=1, cg_tolerance=0.0,
    )  # fmt: skip
    expected = tabular.natural_gradient_step(ex.mdp, rule.policy, 0.02, damping=0.1)
    rule.step(ex.batch)
    torch.testing.assert_close(parameters_of(rule.policy), expected)


def test_trpo_reaches_the_radius_and_beats_the_ray_of_npg(ex):
    delta = 0.05
    trpo = tabular.trust_region_step(ex.mdp, ex.policy, delta)
    assert ex.kl(trpo) == pytest.approx(delta, rel=1e-5)
    x = tabular.natural_gradient_step(ex.mdp, ex.policy, 2 * delta) - ex.theta
    ray = [ex.theta + scale * x for scale in np.linspace(0, 2, 41)]
    inside = [float(ex.local_advantage(theta)) for theta in ray if ex.kl(theta) <= delta]
    assert len(inside) > 10
    assert ex.local_advantage(trpo) > max(inside)


def test_steps_stay_where_there_is_no_gradient():
    mdp, pi, _ = tiny_mdp()
    flat = TabularMDP(mdp.P, torch.zeros_like(mdp.R), mdp.mu, 3, mdp.terminal)
    policy = tabular_policy(pi)
    for step in (tabular.natural_gradient_step, tabular.trust_region_step):
        assert torch.equal(step(flat, policy, 0.1), parameters_of(policy))


def test_policy_iteration_with_exact_advantages_reaches_the_optimum():
    mdp = tabular.random_mdp(5, 3, 4, seed=2)
    best = torch.zeros(5, dtype=torch.float64)
    for _ in range(mdp.horizon):
        best = (mdp.R + mdp.P @ best).max(-1).values
    pi = random_pi(5, 3)
    for _ in range(mdp.horizon):  # exact from the last step back, one step an iteration
        V, _, A = tabular.values(mdp, pi)
        pi = tabular.greedy(A)
        assert (tabular.values(mdp, pi).V[0] >= V[0] - 1e-12).all()
    torch.testing.assert_close(tabular.values(mdp, pi).V[0], best)


# MDPs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"P": torch.zeros(4, 3, 3)}, "needs P"),
        ({"P": torch.zeros(4, 3, 4)}, "P is not a distribution"),
        ({"mu": torch.tensor([0.7, 0.7, -0.4, 0.0])}, "mu is not a distribution"),
        ({"horizon": 0}, "horizon must be at least 1"),
        ({"terminal": torch.tensor([True, False, False, False])}, "absorbing"),
    ],
)
def test_arrays_that_are_no_mdp(change, message):
    mdp, _, _ = tiny_mdp()
    arrays = {"P": mdp.P, "R": mdp.R, "mu": mdp.mu, "horizon": 3, "terminal": mdp.terminal}
    with pytest.raises(ValueError, match=message):
        TabularMDP(**{**arrays, **change})


def test_probabilities_that_are_no_multiples():
    mdp, pi, count = tiny_mdp()
    with pytest.raises(ValueError, match="no multiples of 1/512"):
        exact_rollout(mdp, random_pi(*pi.shape), count)


@pytest.mark.parametrize("env_id", ["FrozenLake-v1", "CliffWalking-v1", "Taxi-v4"])
def test_every_transition_of_gymnasium_is_in_the_table(env_id):
    mdp = tabular.from_gymnasium(env_id, horizon=5)
    env = gym.make(env_id)
    rng, deterministic = np.random.default_rng(0), env_id != "FrozenLake-v1"
    for seed in range(20):
        state, _ = env.reset(seed=seed)
        assert mdp.mu[state] > 0
        for _ in range(50):
            action = int(rng.integers(env.action_space.n))
            following, reward, terminated, truncated, _ = env.step(action)
            assert mdp.P[state, action, following] > 0
            assert bool(mdp.terminal[following]) == terminated
            if deterministic:
                assert mdp.P[state, action, following] == 1
                assert mdp.R[state, action] == reward
            if terminated or truncated:
                break
            state = following
    env.close()


def sampled_returns(env_id, policy, episodes, **options):
    env = make_vector_env(env_id, num_envs=50, backend="sync", **options)
    limit = options["max_episode_steps"] or 100
    torch.manual_seed(0)
    sampler = EpisodeRollout(
        env, "cpu", 0, episodes=episodes, baseline_episodes=0, max_episode_steps=limit
    )
    rollout = sampler.collect(policy.float())
    env.close()
    return rollout, torch.tensor(rollout.episode_returns, dtype=torch.float64)


def assert_mean(returns, expected):
    standard_error = returns.std() / len(returns) ** 0.5
    assert abs(returns.mean() - expected) < 4 * standard_error
    assert standard_error < 0.1 * abs(expected)


ACROSS_THE_ICE = [0, 3, 3, 3, 0, 0, 0, 0, 3, 1, 0, 0, 0, 2, 1, 0]  # optimal on the 4x4 map


@pytest.mark.parametrize(
    ("env_id", "horizon", "preferred"),
    [("FrozenLake-v1", 20, ACROSS_THE_ICE), ("CliffWalking-v1", 5, [0] * 48)],
)
def test_j_is_the_mean_return_of_gymnasiums_episodes(env_id, horizon, preferred):
    mdp = tabular.from_gymnasium(env_id, horizon)
    pi = 0.9 * one_hot(torch.tensor(preferred), 4) + 0.1 / 4
    options = {"max_episode_steps": horizon, "kwargs": {}}
    _, returns = sampled_returns(env_id, tabular_policy(pi), 2000, **options)
    assert_mean(returns, tabular.expected_return(mdp, pi))


def test_from_gymnasium_takes_an_environment():
    env = gym.make("FrozenLake-v1", is_slippery=False)
    assert set(tabular.from_gymnasium(env, 3).P.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize(
    ("env", "options", "message"),
    [
        ("CartPole-v1", {}, "does not expose its transition table"),
        ("Taxi-v4", {"fickle_passenger": True}, "fickle_passenger"),
    ],
)
def test_environments_that_are_not_their_table(env, options, message):
    with pytest.raises(ValueError, match=message):
        tabular.from_gymnasium(gym.make(env, **options), 3)


def test_a_state_that_ends_only_some_episodes_is_refused():
    env = gym.make("FrozenLake-v1")
    env.unwrapped.P[0][0] = [(1.0, 4, 0.0, True)]  # state 4 is also entered without termination
    with pytest.raises(ValueError, match="both with and without termination"):
        tabular.from_gymnasium(env, 3)


def test_sampling_a_tabular_mdp_gives_its_return():
    mdp, pi, _ = tiny_mdp()
    options = {"max_episode_steps": None, "kwargs": {"mdp": mdp}}
    rollout, returns = sampled_returns("rlopt/Tabular-v0", tabular_policy(pi), 4000, **options)
    assert_mean(returns, tabular.expected_return(mdp, pi))
    visits = tabular.visits(mdp, pi).sum()
    assert np.mean(rollout.episode_lengths) == pytest.approx(float(visits), rel=0.05)
    assert not rollout.truncated.any()


def test_two_actions_is_the_lectures():
    mdp = tabular.two_actions()
    pi = torch.tensor([[0.25, 0.75]], dtype=torch.float64)
    assert tabular.expected_return(mdp, pi) == 100 * 0.25 + 1 * 0.75
    options = {"max_episode_steps": None, "kwargs": {}}
    rollout, returns = sampled_returns("rlopt/TwoActions-v0", tabular_policy(pi), 4000, **options)
    assert set(returns.tolist()) == {100.0, 1.0}
    assert set(rollout.episode_lengths) == {1}
    assert_mean(returns, 25.75)


def test_gymnasium_accepts_the_environments():
    env = gym.make("rlopt.tabular:rlopt/TwoActions-v0")
    assert isinstance(env.unwrapped, TabularEnv)
    check_env(env.unwrapped, skip_render_check=True)
