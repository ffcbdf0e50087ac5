"""Every statement of the lecture passes, and none passes on code with a fault in it."""

import collections
import math

import lecture as script
import numpy as np
import pytest
import torch
from scipy.stats import t as student

from rlopt import lecture, tabular
from rlopt.advantages import reward_to_go
from rlopt.distributions import Categorical
from rlopt.enumeration import enumerate_trajectories, example
from rlopt.fisher import fisher_operator
from rlopt.lecture import STATEMENTS, Result, estimates, slide
from rlopt.lecture.moments import Moments, bernstein, estimate_moments
from rlopt.rows import Row
from rlopt.types import Batch

SLOW = {  # a second or so on one seed
    "variance_without_and_with_baseline",
    "npg_is_trpo_to_leading_order",
    "proximal_policy_optimization",
    "estimated_trpo",
}
QUICK = [statement for statement in STATEMENTS if statement.__name__ not in SLOW]
NAME = {"ids": lambda f: f.__name__}


@pytest.mark.parametrize("statement", STATEMENTS, **NAME)
def test_statement(statement, tmp_path):
    result = statement(0)
    failed = [row for row in result.rows if not row.passed]
    assert result.rows
    assert not failed
    assert slide(statement)
    if statement.__name__ in script.FIGURES:
        file_name, draw = script.FIGURES[statement.__name__]
        draw(result.data).savefig(tmp_path / file_name)
        assert (tmp_path / file_name).stat().st_size > 10_000


def failed_seeds(statement, seeds):
    return [seed for seed in seeds if not all(row.passed for row in statement(seed).rows)]


@pytest.mark.parametrize("statement", QUICK, **NAME)
def test_a_statement_holds_on_other_seeds(statement):
    assert not failed_seeds(statement, range(1, 6))


@pytest.mark.slow
@pytest.mark.parametrize("statement", STATEMENTS, **NAME)
def test_a_statement_holds_on_fifty_seeds(statement):
    """At its level of 0.001 the sampled gradient fails on none with a probability of 0.95."""
    assert not failed_seeds(statement, range(50))


def test_bernsteins_limit_holds_where_students_does_not():
    """Of 40 draws that are 100 with a probability of 1/100 and else 0; levels in 20,000 samples."""
    level, count = 0.01, 40
    moments = Moments(*(torch.tensor([x]) for x in (1.0, 99.0, 100.0)))
    hits = np.random.default_rng(0).binomial(count, 0.01, 20_000)
    mean = 100 * hits / count
    variance = (100 * mean - mean**2) * count / (count - 1)
    error = abs(mean - 1)
    t = np.divide(error, np.sqrt(variance / count), where=variance > 0, out=np.full(20_000, np.inf))
    assert (error > bernstein(moments, count, level).numpy()).mean() <= level
    assert (t > student.ppf(1 - level / 2, count - 1)).mean() > 10 * level


def test_bernsteins_limit_is_near_the_normal_one_for_many_draws():
    one = torch.ones(1)
    limit = bernstein(Moments(0 * one, one, one), 1_000_000, 0.001)
    assert limit.item() == pytest.approx(math.sqrt(2 * math.log(2000) / 1e6), rel=0.01)


def test_moments_are_those_of_all_trajectories():
    ex = example(seed=0)
    taus, scores = enumerate_trajectories(ex.mdp), tabular.scores(ex.policy, 4)
    H, b = ex.mdp.horizon, torch.randn(3, 4, dtype=torch.float64)
    reward = ex.mdp.R[taus.state, taus.action] * taus.active
    returns = reward.flip(1).cumsum(1).flip(1)
    weight = (returns - b[torch.arange(H), taus.state]) * taus.active
    X = torch.einsum("nh,nhp->np", weight, scores[taus.state, taus.action])
    rho = taus.log_prob(ex.pi).exp()
    moments = estimate_moments(ex.mdp, ex.pi, scores, b)
    torch.testing.assert_close(moments.mean, rho @ X)
    torch.testing.assert_close(moments.variance, rho @ X**2 - (rho @ X) ** 2)
    largest = X.abs().amax(0)
    assert (largest <= moments.bound + 1e-12).all()
    assert (moments.bound <= 4 * largest).all()


