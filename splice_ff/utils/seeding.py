"""Random numbers that depend on a seed and on what is drawn, on nothing else."""

from __future__ import annotations

import numpy as np
import torch


def seeded_generator(*seeds: int) -> torch.Generator:
    """Independent random numbers for every combination of seeds."""
    state = np.random.SeedSequence(seeds).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))
