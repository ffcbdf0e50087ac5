import copy
from dataclasses import replace

import pytest
import torch
from oracles import (
    KINDS,
    TwoArms,
    dense_fisher,
    finite_difference,
    flat,
    make_policy,
    make_rule,
    mean_kl,
    moved,
    problem,
    step_of,
    surrogate,
)
from torch.distributions import Categorical as TorchCategorical

from rlopt.types import Batch

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("fisher", ["exact", "empirical"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["npg", "trpo"])
def test_step_solves_the_damped_fisher_system_for_the_surrogate_gradient(name, kind, fisher):
    policy, batch = problem(kind)
    old = copy.deepcopy(policy)
    g = finite_difference(lambda theta: surrogate(old, moved(old, theta), batch), flat(old))
    A = dense_fisher(old, batch, fisher) + 0.1 * torch.eye(len(g))

    rule = make_rule(name, policy, fisher=fisher, damping=0.1, max_kl=1e-4)
    metrics = rule.step(batch)
    step = flat(policy) - flat(old)
    torch.testing.assert_close(A @ step, metrics["algo/step_size"] * g, rtol=1e-5, atol=1e-8)
    full = step / metrics.get("algo/line_search_scale", 1)  # to the edge of the damped region
    assert float(full @ A @ full) / 2 == pytest.approx(1e-4, rel=1e-6)
    assert metrics["algo/grad_norm"] == pytest.approx(g.norm().item(), rel=1e-6)
    assert metrics["algo/predicted_gain"] == pytest.approx(float(g @ step), rel=1e-6)


@pytest.mark.parametrize("scale", [100.0, 1e-8])
@pytest.mark.parametrize("iterations", [3, 200])
def test_step_is_invariant_to_advantage_scale(scale, iterations):
    policy, batch = problem("box")
    scaled = replace(batch, advantage=scale * batch.advantage)
    steps = [
        step_of(make_rule("npg", copy.deepcopy(policy), cg_iterations=iterations), b)
        for b in (batch, scaled)
    ]
    torch.testing.assert_close(*steps, rtol=1e-6, atol=1e-10)


def test_a_fixed_step_size_multiplies_the_natural_gradient():
    policy, batch = problem("discrete")
    scaled = replace(batch, advantage=100 * batch.advantage)
    unit, double, hundred = (
        step_of(make_rule("npg", copy.deepcopy(policy), step_size=eta), b)
        for eta, b in [(0.1, batch), (0.2, batch), (0.1, scaled)]
    )
    torch.testing.assert_close(double, 2 * unit)
    torch.testing.assert_close(hundred, 100 * unit)


@pytest.mark.parametrize("kind", KINDS)
def test_measured_kl_approaches_the_radius_as_it_shrinks(kind):
    policy, batch = problem(kind, size=64)
    errors = []
    for max_kl in (1e-6, 1e-8):
        rule = make_rule("npg", copy.deepcopy(policy), damping=0.0, max_kl=max_kl)
        rule.step(batch)
        errors.append(abs(mean_kl(policy, rule.policy, batch) / max_kl - 1))
    assert errors[0] > 5 * errors[1]
    assert errors[-1] < 2e-3


@pytest.mark.parametrize("solver", ["cg", "dense"])
@pytest.mark.parametrize("iterations", [2, 200])
@pytest.mark.parametrize("name", ["npg", "trpo"])
def test_predicted_kl_is_half_the_undamped_quadratic_form_of_the_step(name, iterations, solver):
    policy, batch = problem("box")
    F = dense_fisher(policy, batch)
    theta = flat(policy)
    metrics = make_rule(name, policy, solver=solver, cg_iterations=iterations).step(batch)
    step = flat(policy) - theta
    assert metrics["algo/predicted_kl"] == pytest.approx(float(step @ F @ step) / 2, rel=1e-6)
    assert metrics["algo/predicted_kl"] < 0.01  # damping has its share of the radius


def test_dense_and_conjugate_gradient_take_the_same_step():
    policy, batch = problem("box")
    steps = [
        step_of(make_rule("npg", copy.deepcopy(policy), solver=solver), batch)
        for solver in ("cg", "dense")
    ]
    torch.testing.assert_close(*steps, rtol=1e-6, atol=1e-9)


def test_the_dense_solver_without_damping_says_what_to_do_about_a_singular_matrix():
    policy, batch = problem("discrete")  # a shift of all logits changes nothing: F is singular
    rule = make_rule("npg", policy, solver="dense", damping=0.0, fisher="empirical")
    with pytest.raises(ValueError, match="damping"):
        rule.step(replace(batch, obs=torch.zeros(16, 3)))


@pytest.mark.parametrize("solver", ["cg", "dense"])
@pytest.mark.parametrize("name", ["npg", "trpo"])
def test_fisher_samples_are_drawn_once_and_the_gradient_is_that_of_all(name, solver):
    policy, batch = problem("box")
    old = copy.deepcopy(policy)
    g = finite_difference(lambda theta: surrogate(old, moved(old, theta), batch), flat(old))
    torch.manual_seed(0)
    sample = batch.subsample(6)
    assert len(set(map(tuple, sample.obs.tolist()))) == 6
    A = dense_fisher(old, sample) + 0.1 * torch.eye(len(g))

    torch.manual_seed(0)
    rule = make_rule(name, policy, fisher_samples=6, solver=solver, damping=0.1, max_kl=1e-4)
    eta = rule.step(batch)["algo/step_size"]
    torch.testing.assert_close(A @ (flat(policy) - flat(old)), eta * g, rtol=1e-5, atol=1e-8)


def test_a_subsample_is_random():
    """Each of 20 rows is in a subsample of 5 with probability 1/4; bound of 6.5 std, level 2e-9."""
    batch = Batch(torch.arange(20.0)[:, None], torch.zeros(20), torch.zeros(20))
    draws = torch.stack([batch.subsample(5).obs[:, 0] for _ in range(1000)]).long()
    count = torch.bincount(draws.flatten(), minlength=20)
    assert (count - 250).abs().max() < 6.5 * (1000 * 0.25 * 0.75) ** 0.5


@pytest.mark.parametrize("prob", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("solver", ["cg", "dense"])
def test_natural_gradient_of_two_arms_is_the_difference_of_their_rewards(prob, solver):
    """J = 100 pi_1 + pi_2: grad J = 99 pi_1 pi_2 and F = pi_1 pi_2, so F^-1 grad J = 99."""
    policy = TwoArms(prob)
    action = (torch.arange(10) >= round(10 * prob)).long()  # each as often as it is likely
    batch = Batch(torch.zeros(10, 1), action, torch.where(action == 0, 100.0, 1.0))
    rule = make_rule("npg", policy, step_size=1e-3, damping=0.0, solver=solver)
    assert step_of(rule, batch).item() == pytest.approx(0.099)


def test_small_steps_do_not_depend_on_the_parameterisation():
    """logit = theta and logit = 5 theta are the same family of policies."""

    class Stretched(TwoArms):
        def dist_params(self, obs):
            return 5 * super().dist_params(obs)

    plain, stretched = TwoArms(0.7), Stretched(0.7)
    with torch.no_grad():
        stretched.theta.div_(5)
    action = torch.tensor([0, 0, 1, 0, 1])
    batch = Batch(torch.zeros(5, 1), action, torch.randn(5))
    for policy in (plain, stretched):
        make_rule("npg", policy, damping=0.0).step(batch)
    torch.testing.assert_close(plain(batch.obs).probs, stretched(batch.obs).probs)
    assert abs(plain(batch.obs).probs[0, 0].item() - 0.7) > 0.01


@pytest.mark.parametrize("name", ["npg", "trpo"])
def test_horizon_scales_gradient_fisher_and_kl_alike(name):
    policy, batch = problem("box")
    trajectories = replace(batch, horizon=20.0)
    steps = [
        step_of(make_rule(name, copy.deepcopy(policy), max_kl=kl, damping=damping), b)
        for b, kl, damping in [(batch, 1e-3, 0.1), (trajectories, 20e-3, 2.0)]
    ]
    torch.testing.assert_close(*steps, rtol=1e-6, atol=1e-10)


def test_a_distribution_without_closed_form_takes_the_same_step():
    policy, batch = problem("discrete")
    user = make_policy("discrete")
    user.load_state_dict(policy.state_dict())
    user.dist = lambda params: TorchCategorical(logits=params)
    steps = [step_of(make_rule("npg", p), batch) for p in (policy, user)]
    torch.testing.assert_close(*steps, rtol=1e-6, atol=1e-10)


def test_cost_and_accuracy_of_the_solve_are_reported():
    policy, batch = problem("box")
    short = make_rule("npg", copy.deepcopy(policy), cg_iterations=2).step(batch)
    loose = make_rule("npg", copy.deepcopy(policy), cg_tolerance=0.1).step(batch)
    assert short["algo/cg_iterations"] == 2
    assert loose["algo/cg_residual"] <= 0.1 < short["algo/cg_residual"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_kl", 0.0),
        ("max_kl", "0.01"),
        ("step_size", -1.0),
        ("fisher", "true"),
        ("solver", "lu"),
        ("damping", -1e-3),
        ("cg_iterations", 0),
        ("cg_tolerance", float("nan")),
    ],
)
def test_settings_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=name):
        make_rule("npg", make_policy("box"), **{name: value})
