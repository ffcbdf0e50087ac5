"""Two processes against one: the same update from the same transitions, the same bits in both."""

import csv
import functools
import itertools
import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from gymnasium import spaces
from oracles import flat, make_batch, make_policy, make_rule
from probes import compose_config
from test_recurrent import make_batch as gru_batch
from test_recurrent import make_gru

from rlopt import distributed
from rlopt.advantages import standardize
from rlopt.audit import Audit
from rlopt.baselines import LinearBaseline, MLPBaseline, explained_variance
from rlopt.build import make_trainer
from rlopt.normalize import RunningNorm
from rlopt.types import Rollout

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
SPLITS = {"even": [20, 20], "uneven": [13, 27]}  # of 40 transitions among two processes
ADAM = functools.partial(torch.optim.Adam, lr=0.03)
SPACE = spaces.Box(-1, 1, (3,))
RULES = {
    "pg": {},
    "npg": {"cg_iterations": 10},
    "npg, empirical": {"cg_iterations": 10, "fisher": "empirical"},
    "npg, dense": {"solver": "dense"},
    "trpo": {"cg_iterations": 10, "max_kl": 0.5},  # so far that the line search has work
    "ppo": {"target_kl": 0.01, "optimizer": ADAM},
    "ppo_clip": {"target_kl": 0.01, "optimizer": ADAM, "standardize_minibatch": True},
}
# Iterations of the trainer, from rollouts that are divided by environments. With more iterations
# conjugate gradient enlarges rounding: then the order of the transitions alone changes digits.
FEW = "baseline.cg_iterations=4"
ITERATIONS = {
    "pg": ["baseline=linear"],
    "npg": ["average_over=trajectories", "algo.cg_iterations=4", FEW],
    "trpo": ["baseline.fit=optimizer", "baseline.minibatch_size=1000", "rollout=episodes"],
    "ppo": ["average_over=trajectories", "algo.minibatch_size=512", FEW],
    "pg, recurrent": ["policy=gru", "policy.state_size=4", "baseline=linear"],
}
SMALL = [
    "~tuned",
    "env=CartPole-v1",
    "env.num_envs=4",
    "eval.every=100",
    "eval.episodes=3",
    "eval.final_episodes=3",
]


def part_of(batch, mine):
    tensors = {f.name: getattr(batch, f.name) for f in fields(batch)}
    return replace(batch, **{name: mine(x) for name, x in tensors.items() if torch.is_tensor(x)})


def updated(name, kind, mine):
    """Parameters and metrics of two steps of a rule."""
    policy = make_policy(kind)
    rule = make_rule(name.split(",")[0], policy, **RULES[name])
    batch = part_of(make_batch(policy, size=40, horizon=3.0), mine)
    metrics = [list(rule.step(batch).values()) for _ in range(2)]
    return flat(policy), torch.tensor(metrics)


def remembered(name, mine):
    """The same of a recurrent policy, on sequences that both splits leave whole."""
    policy = make_gru()
    rule = make_rule(name, policy, **RULES[name])
    batch = part_of(gru_batch(policy, lengths=[6, 7, 4, 3, 8, 5, 7]), mine)
    audit = Audit(policy, batch)
    metrics = [list(rule.step(batch).values()) for _ in range(2)]
    gain = audit.metrics()["audit/predicted_gain"]
    return flat(policy), torch.tensor(metrics), torch.tensor(gain)


def fitted(baseline, mine):
    """Values and losses of two fits, the second to targets of another scale."""
    obs, step = 3 + torch.randn(40, 3), torch.arange(40) % 7
    target = obs[:, 0] + torch.randn(40)
    fits = [baseline.fit(mine(obs), mine(step), mine(scale * target)) for scale in (1, 100)]
    losses = [metrics["baseline/loss"] for metrics in fits]
    return baseline(obs, step), torch.tensor(losses)


def perceptron(fit, minibatch_size=40):
    return MLPBaseline(
        SPACE,
        hidden_sizes=[4],
        activation="tanh",
        orthogonal_init=True,
        sees_step=True,
        standardize_target=True,
        fit=fit,
        optimizer=ADAM,
        epochs=3,
        minibatch_size=minibatch_size,
        damping=0.1,
        cg_iterations=5,
        chunk_size=None,
    )


