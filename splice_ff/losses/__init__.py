"""The three losses of Splice (`splice.py`), and three of ours: on styles (`style.py`), colors and edges."""

from splice_ff.losses.splice import Losses, SpliceLoss, Target, appearance_loss, identity_loss, structure_loss

__all__ = ["Losses", "SpliceLoss", "Target", "appearance_loss", "identity_loss", "structure_loss"]
