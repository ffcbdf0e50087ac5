import copy
from dataclasses import replace

import pytest
import torch
from oracles import (
    KINDS,
    TwoArms,
    UnitGaussian,
    flat,
    make_policy,
    make_rule,
    mean_kl,
    moved,
    problem,
    step_of,
    surrogate,
)
from torch.distributions import kl_divergence

from rlopt.types import Batch

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("horizon", [1.0, 10.0])
@pytest.mark.parametrize("kind", KINDS)
def test_accepted_steps_stay_in_the_region_and_improve_the_surrogate(kind, horizon):
    shrunk = 0
    for seed in range(10):
        torch.manual_seed(seed)
        policy, batch = problem(kind, horizon=horizon)
        old = copy.deepcopy(policy)
        metrics = make_rule("trpo", policy, max_kl=0.5 * horizon, damping=1e-4).step(batch)
        assert 0 < mean_kl(old, policy, batch) <= 0.5 * horizon
        assert surrogate(old, policy, batch) > surrogate(old, old, batch)
        shrunk += metrics["algo/rejected_for_kl"]
    assert shrunk > 0  # the quadratic model alone would have left the region


@pytest.mark.parametrize("kind", KINDS)
def test_the_full_step_is_that_of_npg(kind):
    policy, batch = problem(kind)
    steps = [step_of(make_rule(n, copy.deepcopy(policy)), batch) for n in ("npg", "trpo")]
    torch.testing.assert_close(*steps)


def rarely(action):
    """A two-armed problem in which the arm that is pulled once in ten has the only advantage."""
    policy = TwoArms(0.9 if action else 0.1)
    actions = torch.full((10,), 1 - action)
    actions[0] = action
    return policy, Batch(torch.zeros(10, 1), actions, (actions == action).double())


def trial(policy, batch, **changes):
    """The full step of TRPO, [P], its KL and its gain, and the metrics of a search of one try."""
    metrics = make_rule("npg", npg := copy.deepcopy(policy), **changes).step(batch)
    assert metrics["algo/step_size"] > 0
    kl = mean_kl(policy, npg, batch)
    gain = surrogate(policy, npg, batch) - surrogate(policy, policy, batch)
    return kl, gain, make_rule("trpo", policy, **changes, backtrack_tries=1).step(batch)


def test_a_step_that_improves_the_surrogate_but_leaves_the_region_is_rejected():
    policy, batch = rarely(1)
    theta = flat(policy)
    kl, gain, metrics = trial(policy, batch, max_kl=0.35, damping=0.0)
    assert kl > 0.35
    assert gain > 0
    assert (metrics["algo/rejected_for_kl"], metrics["algo/rejected_for_surrogate"]) == (1, 0)
    assert torch.equal(flat(policy), theta)


def overshooting():
    """One action a tenth of a standard deviation away: the ratio peaks there."""
    return UnitGaussian(0.5), Batch(torch.zeros(1, 1), torch.tensor([[0.1]]), torch.ones(1))


def test_a_step_within_the_region_that_worsens_the_surrogate_is_rejected():
    policy, batch = overshooting()
    theta = flat(policy)
    kl, gain, metrics = trial(policy, batch, max_kl=2.0, damping=1e-3)
    assert kl < 2
    assert gain < 0
    assert (metrics["algo/rejected_for_kl"], metrics["algo/rejected_for_surrogate"]) == (0, 1)
    assert torch.equal(flat(policy), theta)


def test_backtracking_takes_the_largest_fraction_that_passes_both_tests():
    policy, batch = overshooting()
    rule = make_rule("trpo", policy, max_kl=2.0, damping=0.0, backtrack_ratio=0.5)
    metrics = rule.step(batch)
    assert flat(policy).item() == pytest.approx(2 * 0.5**4)  # below 0.2, where the gain is 0
    assert metrics["algo/line_search_scale"] == 0.5**4
    assert metrics["algo/line_search_tries"] == 5
    rejected = metrics["algo/rejected_for_kl"] + metrics["algo/rejected_for_surrogate"]
    assert rejected == 4


