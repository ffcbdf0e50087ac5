"""Update rules. Each file is one rule, read top to bottom as mathematics."""
