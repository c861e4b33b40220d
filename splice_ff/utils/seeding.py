"""Random numbers that depend on a seed and on what is drawn, on nothing else."""

from __future__ import annotations

import operator

import numpy as np
import torch

from splice_ff.errors import InputError

MAX_SEED = 2**63 - 1


def seeded_generator(*seeds: int) -> torch.Generator:
    """Independent random numbers for every combination of seeds."""
    state = np.random.SeedSequence(seeds).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def check_seed(seed: int) -> int:
    """The seed as an int that torch and numpy both take; else InputError."""
    try:
        number = operator.index(seed)
    except TypeError:
        number = -1
    if not 0 <= number <= MAX_SEED:
        raise InputError(f"seed must be a whole number from 0 to {MAX_SEED}, not {seed}")
    return number
