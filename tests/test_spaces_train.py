"""Each kind of action space and distribution is learnt by each rule, and passes verify.py."""

import itertools

import pytest
from probes import MATCHES, compose_config

from rlopt.action_spaces import BOX_HEADS
from rlopt.build import make_trainer
from rlopt.verify import verify

RULES = {
    "pg": ["algo.optimizer.lr=0.05"],
    "npg": ["algo.max_kl=0.03"],
    "trpo": ["algo.max_kl=0.1"],
    "ppo": ["algo.optimizer.lr=0.02", "algo.epochs=5", "algo.target_kl=0.1"],
    "ppo_clip": ["algo.optimizer.lr=0.02", "algo.epochs=10"],
}
SMALL = [
    "~tuned",
    "gamma=0.0",
    "env.num_envs=16",
    "env.backend=sync",
    "rollout.num_steps=12",
    "policy.hidden_sizes=[8]",
    "baseline.hidden_sizes=[8]",
    "eval.final_episodes=16",
]
KINDS = [(name, "gaussian") for name in MATCHES] + [("Box", dist) for dist in [*BOX_HEADS][1:]]
LEARNT = {
    ("MultiDiscrete", "gaussian", "trpo"),
    ("MultiBinary", "gaussian", "npg"),
    ("MaskInfo", "gaussian", "pg"),
    ("Dict", "gaussian", "ppo"),
}
AUDITED = {
    ("MultiDiscrete", "gaussian", "npg"),
    ("MultiBinary", "gaussian", "pg"),
    ("MaskKey", "gaussian", "trpo"),
    ("Dict", "gaussian", "trpo"),
    ("Box", "beta", "ppo"),
    ("Box", "squashed_gaussian", "npg"),
}


def each(quick):
    """Every kind with every rule; all but `quick` are slow."""
    cases = [(*kind, algo) for kind, algo in itertools.product(KINDS, RULES)]
    assert quick <= set(cases)
    marks = {True: (), False: pytest.mark.slow}
    params = [pytest.param(*case, marks=marks[case in quick]) for case in cases]
    return pytest.mark.parametrize(("kind", "distribution", "algo"), params)


def make(folder, kind, distribution, algo, *overrides):
    groups = [f"algo={algo}", f"env=Match{kind}-v0", f"policy.distribution={distribution}"]
    mask = f"env.action_mask={str(MATCHES[kind].get('mask') == 'info').lower()}"
    return make_trainer(compose_config(*groups, mask, *SMALL, *RULES[algo], *overrides), folder)


@each(LEARNT)
def test_the_action_that_goes_with_the_context_is_learnt(kind, distribution, algo, tmp_path):
    trainer = make(tmp_path, kind, distribution, algo, "total_steps=4000")
    evaluation = trainer.train()
    trainer.logger.close()
    assert evaluation.mean > (-1.5 if kind == "Box" else -0.5)  # it starts at -4.9 to -20


@pytest.mark.usefixtures("float64")
@each(AUDITED)
def test_the_audit_passes(kind, distribution, algo, tmp_path):
    trainer = make(tmp_path, kind, distribution, algo, "env.num_envs=8")
    trainer.logger.close()
    rows = verify(trainer)
    assert [(name, row) for name, row in rows if row.verdict == "FAIL"] == []
    assert sum(row.verdict == "PASS" for _, row in rows) >= 35
