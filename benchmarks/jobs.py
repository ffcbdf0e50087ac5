"""The pairs of speed.py: one piece of work for a rule of ours and for a peer's."""

from __future__ import annotations

from typing import Any

Work = dict[str, Any]

FULL_BATCH_1024: Work = {
    "env": "HalfCheetah-v4",
    "num_envs": 16,
    "num_steps": 64,
    "cg_iterations": 10,
    "critic_epochs": 20,
    "critic_minibatch": 1024,
    "lr": 1e-3,
}
TRPO_2048: Work = {
    "algo": "trpo",
    "num_envs": 8,
    "num_steps": 256,
    "cg_iterations": 15,
    "critic_epochs": 10,
    "critic_minibatch": 128,
    "lr": 1e-3,
}
PPO: Work = {
    "algo": "ppo",
    "env": "CartPole-v1",
    "epochs": 10,
    "critic_epochs": 10,
    "lr": 3e-4,
}

# name: (peer, work)
PAIRS: dict[str, tuple[str, Work]] = {
    "tianshou-npg": ("tianshou", {"algo": "npg", **FULL_BATCH_1024}),
    "tianshou-trpo": ("tianshou", {"algo": "trpo", **FULL_BATCH_1024}),
    "sb3-trpo-halfcheetah": ("sb3", {"env": "HalfCheetah-v4", **TRPO_2048}),
    "sb3-trpo-cartpole": ("sb3", {"env": "CartPole-v1", **TRPO_2048}),
    "sb3-ppo-cartpole": (
        "sb3",
        {**PPO, "num_envs": 8, "num_steps": 256, "minibatch": 64, "critic_minibatch": 64},
    ),
    "rejax-ppo-cartpole": (
        "rejax",
        {**PPO, "num_envs": 64, "num_steps": 128, "minibatch": 1024, "critic_minibatch": 1024},
    ),
}
# what we set out to reach, in multiples of the peer's steps/s
TARGETS = {
    "tianshou-npg": 5,
    "tianshou-trpo": 5,
    "sb3-trpo-halfcheetah": 4,
    "sb3-trpo-cartpole": 5,
    "sb3-ppo-cartpole": 4,
    "rejax-ppo-cartpole": 1,
}


def overrides(work: Work) -> list[str]:
    """A pair's work in our own settings: nothing but what the peer does too, and our logging."""
    return [
        f"algo={work['algo']}",
        f"env={work['env']}",
        "~tuned",
        f"env.num_envs={work['num_envs']}",
        f"rollout.num_steps={work['num_steps']}",
        "baseline.fit=optimizer",
        f"baseline.epochs={work['critic_epochs']}",
        f"baseline.minibatch_size={work['critic_minibatch']}",
        f"baseline.optimizer.lr={work['lr']}",
        *rule_overrides(work),
        "diagnostics=false",
        "eval.every=1000000000",
        "checkpoint.every=1000000000",
    ]


def rule_overrides(work: Work) -> list[str]:
    """The settings of the rule itself."""
    if work["algo"] == "ppo":
        return [
            f"algo.epochs={work['epochs']}",
            f"algo.minibatch_size={work['minibatch']}",
            f"algo.optimizer.lr={work['lr']}",
        ]
    step = "algo.step_size=0.1" if work["algo"] == "npg" else "algo.max_kl=0.01"
    # a tolerance of 0: the peers spend all their iterations, so do we
    iterations = [f"algo.cg_iterations={work['cg_iterations']}", "algo.cg_tolerance=0"]
    return [step, "algo.damping=0.1", *iterations]


def describe(work: Work) -> str:
    """What an update consists of."""
    if work["algo"] == "ppo":
        rule = f"{work['epochs']} epochs of minibatches of {work['minibatch']}"
    else:
        rule = f"{work['cg_iterations']} CG iterations"
    return f"{rule}, critic {work['critic_epochs']} epochs of {work['critic_minibatch']}"
