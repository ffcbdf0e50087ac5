"""Every statement of the lecture passes, and none passes on code with a fault in it."""

import math

import lecture as script
import pytest
import torch

from rlopt import lecture, tabular
from rlopt.advantages import reward_to_go
from rlopt.fisher import fisher_operator
from rlopt.lecture import STATEMENTS, Result, slide
from rlopt.rows import Row
from rlopt.types import Batch


@pytest.mark.parametrize("statement", STATEMENTS, ids=lambda f: f.__name__)
def test_statement(statement, tmp_path):
    result = statement()
    failed = [row for row in result.rows if not row.passed]
    assert result.rows
    assert not failed
    assert slide(statement)
    if statement.__name__ in script.FIGURES:
        file_name, draw = script.FIGURES[statement.__name__]
        draw(result.data).savefig(tmp_path / file_name)
        assert (tmp_path / file_name).stat().st_size > 10_000


def wrong_sign(*arguments, gradient=Batch.gradient):
    return -gradient(*arguments)


def twice_fisher(*arguments):
    F = fisher_operator(*arguments)
    return lambda v: 2 * F(v)


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
    def broken() -> Result:
        """Slide "none"."""
        raise RuntimeError("it broke\nat length")

    monkeypatch.setattr(script, "STATEMENTS", [broken, lecture.kl_is_a_divergence])
    assert script.main(["--output", str(tmp_path)]) == 1
    assert "RuntimeError: it broke " in capsys.readouterr().out


def test_an_unknown_statement_is_named(capsys):
    with pytest.raises(SystemExit, match="2"):
        script.main(["two_actions"])
    assert "unknown statement two_actions" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "passed"), [(0.0, True), (1.0, True), (1.1, False), (-1e-9, False), (math.nan, False)]
)
def test_a_row_passes_within_its_interval(value, passed):
    assert Row("figure", value, 0.0, 1.0).passed == passed


def test_tolerances_in_words():
    rows = [Row("", 0, 0.0, 1e-10), Row("", 0, 1.5, math.inf), Row("", 0, 1.9, 2.1)]
    assert [script.tolerance(row) for row in rows] == ["<= 1e-10", ">= 1.5", "1.9 .. 2.1"]
