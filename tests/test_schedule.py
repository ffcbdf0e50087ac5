"""Settings that change over a run, through the real trainer."""

import copy
import csv

import pytest
import torch
from omegaconf import OmegaConf
from probes import compose_config
from test_resume import assert_same
from test_train_script import run_here, train

from rlopt import checkpoint
from rlopt.build import make_trainer
from rlopt.config import ConfigError

SMALL = [
    "env=Pendulum-v1",  # no episode ends in these runs: an iteration is 4 x 16 steps
    "~tuned",
    "env.num_envs=4",
    "env.backend=sync",
    "policy.hidden_sizes=[4]",
    "baseline.hidden_sizes=[4]",
    "rollout.num_steps=16",
    "total_steps=320",
    "eval.final_episodes=1",
]
ANNEALED = [
    "algo=ppo_clip",
    "baseline.fit=optimizer",
    "baseline.minibatch_size=32",
    "algo.optimizer.lr=0.01",
    "+schedule.algo.optimizer.lr=0",
    "+schedule.algo.entropy_bonus=0.5",
    "+schedule.baseline.optimizer.lr=0.002",
]


@pytest.fixture
def build(tmp_path):
    trainers = []

    def make(*overrides, state=None):
        folder = tmp_path / str(len(trainers))
        trainers.append(make_trainer(compose_config(*SMALL, *overrides), folder, state))
        return trainers[-1]

    yield make
    for trainer in trainers:
        trainer.logger.close()


def seen_by(part, method, look):
    """A list that fills with `look()` whenever the part's method is called."""
    seen, original = [], getattr(part, method)
    setattr(part, method, lambda *args: seen.append(look()) or original(*args))
    return seen


def column(trainer, name):
    with (trainer.logger.folder / "metrics.csv").open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file)]


def rate(part):
    return [group["lr"] for group in part.optimizer.param_groups]


def test_a_setting_goes_from_its_own_value_towards_the_one_at_the_end(build):
    trainer = build("algo=npg", "algo.max_kl=0.02", "+schedule.algo.max_kl=0.01")
    seen = seen_by(trainer.rule, "step", lambda: trainer.rule.max_kl)
    trainer.train()
    values = [0.02, 0.018, 0.016, 0.014, 0.012]
    assert seen == pytest.approx(values, rel=1e-12)
    assert column(trainer, "schedule/algo.max_kl") == pytest.approx(values)
    kl = [x / value for x, value in zip(column(trainer, "policy/kl"), values, strict=True)]
    assert all(0.5 < x < 1.5 for x in kl)
    assert trainer.settings.algo.max_kl == 0.02


def test_learning_rates_change_in_the_optimisers_and_in_their_steps(build):
    trainer = build(*ANNEALED)
    rates = seen_by(trainer.rule, "step", lambda: rate(trainer.rule))
    fits = seen_by(trainer.baseline, "fit", lambda: rate(trainer.baseline))
    bonuses = seen_by(trainer.rule, "step", lambda: trainer.rule.entropy_bonus)
    trainer.train()
    torch.testing.assert_close(rates, [[0.01 * (1 - i / 5)] for i in range(5)])
    torch.testing.assert_close(fits, [[0.001 * (1 + i / 5)] for i in range(5)])
    torch.testing.assert_close(bonuses, [0.1 * i for i in range(5)])


def test_at_a_rate_of_nothing_nothing_moves(build):
    """The last value that is reached is that of the optimiser's step, not only of its groups."""
    trainer = build("algo=pg", "+schedule.algo.optimizer.lr=0")
    trainer.env_steps = 320
    before = copy.deepcopy(trainer.policy.state_dict())
    trainer.iterate()
    parameters = dict(trainer.policy.named_parameters())
    assert all(torch.equal(before[name], p) for name, p in parameters.items())