def measured(mine):
    """Expectation, variances and standardised advantages of a batch."""
    x, y = 5 + torch.randn(40), torch.randn(40)
    batch = part_of(make_batch(make_policy("box"), size=40, horizon=3.0), mine)
    explained = explained_variance(mine(y), mine(x + y))
    advantage = distributed.gather(standardize(mine(x), mine(x > 4)))
    return torch.tensor([batch.count, batch.expect(mine(x)), explained]), advantage


def normalized(mine):
    norm = RunningNorm(3)
    for x in torch.randn(2, 40, 3):
        norm.update(mine(10 + x))
    return norm.count, norm.mean, norm.var


def audited(mine):
    """Of its figures the one that does not depend on how the batch is cut into halves."""
    policy = make_policy("discrete")
    batch = part_of(make_batch(policy, size=40), mine)
    audit = Audit(policy, batch)
    make_rule("npg", policy).step(batch)
    return (torch.tensor(audit.metrics()["audit/predicted_kl"]),)


def counted(mine):
    """Gradient steps where a pass takes several minibatches."""
    policy, baseline = make_policy("box"), perceptron("optimizer", minibatch_size=15)
    rule = make_rule("ppo", policy, optimizer=ADAM, minibatch_size=15)
    rule.step(part_of(make_batch(policy, size=40), mine))
    baseline.fit(mine(torch.randn(40, 3)), mine(torch.arange(40)), mine(torch.randn(40)))
    states = [x.state_dict()["state"] for x in (rule.optimizer, baseline.optimizer)]
    return [state[0]["step"] for state in states]


CASES = {
    "linear baseline": lambda mine: fitted(LinearBaseline(SPACE, ridge=0.1, sees_step=True), mine),
    "gauss-newton baseline": lambda mine: fitted(perceptron("gauss_newton"), mine),
    "optimizer baseline": lambda mine: fitted(perceptron("optimizer"), mine),
    "measurements": measured,
    "normalizer": normalized,
    "audit": audited,
    "gradient steps": counted,
    "trpo, recurrent": lambda mine: remembered("trpo", mine),
    "ppo, recurrent": lambda mine: remembered("ppo", mine),
} | {
    f"{name}, {kind}": lambda mine, name=name, kind=kind: updated(name, kind, mine)
    for name in RULES
    for kind in ("discrete", "box")
}


def seeded(case, mine):
    torch.manual_seed(1)
    return [x.detach() for x in case(mine)]


def trained(algo, folder, *overrides, rollout=None, columns=slice(None)):
    """A trainer after training; with a `rollout` it takes these environments of it as its own."""
    trainer = make_trainer(compose_config(*SMALL, f"algo={algo.split(',')[0]}", *overrides), folder)
    collect, trainer.collected = trainer.rollout.collect, []

    def collect_or_take(policy):
        trainer.collected.append(collect(policy) if rollout is None else part(rollout, columns))
        return trainer.collected[-1]

    trainer.rollout.collect = collect_or_take
    trainer.train()
    trainer.logger.close()
    return trainer


def part(rollout, columns):
    """Some environments of a rollout; all but the first come with all of its episodes."""
    tensors = [f.name for f in fields(Rollout) if not f.name.startswith("episode")]
    episodes = {} if columns.start else {"episode_returns": [], "episode_lengths": []}
    own = {name: getattr(rollout, name)[:, columns] for name in tensors}
    return replace(rollout, **own, **episodes)


def state_of(trainer):
    parts = {"policy": trainer.policy, "baseline": trainer.baseline}
    states = {name: module.state_dict() for name, module in parts.items()}
    return {
        f"{name}.{key}": x
        for name, state in states.items()
        for key, x in state.items()
        if isinstance(x, torch.Tensor)
    }


