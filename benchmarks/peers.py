"""The peers of speed.py, each in a process and an interpreter of its own.

    python benchmarks/peers.py tianshou '{"work": {...}, "setup": {...}, "seconds": 10}'

prints one line of json. Imports nothing of rlopt, and a peer's packages only in its own function.
`work` is a value of `jobs.PAIRS`, `setup` one of `SETUPS`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from typing import Any

from clock import Clock, TimeUp

Spec = dict[str, Any]

# What each peer may be given: speed.py tries all of them and keeps the fastest.
SETUPS: dict[str, list[Spec]] = {
    "tianshou": [
        {"envs": "DummyVectorEnv", "threads": 1},
        {"envs": "DummyVectorEnv", "threads": 2},
        {"envs": "ShmemVectorEnv", "threads": 1},
        {"envs": "EnvPool", "threads": 1},
        {"envs": "EnvPool", "threads": 2},
    ],
    "sb3": [
        {"envs": "DummyVecEnv", "threads": 1},
        {"envs": "DummyVecEnv", "threads": 2},
        {"envs": "SubprocVecEnv", "threads": 1},
    ],
    "rejax": [{"envs": "gymnax", "threads": "JAX's own"}, {"envs": "gymnax", "threads": 1}],
}
PACKAGES = {
    "tianshou": ["tianshou", "torch", "gymnasium", "envpool"],
    "sb3": ["sb3-contrib", "stable-baselines3", "torch", "gymnasium"],
    "rejax": ["rejax", "jax", "gymnax"],
}


def tianshou(work: Spec, setup: Spec, clock: Clock) -> None:
    """NPG and TRPO as in Tianshou's examples/mujoco, without its evaluations and its logger."""
    import torch
    from tianshou.algorithm import NPG, TRPO
    from tianshou.algorithm.optim import AdamOptimizerFactory
    from tianshou.data import Collector, CollectStats, VectorReplayBuffer
    from tianshou.trainer import OnPolicyTrainerParams

    torch.set_num_threads(setup["threads"])
    envs = tianshou_envs(work["env"], work["num_envs"], setup["envs"])
    policy, critic = tianshou_networks(work["env"])
    algorithm = {"npg": NPG, "trpo": TRPO}[work["algo"]](
        policy=policy,
        critic=critic,
        optim=AdamOptimizerFactory(lr=work["lr"]),
        optim_critic_iters=work["critic_epochs"],
        return_scaling=True,
        **({"trust_region_size": 0.1} if work["algo"] == "npg" else {"max_kl": 0.01}),
    )
    collector = Collector[CollectStats](
        algorithm, envs, VectorReplayBuffer(4096, len(envs)), exploration_noise=True
    )
    algorithm.run_training(
        OnPolicyTrainerParams(
            training_collector=collector,
            max_epochs=1_000_000,
            collection_step_num_env_steps=work["num_envs"] * work["num_steps"],
            batch_size=None,
            training_fn=lambda epoch, env_steps: clock.tick(env_steps),
            verbose=False,
            show_progress=False,
        )
    )


def tianshou_envs(env_id: str, num_envs: int, kind: str) -> Any:
    """A vector environment that normalises observations."""
    import gymnasium as gym
    from tianshou.env import DummyVectorEnv, ShmemVectorEnv, VectorEnvNormObs

    if kind == "EnvPool":
        import envpool

        return VectorEnvNormObs(envpool.make_gymnasium(env_id, num_envs=num_envs, seed=0))
    make = {"DummyVectorEnv": DummyVectorEnv, "ShmemVectorEnv": ShmemVectorEnv}[kind]
    return VectorEnvNormObs(make([lambda: gym.make(env_id)] * num_envs))


