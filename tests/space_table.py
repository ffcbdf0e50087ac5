"""The table of (action space x distribution) that tests and docs/spaces.md share."""

import numpy as np
import torch
from gymnasium import spaces

from rlopt.action_spaces import BOX_HEADS, categories, leaves
from rlopt.masks import MaskedBox
from rlopt.policies import MLPPolicy

BOUNDED = spaces.Box(np.float32([-1, 0]), np.float32([1, 4]))
SPACES = {
    "Discrete": spaces.Discrete(4),
    "Discrete, any start": spaces.Discrete(3, start=-2),
    "Discrete, masked": spaces.Discrete(4),
    "MultiDiscrete": spaces.MultiDiscrete([2, 3], start=[5, 0]),
    "MultiDiscrete, masked": spaces.MultiDiscrete([[2, 3]]),
    "MultiBinary": spaces.MultiBinary(3),
    "Box, bounded": BOUNDED,
    "Box, any shape": spaces.Box(-1, 1, (1, 2, 2)),
    "Box, half-bounded": spaces.Box(0, np.inf, (2,)),
    "Box, unbounded": spaces.Box(-np.inf, np.inf, (2,)),
    "Tuple": spaces.Tuple([spaces.Discrete(3, start=1), BOUNDED]),
    "Dict, nested": spaces.Dict(
        arm=spaces.Tuple([BOUNDED, spaces.MultiBinary(2)]), grip=spaces.MultiDiscrete([2, 2])
    ),
}
HAS_BOX = {name for name, s in SPACES.items() if any(isinstance(x, spaces.Box) for x in leaves(s))}
REFUSED = [
    *((name, dist) for name in SPACES if name not in HAS_BOX for dist in [*BOX_HEADS][1:]),
    *((f"Box, {kind}", d) for kind in ("half-bounded", "unbounded")
      for d in ("squashed_gaussian", "beta")),
]  # fmt: skip
CASES = [(name, dist) for name in SPACES for dist in BOX_HEADS if (name, dist) not in REFUSED]
DISCRETE = [name for name, _ in CASES if name not in HAS_BOX]
MASKED_SPACES = [name for name in SPACES if name.endswith("masked")]
FEATURES = spaces.Box(-np.inf, np.inf, (3,))


def make_policy(name, distribution="gaussian", **changes):
    space = SPACES[name]
    masked = name in MASKED_SPACES
    settings = {
        "hidden_sizes": [4],
        "activation": "tanh",
        "distribution": distribution,
        "log_std_init": -0.3,
        "output_gain": 0.7,
        "orthogonal_init": True,
        "normalize_obs": False,
    }
    obs_space = MaskedBox(FEATURES, sum(categories(space))) if masked else FEATURES
    policy = MLPPolicy(obs_space, space, **settings | changes)
    with torch.no_grad():  # a std that differs with the dimension, a covariance, a bias
        for p in policy.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return policy


def random_obs(name, size):
    """Observations, with masks that allow at least the first choice of every entry."""
    obs = torch.randn(size, 3)
    if name not in MASKED_SPACES:
        return obs
    masks = [(torch.rand(size, n) < 0.6).double() for n in categories(SPACES[name])]
    for mask in masks:
        mask[:, 0] = 1
    return torch.cat([obs, *masks], dim=-1)
