"""The frozen side of the loss: scores that take no gradient and never change by themselves."""

from hf_contrastive_caption.reference.adapters import AdapterReference
from hf_contrastive_caption.reference.base import Reference
from hf_contrastive_caption.reference.frozen import FrozenReference, frozen_copy
from hf_contrastive_caption.reference.precomputed import PrecomputedReference

__all__ = ["AdapterReference", "FrozenReference", "PrecomputedReference", "Reference", "frozen_copy"]