def tianshou_networks(env_id: str) -> tuple[Any, Any]:
    """Policy and critic, 64-64 tanh each."""
    import gymnasium as gym
    from tianshou.algorithm.modelfree.reinforce import ProbabilisticActorPolicy
    from tianshou.utils.net.common import Net
    from tianshou.utils.net.continuous import ContinuousActorProbabilistic, ContinuousCritic
    from torch import nn
    from torch.distributions import Independent, Normal

    env = gym.make(env_id)
    nets = [
        Net(state_shape=env.observation_space.shape, hidden_sizes=[64, 64], activation=nn.Tanh)
        for _ in range(2)
    ]
    actor = ContinuousActorProbabilistic(
        preprocess_net=nets[0], action_shape=env.action_space.shape, unbounded=True
    )
    nn.init.constant_(actor.sigma_param, -0.5)
    policy = ProbabilisticActorPolicy(
        actor=actor,
        dist_fn=lambda mean_std: Independent(Normal(*mean_std), 1),
        action_scaling=True,
        action_bound_method="clip",
        action_space=env.action_space,
    )
    return policy, ContinuousCritic(preprocess_net=nets[1])


def sb3(work: Spec, setup: Spec, clock: Clock) -> None:
    """sb3-contrib's TRPO, Stable-Baselines3's PPO; `MlpPolicy` is 64-64 tanh for both networks."""
    import torch
    from sb3_contrib import TRPO
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

    class Tick(BaseCallback):
        def _on_rollout_start(self) -> None:
            clock.tick(self.num_timesteps)

        def _on_step(self) -> bool:
            return True

    torch.set_num_threads(setup["threads"])
    kind = {"DummyVecEnv": DummyVecEnv, "SubprocVecEnv": SubprocVecEnv}[setup["envs"]]
    envs = make_vec_env(work["env"], work["num_envs"], vec_env_cls=kind)
    common = {"n_steps": work["num_steps"], "learning_rate": work["lr"], "device": "cpu"}
    if work["algo"] == "trpo":
        iterations = {"cg_max_steps": work["cg_iterations"]}
        critic = {"n_critic_updates": work["critic_epochs"], "batch_size": work["critic_minibatch"]}
        model = TRPO("MlpPolicy", envs, **common, **iterations, **critic)
    else:
        sgd = {"n_epochs": work["epochs"], "batch_size": work["minibatch"]}
        model = PPO("MlpPolicy", envs, **common, **sgd)
    model.learn(10**9, callback=Tick())


def rejax(work: Spec, setup: Spec, clock: Clock) -> None:
    """Rejax's PPO, some updates a call of one compiled function; no evaluation."""
    if setup["threads"] == 1:  # JAX has no such setting, but counts the cores it may run on
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    import jax
    from rejax import PPO

    batch = work["num_envs"] * work["num_steps"]
    steps = 8 * batch
    algo = PPO.create(
        env=work["env"],
        num_envs=work["num_envs"],
        num_steps=work["num_steps"],
        num_epochs=work["epochs"],
        num_minibatches=batch // work["minibatch"],
        learning_rate=work["lr"],
        agent_kwargs={"activation": "tanh"},
        total_timesteps=steps,
        eval_freq=steps,
        skip_initial_evaluation=True,
    ).replace(eval_callback=lambda *_: ())
    train = jax.jit(lambda state: algo.train(train_state=state)[0])
    state = algo.init_state(jax.random.PRNGKey(0))
    for call in count(1):  # the clock's warm-up covers the compilation
        state = jax.block_until_ready(train(state))
        clock.tick(call * steps)


def versions(names: list[str]) -> dict[str, str]:
    """Installed versions of packages."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def main() -> None:
    """Run one peer."""
    name, spec = sys.argv[1], json.loads(sys.argv[2])
    peers: dict[str, Callable[..., None]] = {"tianshou": tianshou, "sb3": sb3, "rejax": rejax}
    clock = Clock(spec["seconds"])
    try:
        peers[name](spec["work"], spec["setup"], clock)
    except ImportError as error:
        print(json.dumps({"missing": str(error)}))
    except TimeUp:
        print(json.dumps({**clock.result(), "versions": versions(PACKAGES[name])}))


if __name__ == "__main__":
    main()
