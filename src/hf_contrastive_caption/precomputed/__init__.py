"""What is computed once, ahead of a training, and read from disk while it runs."""

from hf_contrastive_caption.precomputed.prepare import ComputedAhead, training_epochs

__all__ = ["ComputedAhead", "training_epochs"]
