"""Faults that are planted into the package, each with the row of scripts/verify.py that finds it.

A plant replaces a piece of text in the source of one function; docs/verify.md lists them all.
"""

import importlib
import inspect
import re
import sys
import textwrap
from dataclasses import dataclass
from functools import cached_property

import torch

CARTPOLE, PENDULUM, FROZEN_LAKE = (
    f"env={name}-v1" for name in ("CartPole", "Pendulum", "FrozenLake")
)
BOX, DICT, BITS = (f"env=Match{name}-v0" for name in ("Box", "Dict", "MultiBinary"))
MASK = "env=MatchMaskInfo-v0 env.action_mask=true"
GRU = f"{CARTPOLE} policy=gru"
SCHEDULE = f"{CARTPOLE} algo=pg schedule.algo.optimizer.lr=0 schedule.baseline.damping=0.1"
OF_TRAJECTORIES = f"{CARTPOLE} average_over=trajectories"


@dataclass(frozen=True)
class Plant:
    """One fault.

    Attributes:
        fault: what is wrong, in words.
        where: `module:function` or `module:Class.method`, without the package's name.
        old: text of its source, which `new` replaces.
        new: the text in its place.
        row: the check of verify that must fail, or None where none is known to.
        overrides: of the configuration that is audited.
    """

    fault: str
    where: str
    old: str
    new: str
    row: str | None
    overrides: str = CARTPOLE

    @property
    def file(self):
        """The file that holds it."""
        return "rlopt/" + self.where.partition(":")[0].replace(".", "/") + ".py"

    def into(self, patch):
        """Plant it, for as long as pytest's monkeypatch lasts."""
        module_name, _, path = self.where.partition(":")
        module = importlib.import_module(f"rlopt.{module_name}")
        *outer, name = path.split(".")
        owner = module
        for part in outer:
            owner = getattr(owner, part)
        original = inspect.getattr_static(owner, name)
        new = self._edited(original, module, name)
        if outer:
            if isinstance(new, cached_property):
                new.__set_name__(owner, name)
            patch.setattr(owner, name, new)
            return
        for other in [m for key, m in sys.modules.items() if key.startswith("rlopt")]:
            for key, value in list(vars(other).items()):
                if value is original:
                    patch.setattr(other, key, new)
        registry = torch.distributions.kl._KL_REGISTRY
        for pair in [pair for pair, value in registry.items() if value is original]:
            patch.setitem(registry, pair, new)
            patch.setattr(torch.distributions.kl, "_KL_MEMOIZE", {})

    def _edited(self, original, module, name):
        """The function with its source changed, in the module's namespace."""
        function = getattr(original, "fget", None) or getattr(original, "func", None) or original
        source = textwrap.dedent(inspect.getsource(inspect.unwrap(function)))
        assert source.count(self.old) == 1, (self.fault, source.count(self.old))
        source = re.sub(r"^@register_kl.*\n", "", source.replace(self.old, self.new))
        scope = {}
        code = compile("from __future__ import annotations\n" + source, self.file, "exec")
        exec(code, vars(module), scope)
        return scope[name]