def wrong_sign(*arguments, gradient=Batch.gradient):
    return -gradient(*arguments)


def twice_fisher(*arguments):
    F = fisher_operator(*arguments)
    return lambda v: 2 * F(v)


def twice_gradient(*arguments, gradient=tabular.policy_gradient):
    return 2 * gradient(*arguments)


def plain_gradient(*arguments):
    return lambda v: v


def only_the_diagonal(self, u):
    return self.probs * u


def reversed_kl(mdp, old, new, kl=tabular.trajectory_kl):
    return kl(mdp, new, old)


def no_constraint(p, q):
    return torch.zeros(())


def discounted(*arguments, gamma, bootstrap):
    return reward_to_go(*arguments, gamma=0.9, bootstrap=False)


def depends_on_the_action(rollout, b, right=estimates.monte_carlo):
    """A tenth of the mean advantage more for each number of the action."""
    advantage = right(rollout, b)
    excess = 0.1 * advantage.abs().mean() * rollout.action
    return torch.where(rollout.valid, advantage + excess, 0.0)


def without_the_reward_of_the_step(rollout, b, right=estimates.monte_carlo):
    return torch.where(rollout.valid, right(rollout, b) - rollout.reward, 0.0)


def too_greedy(self, right=Categorical.sample):
    return right(Categorical(1.5 * self.logits))


def mean_over_steps(rollout, advantage, right=estimates.trajectory_batch):
    batch = right(rollout, advantage)
    return Batch(batch.obs, batch.action, batch.advantage)


