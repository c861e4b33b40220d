"""The three losses of Splice (`splice.py`), and two of ours: on style (`style.py`) and on edges (`edges.py`)."""

from splice_ff.losses.splice import Losses, SpliceLoss, Target, appearance_loss, identity_loss, structure_loss

__all__ = ["Losses", "SpliceLoss", "Target", "appearance_loss", "identity_loss", "structure_loss"]