PLANTS = [
    # distributions
    Plant("sampled at temperature 2", "distributions:Categorical.sample",
          "clocks / self.probs", "clocks / self.probs.sqrt()", "sampling"),
    Plant("categories in reverse order", "distributions:Categorical.sample",
          "(clocks / self.probs)", "(clocks / self.probs).flip(-1)", "sampling", FROZEN_LAKE),
    Plant("std 5% too large", "distributions:DiagonalGaussian.sample",
          "self.stddev.detach()", "1.05 * self.stddev.detach()", "sampling", PENDULUM),
    Plant("one noise for all entries", "distributions:DiagonalGaussian.sample",
          "torch.normal(self.mean.detach().expand(shape), self.stddev.detach().expand(shape))",
          "self.mean.detach() + self.stddev.detach() * torch.randn(*shape[:-1], 1)",
          "sampling", BOX),
    Plant("one noise for all states", "distributions:DiagonalGaussian.sample",
          "torch.normal(self.mean.detach().expand(shape), self.stddev.detach().expand(shape))",
          "self.mean.detach() + self.stddev.detach() * torch.randn(shape[-1])",
          "sampling", PENDULUM),
    Plant("the transposed factor", "box:FullGaussian.sample",
          "self.L @", "self.L.mT @", "sampling", f"{BOX} policy.distribution=full_gaussian"),
    Plant("alpha and beta exchanged", "box:Beta.sample",
          "self.range * x", "self.range * (1 - x)", "sampling",
          f"{PENDULUM} policy.distribution=beta"),
    Plant("clipped in place of squashed", "box:SquashedGaussian._squash",
          "u.tanh()", "u.clamp(-0.999, 0.999)", "sampling",
          f"{PENDULUM} policy.distribution=squashed_gaussian"),
    Plant("bits drawn nearer to a half", "distributions:Bernoulli.sample",
          "uniform < self.probs", "uniform < 0.9 * self.probs + 0.05", "sampling", BITS),
    Plant("no slope of the tanh", "box:SquashedGaussian.log_prob",
          "- log_slope.sum(-1)", "", "entropy and kl",
          f"{PENDULUM} policy.distribution=squashed_gaussian"),
    Plant("no unit of the interval", "box:Beta.log_prob",
          "- self.range.log()", "", "entropy and kl", f"{PENDULUM} policy.distribution=beta"),
    Plant("entropy in bits", "distributions:Categorical.entropy",
          "(self.probs * self.logits)", "(self.probs * self.logits / math.log(2))",
          "entropy and kl"),
    Plant("entropy without its half", "distributions:DiagonalGaussian.entropy",
          "0.5 + HALF_LOG_2PI", "HALF_LOG_2PI", "entropy and kl", PENDULUM),
    Plant("entropy of the first part alone", "distributions:Product.entropy",
          "in self.parts", "in self.parts[:1]", "entropy and kl", DICT),
    Plant("mean part of the KL twice", "distributions:_kl_gaussian",
          "+ squared_z - 1", "+ 2 * squared_z - 1", "measured kl", PENDULUM),
    Plant("KL the other way", "box:_kl_beta",
          "kl_divergence(p.unit, q.unit)", "kl_divergence(q.unit, p.unit)", "entropy and kl",
          f"{PENDULUM} policy.distribution=beta"),
    Plant("KL of the first part alone", "distributions:_kl_product",
          "zip(p.parts, q.parts, strict=True)", "zip(p.parts[:1], q.parts[:1], strict=True)",
          "entropy and kl", DICT),
    Plant("the mean for the mode", "box:Beta.mode",
          "excess[0] / (excess[0] + excess[1])", "self.alpha / (self.alpha + self.beta)",
          "most probable action", f"{PENDULUM} policy.distribution=beta"),
    Plant("a bit's mode at another threshold", "distributions:Bernoulli.mode",
          "self.logits > 0", "self.logits > 0.5", "most probable action", BITS),
    Plant("the least probable action", "distributions:Categorical.mode",
          "argmax", "argmin", "most probable action"),
    # Fisher matrices
    Plant("no outer product", "distributions:Categorical.fisher_product",
          "pu - self.probs * pu.sum(-1, keepdim=True)", "pu", "fisher matrix"),
    Plant("1 in place of 2 on the log std", "distributions:DiagonalGaussian._fisher_diagonal",
          "2.0", "1.0", "fisher matrix", PENDULUM),
    Plant("the diagonal of A once", "box:FullGaussian.fisher_product",
          "A + torch.diag_embed(A.diagonal(dim1=-2, dim2=-1))", "A", "fisher matrix",
          f"{BOX} policy.distribution=full_gaussian"),
    Plant("the joint trigamma added", "box:Beta.fisher_product",
          "* u - torch.cat", "* u + torch.cat", "fisher matrix",
          f"{PENDULUM} policy.distribution=beta"),
    Plant("mean in place of the inner product", "fisher:empirical_metric",
          "(score * u).sum(", "(score * u).mean(", "fisher matrix",
          f"{CARTPOLE} algo.fisher=empirical"),
    Plant("no horizon", "fisher:fisher_operator",
          "batch.horizon / batch.count", "1 / batch.count", "fisher matrix", OF_TRAJECTORIES),
    Plant("chunks averaged", "linalg:sum_operator",
          "total(torch.stack([A(v) for A in operators]).sum(0))",
          "total(torch.stack([A(v) for A in operators]).mean(0))", "fisher matrix",
          f"{CARTPOLE} chunk_size=20"),
    # linear systems
    Plant("directions that are not conjugate", "linalg:conjugate_gradient",
          "r + (rr_next / rr) * p", "r + p", "conjugate gradient"),
    Plant("one iteration less", "linalg:conjugate_gradient",
          "iterations < max_iterations", "iterations < max_iterations - 1", "conjugate gradient"),
    Plant("the right-hand side for the residual", "linalg:conjugate_gradient",
          "return Solution(x, r, iterations", "return Solution(x, b - x, iterations",
          "radius of the step"),
    Plant("square root of the damping", "linalg:damped",
          "damping * v", "damping**0.5 * v", "natural direction"),
    Plant("half a Cholesky solve", "linalg:solve_dense",
          "torch.cholesky_solve(b[:, None], factor)[:, 0]",
          "torch.linalg.solve_triangular(factor, b[:, None], upper=False)[:, 0]",
          "natural direction", f"{CARTPOLE} algo.solver=dense policy=linear"),
    # line search
    Plant("the full step is never tried", "line_search:backtrack",
          "shrink ** (tries - 1)", "shrink**tries", "line search", f"{CARTPOLE} algo=trpo"),
    Plant("another scale reported", "line_search:backtrack",
          "LineSearch(scale, tries, rejected)", "LineSearch(scale * shrink, tries, rejected)",
          "predicted and measured", f"{CARTPOLE} algo=trpo"),
    Plant("accepted without a gain", "algos.trpo:TRPO.step",
          "if not gain > 0:", "if False:", "line search",
          f"{CARTPOLE} algo=trpo algo.damping=0.01"),
    Plant("one and a half times the radius", "algos.trpo:TRPO.step",
          "if not kl <= self.max_kl:", "if not kl <= 1.5 * self.max_kl:", "line search",
          f"{CARTPOLE} algo=trpo algo.damping=0.01"),
    # rules
    Plant("half the radius", "algos.npg:NPG.step",
          "(2 * self.max_kl / curvature)", "(self.max_kl / curvature)", "radius of the step"),
    Plant("damping not in the radius", "algos.npg:NPG.step",
          "float(d.dot(g - solution.residual))",
          "float(d.dot(g - solution.residual - self.damping * d))", "radius of the step"),
    Plant("absolute advantages", "algos.pg:PG.step",
          "* batch.advantage", "* batch.advantage.abs()", "gradient of the rule",
          f"{CARTPOLE} algo=pg"),
    Plant("the old policy is the newest", "algos.ppo:PPO._sgd_step",
          "new.log_prob(batch.action) - old_log_prob",
          "new.log_prob(batch.action) - new.log_prob(batch.action).detach()",
          "objective after a step", f"{CARTPOLE} algo=ppo"),
    Plant("penalty on the KL the other way", "algos.ppo:PPO._sgd_step",
          "kl_divergence(self.policy.dist(old_params), new)",
          "kl_divergence(new, self.policy.dist(old_params))",
          "objective after a step", f"{CARTPOLE} algo=ppo"),
    Plant("half the penalty", "algos.ppo:PPO._sgd_step",
          "self.penalty * kl", "self.penalty / 2 * kl", "objective after a step",
          f"{PENDULUM} algo=ppo"),
    Plant("gradients are not shortened", "algos.ppo:PPO._sgd_step",
          "math.inf if self.max_grad_norm is None else self.max_grad_norm", "math.inf",
          "objective after a step", f"{CARTPOLE} algo=ppo"),
    Plant("penalty times 4", "algos.ppo:PPO._adapt_penalty",
          "self.penalty *= 2", "self.penalty *= 4", "adapted penalty",
          f"{CARTPOLE} algo=ppo"),
    Plant("threshold at twice the target", "algos.ppo:PPO._adapt_penalty",
          "1.5 * self.target_kl", "2 * self.target_kl", "adapted penalty",
          f"{CARTPOLE} algo=ppo"),
    Plant("penalty without bounds", "algos.ppo:PPO._adapt_penalty",
          "min(max(self.penalty, smallest), largest)", "self.penalty",
          "adapted penalty", f"{CARTPOLE} algo=ppo"),
    Plant("adapted in every epoch", "algos.ppo:PPO.step",
          "self._adapt_penalty(float(batch.expect(kl_divergence(old, new))))",
          "[self._adapt_penalty(float(batch.expect(kl_divergence(old, new)))) "
          "for _ in range(self.epochs)]", "adapted penalty", f"{CARTPOLE} algo=ppo"),
    Plant("entropy is punished", "algos.ppo_clip:PPOClip._sgd_step",
          "surrogate + self.entropy_bonus", "surrogate - self.entropy_bonus",
          "objective after a step", f"{CARTPOLE} algo=ppo_clip"),
    Plant("no entropy bonus", "algos.ppo_clip:PPOClip._sgd_step",
          "surrogate + self.entropy_bonus * new.entropy()", "surrogate",
          "objective after a step", f"{PENDULUM} algo=ppo_clip"),
    Plant("wider above than below", "algos.ppo_clip:PPOClip._sgd_step",
          "1 + self.clip_range)", "1 + 2 * self.clip_range)", "clipped ratio",
          f"{CARTPOLE} algo=ppo_clip"),
    Plant("log ratios clipped", "algos.ppo_clip:PPOClip._sgd_step",
          "ratio.clamp(1 - self.clip_range, 1 + self.clip_range)",
          "log_ratio.clamp(-self.clip_range, self.clip_range).exp()", "clipped ratio",
          f"{CARTPOLE} algo=ppo_clip"),
    Plant("minibatches divided by the variance", "algos.ppo_clip:PPOClip._sgd_step",
          "(A - everywhere.mean()) /", "(A - everywhere.mean()) / everywhere.std() /",
          "objective after a step",
          f"{CARTPOLE} algo=ppo_clip algo.standardize_minibatch=true standardize_advantage=false"),
    Plant("no early stop", "algos.ppo_clip:PPOClip.step",
          "self.target_kl is not None and", "False and", "minibatch steps",
          f"{CARTPOLE} algo=ppo_clip"),
    Plant("clip fraction of one side", "algos.ppo_clip:PPOClip.step",
          "(ratio - 1).abs() > self.clip_range", "ratio - 1 > self.clip_range",
          "reported ratios", f"{CARTPOLE} algo=ppo_clip"),
    # estimators
    Plant("no discount in the decay", "advantages:gae",
          "gamma * lambda_ * continues", "lambda_ * continues", "advantages"),
    Plant("one step more", "advantages:td",
          "len(reward)) - 1)", "len(reward)))", "advantages", f"{CARTPOLE} advantage=td"),
    Plant("nothing after the last row", "advantages:td",
          "next_value[-1:]", "0 * next_value[-1:]", "advantages", f"{CARTPOLE} advantage=td"),
    Plant("no bootstrap at the rollout's end", "advantages:reward_to_go",
          "cut_value[-1] = next_value[-1]", "pass", "advantages",
          f"{CARTPOLE} advantage=reward_to_go"),
    Plant("a sum across truncations", "advantages:_prepare",
          "valid & ~terminated & ~truncated", "valid & ~terminated", "advantages at ends",
          f"{CARTPOLE} advantage=td"),
    Plant("values of the wrong rows", "advantages:_prepare",
          "value[1:]", "value[:-1]", "advantages", PENDULUM),
    Plant("advantages are not centred", "advantages:standardize",
          "advantage - x.mean()", "advantage", "batch of the update"),
    Plant("standardised over autoreset rows too", "advantages:standardize",
          "gather(advantage[valid])", "gather(advantage.flatten())", "batch of the update"),
    Plant("another discount than configured", "build:make_advantage",
          '"gamma": cfg.gamma', '"gamma": cfg.gamma**2', "advantages at ends"),
    # rollout
    Plant("steps go on after an episode", "recorder:Recorder.step",
          "np.where(self.autoreset, 0, self.step_index + 1)", "self.step_index + 1",
          "rollout rows"),
    Plant("returns go on after an episode", "recorder:Recorder.step",
          "np.where(self.autoreset, 0.0, self.episode_return + reward)",
          "self.episode_return + reward", "rollout rows"),
    Plant("terminated and truncated exchanged", "recorder:Recorder.step",
          "reward, terminated, truncated, ~", "reward, truncated, terminated, ~", "rollout rows"),
    Plant("rewards of the step before", "recorder:Recorder.record",
          "float_tensor(reward, self.device)",
          "float_tensor(np.roll(reward, 1, axis=0), self.device)",
          "rollout rows", PENDULUM),
    Plant("choices count from 0", "action_spaces:env_action",
          "(action + start).astype", "action.astype", "rollout rows", DICT),
    Plant("actions beyond the bounds", "action_spaces:env_action",
          "clipped.astype", "action.astype", "rollout rows",
          f"{PENDULUM} policy.log_std_init=0.5"),
    Plant("greedy actions in training", "recorder:sample",
          "dist.sample()", "dist.mode", "sampled actions", PENDULUM),
    Plant("a fifth of the actions uniform", "recorder:sample",
          "dist.sample()", "torch.where(torch.rand(len(dist.mode)) < 0.2, 0 * dist.mode + "
          "torch.randint(0, 2, (len(dist.mode),)), 0 * dist.sample())", "sampled actions"),
    # batch
    Plant("a subsample of the first rows", "types:Batch.subsample",
          "torch.randperm(self.num_units)[:units]", "torch.arange(self.num_units)[:units]",
          "parts of a batch"),
    Plant("halves that overlap", "types:Batch.halves",
          "slice(middle, None)", "slice(middle - 1, None)", "parts of a batch",
          f"{CARTPOLE} diagnostics=false"),
    Plant("minibatches are not shuffled", "types:Batch.minibatches",
          "torch.randperm(self.num_units)", "torch.arange(self.num_units)", "parts of a batch"),
    Plant("the last minibatch is dropped", "types:Batch.minibatches",
          "order.tensor_split(parts)]", "order.tensor_split(parts)[:-1]]", "minibatch steps",
          f"{CARTPOLE} algo=ppo"),
    Plant("expectations without the horizon", "types:Batch.expect",
          "self.horizon / self.count", "1 / self.count", "batch rows", OF_TRAJECTORIES),
    Plant("gradients without the horizon", "types:Batch.gradient",
          "self.horizon / self.count", "1 / self.count", "parts of a batch", OF_TRAJECTORIES),
    Plant("the horizon upside down", "trainer:Trainer._make_batch",
          "total_count(rollout.num_steps) / total_count(rollout.num_trajectories)",
          "total_count(rollout.num_trajectories) / total_count(rollout.num_steps)",
          "batch rows", OF_TRAJECTORIES),
    Plant("successors for observations", "trainer:Trainer._make_batch",
          "rollout.flatten(rollout.obs[:-1])", "rollout.flatten(rollout.obs[1:])", "batch rows"),
    # normaliser
    Plant("the sample's variance", "normalize:_statistics",
          "x.var(0, unbiased=False)", "x.var(0)", "normaliser"),
    Plant("the means' distance forgotten", "normalize:RunningNorm._merge",
          "var * n + delta**2 * self.count * n / total", "var * n", "normaliser"),
    Plant("clipped at 5", "normalize:RunningNorm.forward",
          "clamp(-10, 10)", "clamp(-5, 5)", "normaliser"),
    Plant("the latest batch weighs as much as all", "normalize:RunningNorm._merge",
          "self.count.copy_(total)", "self.count.copy_(n)", "normaliser"),
    Plant("divided by the variance", "normalize:RunningNorm._prepare",
          "self.var.sqrt()", "self.var", "normaliser"),
    Plant("each batch is taken in twice", "trainer:Trainer.iterate",
          "self.policy.update_statistics(batch.obs)",
          "[self.policy.update_statistics(batch.obs) for _ in range(2)]", "normaliser"),
    # baseline
    Plant("ridge times the number of samples", "baselines:LinearBaseline.fit",
          "self.ridge * eye", "self.ridge * count * eye", "baseline fit",
          f"{CARTPOLE} baseline=linear"),
    Plant("the targets' mean forgotten", "baselines:LinearBaseline.fit",
          "self.weight[-1] += mean", "pass", "baseline fit", f"{CARTPOLE} baseline=linear"),
    Plant("square of the step twice", "baselines:LinearBaseline._features",
          "x[..., -1:] ** 3", "x[..., -1:] ** 2", "baseline fit", f"{CARTPOLE} baseline=linear"),
    Plant("curvature summed, not averaged", "least_squares:NetworkBaseline._gauss_newton_step",
          "lambda u: u / count", "lambda u: u", "baseline fit"),
    Plant("a quarter of the step", "least_squares:NetworkBaseline._gauss_newton_step",
          "sum() / 2 / count", "sum() / 8 / count", "baseline fit"),
    Plant("target scale without the bias", "least_squares:NetworkBaseline._rescale",
          "(self.target_std * last.bias + self.target_mean - mean) / std", "last.bias",
          "baseline fit"),
    Plant("targets divided by the variance", "least_squares:mean_std",
          "correction=0)", "correction=0) ** 2", "baseline fit"),
    Plant("absolute errors", "least_squares:NetworkBaseline._run_optimizer",
          ".square()", ".abs()", "baseline fit", f"{CARTPOLE} baseline.fit=optimizer"),
    Plant("the same order in every epoch", "least_squares:NetworkBaseline._run_optimizer",
          "torch.randperm(len(y))", "torch.arange(len(y))", "baseline fit",
          f"{CARTPOLE} baseline.fit=optimizer"),
    Plant("targets with the successor's value", "trainer:Trainer._estimate",
          "return advantage, advantage + value[:-1]", "return advantage, advantage + value[1:]",
          "targets of the fit"),
    Plant("fitted to the step after", "trainer:Trainer._fit_baseline",
          "rollout.step[:-1]", "rollout.step[1:]", "targets of the fit",
          f"{CARTPOLE} baseline=linear"),
    Plant("bias counts as explained", "baselines:explained_variance",
          "(target - value).var(unbiased=False)", "(target - value).square().mean()",
          "targets of the fit"),
    # masks
    Plant("a logit that is only small", "policies:NetworkPolicy.dist_params",
          "MASKED", "-5.0", "masked actions", MASK),
    Plant("masks multiply the logits", "policies:NetworkPolicy.dist_params",
          "params.masked_fill(mask == 0, MASKED)", "params * mask", "masked actions", MASK),
    Plant("a recurrent policy without masks", "recurrent:GRUPolicy._params",
          "if self.mask_size else params", "if False else params", "masked actions",
          f"{MASK} policy=gru"),
    # schedules
    Plant("quadratic", "schedule:Schedule.at",
          "progress * (self.end", "progress**2 * (self.end", "schedules", SCHEDULE),
    Plant("written under another name", "schedule:Schedule.apply",
          'group[self.name.removeprefix("optimizer.")] = value', 'group["initial_lr"] = value',
          "schedules", SCHEDULE),
    Plant("done after half of the run", "trainer:Trainer.iterate",
          "self.env_steps / self.settings.total_steps",
          "2 * self.env_steps / self.settings.total_steps", "schedules",
          f"{SCHEDULE} total_steps=20000"),
    Plant("ends at a tenth of the difference", "schedule:Schedule.at",
          "(self.end - self.start)", "0.1 * (self.end - self.start)", "schedules", SCHEDULE),
    # evaluation
    Plant("evaluation samples", "build:make_trainer",
          "deterministic=True", "deterministic=False", "evaluated episodes"),
    Plant("evaluation on training's seeds", "build:make_trainer",
          "seed=evaluation_seed", "seed=training_seed", "evaluated episodes"),
    Plant("random state is not put back", "seeding:seeded",
          "set_random_state(before)", "pass", "evaluation"),
    Plant("NumPy's random state is not put back", "seeding:set_random_state",
          "np.random.set_state(tuple(state[\"numpy\"]))", "pass", "evaluation"),
    Plant("another seed each time", "evaluate:evaluate",
          "derive_seed(seed, number) if number else seed", "int(torch.seed()) % 1000",
          "evaluated episodes"),
    Plant("a step's reward in place of the return", "evaluate:_Tally.add",
          "recorder.episode_return[i]", "row.reward[i]", "evaluated episodes"),
    # recurrent policies
    Plant("memory survives the episode", "recorder:Recorder._advance",
          "if self.autoreset.any():", "if False:", "memory", GRU),
    Plant("the gate's sides exchanged", "recurrent:run",
          "torch.lerp(torch.addcmul(n, r, h_n).tanh(), h, z)",
          "torch.lerp(h, torch.addcmul(n, r, h_n).tanh(), z)", "memory", GRU),
    Plant("packed order in the batch", "recurrent:GRUPolicy.dist_params",
          "states[order.argsort()]", "states[order]", "memory", GRU),
    Plant("sequences begin without memory", "recurrent:GRUPolicy.dist_params",
          "state[order[: sizes[0]]]", "0 * state[order[: sizes[0]]]", "memory", GRU),
    Plant("no gradient through time", "recurrent:run",
          "h = state[: len(n)]", "h = state[: len(n)].detach()", "gradient of the rule", GRU),
    # what is reported
    Plant("gain that includes the baseline", "trainer:Trainer._update",
          "(ratio - 1) * batch.advantage", "ratio * batch.advantage.abs()", "measured kl"),
    Plant("episodes of all iterations counted", "trainer:Trainer.iterate",
          '"rollout/episodes": len(returns)', '"rollout/episodes": len(self.recent_returns)',
          "reported episodes"),
    # ten that were planted before any check was changed, of which four were found
    Plant("masks shifted by one action", "masks:mask_last",
          "np.concatenate([flat, mask], axis=1)",
          "np.concatenate([flat, np.roll(mask, 1, axis=1)], axis=1)", "masked actions", MASK),
    Plant("every rollout starts from the same seed", "rollout:_reset_seed",
          "derive_seed(seed, number) if number else seed", "seed", "rollout rows",
          f"{CARTPOLE} rollout=episodes"),
    Plant("a std that forgets the action's unit", "action_spaces:GaussianHead.forward",
          "(self.log_std + self.log_scale)", "self.log_std", "units of the action", PENDULUM),
    Plant("entropy after the update as that before", "trainer:Trainer._update",
          "float(total_mean(old.entropy()))", "float(total_mean(new.entropy()))",
          "reported update"),
    Plant("audit trail: the whole of d.Fd", "audit:Audit._quadratic_kl",
          "return 0.5 * float", "return float", "reported update"),
    Plant("transitions beyond the episodes asked for", "recorder:Recorder.record",
          "row.valid &= remaining > 0", "pass", "an iteration of training",
          f"{CARTPOLE} rollout=episodes"),
    Plant("the baseline's inputs are never standardised", "least_squares:NetworkBaseline.fit",
          "self.normalizer.update(x)", "pass", "baseline statistics"),
    Plant("one episode less is evaluated", "evaluate:evaluate",
          "divided(episodes,", "divided(episodes - 1,", "evaluated episodes"),
    Plant("every second row into the normaliser", "recurrent:GRUPolicy.update_statistics",
          "obs[:, : self.obs_size]", "obs[::2, : self.obs_size]", "normaliser", GRU),
    Plant("two steps with one gradient", "algos.pg:PG.step",
          "self.optimizer.step()", "[self.optimizer.step() for _ in range(2)]", "minibatch steps",
          f"{CARTPOLE} algo=pg"),
    # ten more, once the checks had been extended: nine were found
    Plant("KL penalty on the squared log ratio", "algos.ppo:PPO._sgd_step",
          "kl = -log_ratio", "kl = log_ratio.square()", "objective after a step",
          f"{CARTPOLE} algo=ppo algo.kl=sampled"),
    Plant("line search on the mean of the ratio", "algos.trpo:TRPO.step",
          "(ratio - 1) * batch.advantage", "ratio - 1", "ascent",
          f"{CARTPOLE} algo=trpo algo.damping=0.01"),
    Plant("n-step return without discount", "advantages:td",
          "reward + gamma * torch.where(continues", "reward + torch.where(continues", "advantages",
          f"{CARTPOLE} advantage=td"),
    Plant("square roots of a bit's probability", "distributions:Bernoulli._mean_of",
          "self.probs * at_one", "self.probs.sqrt() * at_one", "entropy and kl", BITS),
    Plant("rewards clipped to 1", "recorder:Recorder.step",
          "Row(action, reward,", "Row(action, np.clip(reward, -1, 1),", "rollout rows", PENDULUM),
    Plant("features of the trunk without normaliser", "policies:NetworkPolicy.features",
          "x = self._input(x)", "x = floats(x)", "baseline statistics",
          f"{CARTPOLE} baseline=trunk"),
    Plant("full Gaussian's KL without means", "box:_kl_full_gaussian",
          "+ q.whiten(p.mean - q.mean).square().sum(-1)", "", "entropy and kl",
          f"{BOX} policy.distribution=full_gaussian"),
    Plant("fitted to nine tenths of the targets", "trainer:Trainer._fit_baseline",
          "rollout.flatten(target))", "0.9 * rollout.flatten(target))", "targets of the fit"),
    Plant("slope of another squashing in the entropy", "box:SquashedGaussian.entropy",
          "-2 * u", "-u", "entropy and kl", f"{PENDULUM} policy.distribution=squashed_gaussian"),
    Plant("states of the rollout one step late", "recorder:Recorder.record",
          "states.append(self.state)", "states.append(states[-1])", "memory", GRU),
]  # fmt: skip


def table():
    """The rows of the table in docs/verify.md."""
    return [f"| {p.fault} | `{p.file}` | {p.row or 'not caught'} |" for p in PLANTS]
