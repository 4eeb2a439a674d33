"""The frozen side of the loss: scores that take no gradient and never change by themselves."""

from hf_contrastive_caption.reference.frozen import FrozenReference, Reference, frozen_copy

__all__ = ["FrozenReference", "Reference", "frozen_copy"]