def work(rank, folder):
    """What one of two processes computes: first alone from all data, then together from its part.

    The runs at the end are those of two processes, with nothing to compare but each other.
    """
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    results = {("alone", case): seeded(CASES[case], lambda x: x) for case in CASES}
    rollouts = {}
    for algo, overrides in ITERATIONS.items():
        alone = trained(algo, folder / f"{algo}-{rank}", "total_steps=1", *overrides)
        results["alone", algo], rollouts[algo] = state_of(alone), alone.collected[0]

    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    for split, case in itertools.product(SPLITS, CASES):
        results[split, case] = seeded(CASES[case], lambda x, n=SPLITS[split]: x.split(n)[rank])
    columns = slice(2 * rank, 2 * rank + 2)
    for algo, overrides in ITERATIONS.items():
        given = {"rollout": rollouts[algo], "columns": columns}
        both = trained(algo, folder / f"{algo}-both", "total_steps=1", *overrides, **given)
        results["both", algo] = state_of(both)
    torch.set_default_dtype(torch.float32)
    for algo in ITERATIONS:
        run = trained(algo, folder / f"{algo}-run", "total_steps=600")
        results["run", algo], results["obs", algo] = state_of(run), run.collected[0].obs
        results["noise", algo] = torch.rand(3)
    distributed.stop()
    torch.save(results, folder / f"{rank}.pt")


def test_two_processes_compute_what_one_does_and_hold_the_same_bits(tmp_path):
    """One test of many cases: two processes take seconds to start."""
    torch.multiprocessing.spawn(work, (tmp_path,), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for split, case in itertools.product(SPLITS, CASES):
        for x, y, alone in zip(
            first[split, case], second[split, case], first["alone", case], strict=True
        ):
            assert torch.equal(x, y), (split, case)
            assert torch.allclose(x, alone, rtol=1e-7, atol=1e-9), (split, case, x - alone)
    for key in itertools.product(["both", "run"], ITERATIONS):
        for name, x in first[key].items():
            assert torch.equal(x, second[key][name]), (key, name)
    for algo in ITERATIONS:
        for name, alone in first["alone", algo].items():
            x = first["both", algo][name]
            assert torch.allclose(x, alone, rtol=1e-7, atol=1e-9), (algo, name, x - alone)
        assert_same_record(tmp_path / f"{algo}-0", tmp_path / f"{algo}-both", algo)
        saved = torch.load(tmp_path / f"{algo}-run" / "checkpoints" / "last.pt")["policy"]
        assert all(torch.equal(saved[name], first["run", algo][f"policy.{name}"]) for name in saved)
        x, y = (results["obs", algo] for results in (first, second))
        assert x.shape[:2] == y.shape[:2] == (129, 2)
        assert not (x[:, :, None] == y[:, None]).all(-1).any()  # their environments differ
        assert not torch.equal(first["noise", algo], second["noise", algo])


def assert_same_record(alone, both, algo):
    """Equal metrics, but for clocks, evaluations and the audit's halves of a batch."""
    (alone,), (both,) = metrics(alone), metrics(both)
    tags = {tag for tag in alone if tag.split("/")[0] not in ("time", "eval", "audit")}
    assert {"env_steps", "rollout/return_mean", "rollout/episodes", "policy/kl"} < tags
    for tag in tags:
        assert both[tag] == pytest.approx(alone[tag], rel=1e-7, abs=1e-9), (algo, tag)


def metrics(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return [{tag: float(x) for tag, x in row.items()} for row in csv.DictReader(file)]


def torchrun(cwd, *arguments):
    command = ["torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.run(
        [sys.executable, "-m", *command, str(SCRIPTS / "train.py"), *SMALL, *arguments],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_torchrun_leaves_one_run_folder(tmp_path):
    done = torchrun(tmp_path, "total_steps=600")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote ") == 1
    (run,) = [path.parent for path in tmp_path.rglob("summary.json")]
    assert sorted(path.name for path in run.iterdir() if "tfevents" not in path.name) == [
        ".hydra",
        "checkpoints",
        "metrics.csv",
        "summary.json",
    ]
    assert len(metrics(run)) == 2
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert all(path.is_relative_to(run) for path in files)
    assert [path.name for path in run.parent.iterdir()] == [run.name]


@pytest.mark.slow
def test_a_mistake_in_both_processes_is_one_line(tmp_path):
    done = torchrun(tmp_path, "env.num_envs=5")
    assert done.returncode != 0
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert line == ("error: env.num_envs must be a multiple of the number of processes, 2, got 5")