FAULTS = {
    "gradient of the wrong sign": ("rlopt.types.Batch.gradient", wrong_sign, "closed_form_update"),
    "radius off by Taylor's 1/2": (
        "rlopt.algos.npg.fisher_operator", twice_fisher, "npg_is_trpo_to_leading_order",
    ),
    "NPG that is plain PG": (
        "rlopt.algos.npg.fisher_operator", plain_gradient, "two_action_example",
    ),
    "Fisher without - p p^T": (
        "rlopt.distributions.Categorical.fisher_product", only_the_diagonal, "kl_hessian_is_fisher",
    ),
    "KL in the other direction": (
        "rlopt.tabular.trajectory_kl", reversed_kl, "trajectory_kl_sums_over_steps",
    ),
    "line search without KL": (
        "rlopt.algos.trpo.kl_divergence", no_constraint, "estimated_trpo",
    ),
    "discounted returns": (
        "rlopt.lecture.estimates.reward_to_go", discounted, "unbiased_for_any_baseline",
    ),
    "wrong gradient in the expansion": (
        "rlopt.tabular.policy_gradient", twice_gradient, "first_order_expansion",
    ),
    "Fisher matrix twice as large": (
        "rlopt.lecture.divergence.fisher_operator", twice_fisher,
        "taylor_expansion_of_the_constraint",
    ),
    "advantages that the action shifts": (
        "rlopt.lecture.estimates.monte_carlo", depends_on_the_action,
        "expectation_is_the_advantage",
    ),
}  # fmt: skip
ESTIMATE_FAULTS = {
    "discounted returns": ("rlopt.lecture.estimates.reward_to_go", discounted),
    "advantages that the action shifts": (
        "rlopt.lecture.estimates.monte_carlo", depends_on_the_action,
    ),
    "returns from the next step on": (
        "rlopt.lecture.estimates.monte_carlo", without_the_reward_of_the_step,
    ),
    "mean over steps for the sum": ("rlopt.lecture.estimates.trajectory_batch", mean_over_steps),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_fails_its_statement(fault, monkeypatch, tmp_path, capsys):
    target, replacement, name = FAULTS[fault]
    monkeypatch.setattr(target, replacement)
    assert script.main([name, "--output", str(tmp_path)]) == 1
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "FAIL" in text
    assert "nan" not in text  # it measured the fault and did not just raise
    assert "FAIL" in capsys.readouterr().out


@pytest.mark.parametrize(
    "fault", ["wrong gradient in the expansion", "Fisher matrix twice as large"]
)
def test_an_expansion_with_a_fault_fails_on_every_seed(fault, monkeypatch):
    target, replacement, name = FAULTS[fault]
    monkeypatch.setattr(target, replacement)
    assert failed_seeds(getattr(lecture, name), range(10)) == list(range(10))


def sampled_gradient_fails(seed):
    """Whether a sampled row fails; the others are exact."""
    rows = lecture.variance_without_and_with_baseline(seed).rows
    return not all(row.passed for row in rows if row.figure.startswith("largest error"))


def test_a_sampling_fault_fails_the_sampled_gradient(monkeypatch):
    """One of those below, on one seed and fewer trajectories."""
    monkeypatch.setattr(estimates, "TRAJECTORIES", 1600)
    monkeypatch.setattr(*ESTIMATE_FAULTS["advantages that the action shifts"])
    assert sampled_gradient_fails(0)


def faults_that_fail(seed):
    """Those of the estimate that fail the sampled gradient, all on the same trajectories."""
    drawn = []

    def sampled_once(*arguments, sampled=estimates.sampled):
        if not drawn:
            drawn.append(sampled(*arguments))
        return drawn[0]

    for fault, planted in ESTIMATE_FAULTS.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(estimates, "sampled", sampled_once)
            patch.setattr(*planted)
            if sampled_gradient_fails(seed):
                yield fault


@pytest.mark.slow
def test_a_fault_of_the_estimate_fails_the_sampled_gradient_on_nearly_all_seeds():
    failures = collections.Counter(fault for seed in range(50) for fault in faults_that_fail(seed))
    assert set(failures) == set(ESTIMATE_FAULTS)
    assert min(failures.values()) >= 45


@pytest.mark.slow
def test_sampling_at_another_temperature_fails_on_nearly_all_seeds(monkeypatch):
    monkeypatch.setattr(Categorical, "sample", too_greedy)
    assert sum(map(sampled_gradient_fails, range(20))) >= 18


def test_the_command_takes_a_seed(tmp_path):
    tables = []
    for seed in ("0", "1", "1"):
        assert script.main(["kl_is_a_divergence", "--seed", seed, "--output", str(tmp_path)]) == 0
        tables.append((tmp_path / "table.md").read_text(encoding="utf-8"))
    assert tables[0] != tables[1] == tables[2]


def test_the_command_writes_table_and_figures(tmp_path, capsys):
    names = ["two_action_example", "kl_is_a_divergence"]
    assert script.main([*names, "--output", str(tmp_path)]) == 0
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    assert "KL(P \\| P)" in text
    assert text.count("PASS") == len(text.splitlines()) - 2
    assert len({line.count(" | ") for line in text.splitlines()}) == 1
    assert [path.name for path in tmp_path.glob("*.png")] == ["two_actions.png"]


def test_a_statement_that_raises_is_a_fail(monkeypatch, tmp_path, capsys):
    def broken(seed: int) -> Result:
        """Slide "none"."""
        raise RuntimeError("it broke\nat length")

    monkeypatch.setattr(script, "STATEMENTS", [broken, lecture.kl_is_a_divergence])
    assert script.main(["--output", str(tmp_path)]) == 1
    assert "RuntimeError: it broke " in capsys.readouterr().out


def test_an_unknown_statement_is_named(capsys):
    with pytest.raises(SystemExit, match="2"):
        script.main(["two_actions"])
    assert "unknown statement two_actions" in capsys.readouterr().err


@pytest.mark.parametrize("seed", ["-1", "2147483648", "1.5", "one"])
def test_a_seed_out_of_range_is_refused(seed, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        script.main(["--seed", seed, "--output", str(tmp_path / "new")])
    assert "--seed" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("value", "passed"), [(0.0, True), (1.0, True), (1.1, False), (-1e-9, False), (math.nan, False)]
)
def test_a_row_passes_within_its_interval(value, passed):
    assert Row("figure", value, 0.0, 1.0).passed == passed


def test_tolerances_in_words():
    rows = [Row("", 0, 0.0, 1e-10), Row("", 0, 1.5, math.inf), Row("", 0, 1.9, 2.1)]
    assert [script.tolerance(row) for row in rows] == ["<= 1e-10", ">= 1.5", "1.9 .. 2.1"]
