"""rlopt: policy optimisation that is right, fast and small enough to read."""

__version__ = "0.1.0"