def test_a_resumed_run_goes_on_with_its_schedule_exactly(build):
    whole = build(*ANNEALED, "checkpoint.every=128")
    whole.train()
    saved = whole.logger.folder / "checkpoints"
    previous = checkpoint.load(saved / "previous.pt")
    assert 0 < previous["env_steps"] < 320
    resumed = build(*ANNEALED, state=previous)
    resumed.train()
    assert_same(resumed._learned(), whole._learned())
    for key in ("schedule/algo.optimizer.lr", "schedule/algo.entropy_bonus"):
        ours = column(resumed, key)
        assert ours == column(whole, key)[-len(ours) :]


def test_without_a_schedule_nothing_is_set_or_logged(build):
    trainer = build("algo=ppo_clip", "total_steps=64")
    assert trainer.schedules == {}
    trainer.train()
    with (trainer.logger.folder / "metrics.csv").open() as file:
        assert "schedule" not in file.readline()


def test_looking_at_the_end_leaves_the_random_streams_alone(build):
    states = []
    for overrides in ([], ["+schedule.baseline.damping=1", "+schedule.algo.damping=1"]):
        build("algo=npg", *overrides)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


class Renames:
    def __init__(self, policy, *, rate):
        self._rate = rate

    def step(self, batch):
        return {}

    state_dict = load_state_dict = step


BAD = [
    ("+schedule.algo.max_k=0", r"schedule\.algo\.max_k names no number .* mean algo\.max_kl\?$"),
    ("+schedule.algo.fisher=0", r"schedule\.algo\.fisher names no number of algo or baseline: "),
    ("+schedule.algo.step_size=1", r"schedule\.algo\.step_size names no number"),
    ("+schedule.gamma=1", r"schedule\.gamma names no number"),
    ("+schedule.algo=3", r"schedule\.algo names no number"),
    ("+schedule.algo.max_kl=abc", r"schedule\.algo\.max_kl must be a number, got 'abc'"),
    ("+schedule.algo.max_kl=[1,2]", r"schedule\.algo\.max_kl must be a number, got '\[1, 2\]'"),
    ("+schedule.algo.max_kl=.inf", r"schedule\.algo\.max_kl must be a number, got inf"),
    (
        "+schedule.algo.max_kl=-1",
        r"schedule: at the end of the run algo\.max_kl must be greater than 0, got -0\.99",
    ),
    (
        "+schedule.algo.cg_iterations=5",
        r"schedule: at the end of the run algo\.cg_iterations must be a whole number",
    ),
    (
        "+schedule.baseline.optimizer.lr=0",
        r"schedule\.baseline\.optimizer\.lr is without effect: MLPBaseline keeps no optimizer\.lr",
    ),
    (
        "algo=ppo +schedule.algo.penalty=3",
        r"schedule\.algo\.penalty can't be: algo\.target_kl=0\.02 adapts it",
    ),
]


@pytest.mark.parametrize(("overrides", "message"), BAD, ids=[overrides for overrides, _ in BAD])
def test_a_mistake_is_one_line_and_leaves_no_trace(build, overrides, message, tmp_path):
    with pytest.raises(ConfigError, match=f"^{message}") as raised:
        build(*overrides.split())
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_a_rule_that_keeps_its_setting_elsewhere_is_named(tmp_path):
    cfg = compose_config(*SMALL, "+schedule.algo.rate=0")
    cfg.algo = OmegaConf.create({"_target_": f"{__name__}.Renames", "rate": 0.5})
    with pytest.raises(ConfigError, match="without effect: Renames keeps no rate here"):
        make_trainer(cfg, tmp_path)


def test_a_scheduled_run_is_not_made_longer_by_the_way(tmp_path):
    folder = train(tmp_path / "run", "+schedule.algo.max_kl=0.001")
    code, _ = run_here("train.py", f"resume={folder}", "total_steps=1000")
    assert code.startswith(f"error: resume={folder}: the run's own settings differ in total_steps=")
    code, _ = run_here("train.py", f"resume={folder}", "total_steps=400", "resume_force=true")
    assert code is None


def test_a_missing_plus_is_named():
    code, _ = run_here("train.py", "~tuned", "schedule.algo.max_kl=0")
    assert code == (
        "error: schedule.algo.max_kl is set here for the first time: write "
        "+schedule.algo.max_kl=..."
    )
