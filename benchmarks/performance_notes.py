"""The sentences of docs/performance.md."""

from __future__ import annotations

HEADER = """# Performance

Made by `python benchmarks/speed.py`. Steps/s: environment transitions a second of wall time, the
sampling, the update and the critic's fit included. Every contender is a process of its own; those
that are compared take turns, ratios are taken turn by turn, and a figure is the median of the turns
(minimum-maximum in brackets).
"""

PAIR_NOTES = """
*The same work*: environment, number of environments and of steps, networks, CG iterations, epochs
and minibatches are the peer's; each pair is described [below](#set-ups). *Raw environment*: our
vector environment with the same number of environments at random actions. *Ours as shipped*:
`python scripts/train.py algo=... env=...` with no other setting; its audits, checkpoints and
evaluations (whose steps are not counted) are in the time.
"""

PHASE_NOTES = """
Milliseconds of an iteration of our side, and what the target, in steps/s, leaves for one. *Rule*:
the update itself. *Other*: bookkeeping of the rollout, advantages, KL and entropy before and after,
the record. *Floor*: the environment alone at random actions, and the kernels of every optimiser
step of the work (matrix products, tanh, fused Adam) with no autograd and no loss around them; CG,
acting and all else are not in it.

Why the targets are missed: on HalfCheetah the environments inside the loop take what the target
leaves, or more; on CartPole the optimisers' steps do, whose kernels alone take most of it, and
autograd two to three times as much. Tried without enough gain to keep: the perceptron's gradient
written out as one autograd function (1.1-1.2x a gradient), minibatches as slices of a batch that is
shuffled once an epoch (1.0x), the critic's fit in a thread beside the update (1.3x at times, less
than 1 at others).
"""

FISHER_NOTES = """

Double backprop: the gradient of (grad KL . v), on a graph that is built once. Matmuls: the matrix
products of one tangent and one adjoint pass, into outputs that are kept. The three take turns;
median ratio (lower-upper decile). Ours and double backprop agree to {difference:.0e}.
"""

OUR_NOTES = """All policies and critics are separate 64-64 tanh networks. Each peer is given the
fastest of the set-ups that were tried for a few seconds each.

**Ours** ({packages}; {cores} cores):
`env.backend=auto`, which is EnvPool for HalfCheetah and Gymnasium's own vector version for
CartPole; `num_threads` as shipped; `algo.cg_tolerance=0`, so that all CG iterations are spent;
audits, evaluations and checkpoints off; TensorBoard and `metrics.csv` on, which no peer has.
Against the clip of the peers' PPO stands our KL penalty, which costs a KL more a minibatch. A row
that only resets a CartPole is no transition: our batches are smaller than the peers' by one row an
episode.
"""

PEER_NOTES = {
    "tianshou": """**Tianshou** ({packages}):
as in its examples/mujoco, observations normalised, returns scaled, damping 0.1, NPG step 0.1, TRPO
max KL 0.01 and 10 backtracks by 0.8; its on-policy trainer without test episodes and without a
logger.
""",
    "sb3": """**sb3-contrib and Stable-Baselines3** ({packages}):
defaults in all that is not named here; no evaluation, no logger, observations not normalised (ours
are).
""",
    "rejax": """**rejax** ({packages}):
environment, sampling and update are one compiled function, whose compilation is not counted; no
evaluation, observations not normalised (ours are).
""",
}

REPEAT = r"""## Repeat

    pip install -c constraints.txt -e '.[bench,envpool]'
    python -m venv ../peers
    ../peers/bin/pip install tianshou==2.0.1 stable-baselines3==2.9.2 sb3-contrib==2.9.2 \
        'gymnasium[mujoco]==1.4.0' envpool==1.2.5 torch==2.13.0
    python -m venv ../rejax
    ../rejax/bin/pip install rejax==0.1.3 gymnax==0.0.9 'jax[cpu]==0.10.2'
    python benchmarks/speed.py --peer-python ../peers/bin/python \
        --peer-python rejax=../rejax/bin/python

That takes about 20 minutes on two otherwise idle cores. `python benchmarks/speed.py fisher raw`
repeats these jobs only (`--help` lists all) and keeps the other entries of `performance.json`. A
peer that is not installed is left out. rejax 0.1.3 needs the older gymnax.

Noise: the whole run repeated from a fresh clone on a busier machine, whose raw HalfCheetah gave 17k
to 31k steps/s in place of 30k to 37k, found ratios of 2.6, 1.9, 1.1 (1.1-1.5), 1.9, 1.9 and 0.6 in
the order of the first table, a share of 35 (28-49) %, Fisher products 2.0 times as fast as double
backprop on one thread, a first iteration after 2.5 s, 475 after 5.6 s, and two processes 1.37 times
as fast as one. Ours loses more than the peers where the second core is not to be had: EnvPool's
threads are on it.
"""