@pytest.mark.parametrize("kind", KINDS)
def test_failure_restores_the_parameters_bitwise_and_reports_no_step(kind):
    policy, batch = problem(kind)
    theta = flat(policy)
    rule = make_rule("trpo", policy, max_kl=100.0, damping=0.0, backtrack_tries=2)
    metrics = rule.step(batch)
    assert torch.equal(flat(policy), theta)
    rejected = metrics["algo/rejected_for_kl"] + metrics["algo/rejected_for_surrogate"]
    assert rejected == metrics["algo/line_search_tries"] == 2
    names = ("line_search_scale", "step_size", "predicted_kl", "predicted_gain")
    assert [metrics[f"algo/{name}"] for name in names] == [0, 0, 0, 0]


def test_the_region_bounds_the_kl_from_the_old_policy_to_the_new():
    policy, batch = rarely(1)
    old = copy.deepcopy(policy)
    metrics = make_rule("trpo", policy, max_kl=0.35, damping=0.085).step(batch)
    assert metrics["algo/line_search_tries"] == 1
    assert mean_kl(old, policy, batch) < 0.35 < mean_kl(policy, old, batch)


def test_damping_shrinks_the_step_and_the_report_says_so():
    policy, batch = problem("discrete")
    old = copy.deepcopy(policy)
    metrics = make_rule("trpo", policy, damping=1.0, max_kl=1e-4).step(batch)
    measured = mean_kl(old, policy, batch)
    assert metrics["algo/predicted_kl"] == pytest.approx(measured, rel=0.02)
    assert measured < 0.5e-4


@pytest.mark.parametrize("solver", ["cg", "dense"])
@pytest.mark.parametrize("kind", KINDS)
def test_nan_advantages_are_rejected_by_the_line_search_and_leave_the_policy_bitwise(kind, solver):
    policy, batch = problem(kind)
    theta = flat(policy)
    advantage = batch.advantage.clone()
    advantage[3] = torch.nan
    metrics = make_rule("trpo", policy, solver=solver).step(replace(batch, advantage=advantage))
    assert torch.equal(flat(policy), theta)
    rejected = metrics["algo/rejected_for_kl"] + metrics["algo/rejected_for_surrogate"]
    assert rejected == metrics["algo/line_search_tries"] == 15
    assert metrics["algo/step_size"] == 0


@pytest.mark.parametrize(("kl", "accepted"), [("analytic", 0), ("sampled", 1)])
def test_the_sampled_kl_decides_only_where_it_is_asked_for(kl, accepted):
    """A rewarded action 0.9 standard deviations away makes the lecture's estimate negative."""
    policy = UnitGaussian(0.5)
    batch = Batch(torch.zeros(1, 1), torch.tensor([[0.9]]), torch.ones(1))
    rule = make_rule(
        "trpo", policy, kl=kl, max_kl=0.5, fisher="empirical", damping=0.0, backtrack_tries=1
    )
    metrics = rule.step(batch)
    assert metrics["algo/line_search_scale"] == accepted
    assert metrics["algo/rejected_for_kl"] == 1 - accepted
    assert flat(policy).item() == pytest.approx(accepted / 0.9)


def test_the_sampled_kl_is_the_mean_log_ratio_of_old_to_new():
    policy, batch = problem("box", horizon=3.0)
    old = copy.deepcopy(policy)
    rule = make_rule("trpo", policy, kl="sampled", max_kl=1.0, damping=1e-4)
    scale = rule.step(batch)["algo/line_search_scale"]

    def sampled_kl(new):
        with torch.no_grad():
            log_ratio = old(batch.obs).log_prob(batch.action) - new(batch.obs).log_prob(
                batch.action
            )
        return float(3 * log_ratio.mean())

    assert sampled_kl(policy) <= 1
    assert 0 < scale <= 1
    analytic = 3 * kl_divergence(old(batch.obs), policy(batch.obs)).mean().item()
    assert sampled_kl(policy) != pytest.approx(analytic, rel=1e-3)
    assert sampled_kl(moved(old, flat(old))) == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_kl", 0),
        ("kl", "reverse"),
        ("fisher", "true"),
        ("solver", "lu"),
        ("damping", -1.0),
        ("cg_iterations", 1.5),
        ("cg_tolerance", -1.0),
        ("backtrack_ratio", 1.0),
        ("backtrack_ratio", 0.0),
        ("backtrack_tries", 0),
    ],
)
def test_settings_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=name):
        make_rule("trpo", make_policy("box"), **{name: value})
