"""A captioner that is frozen."""

from __future__ import annotations

import copy
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from hf_contrastive_caption.captioners import CaptionBatch, Captioner, Images

Model = TypeVar("Model", bound=nn.Module)


class Reference(Protocol):
    """Anything that can say what the reference thinks of captions."""

    def log_probs(self, images: Images, captions: CaptionBatch) -> Tensor:
        """Score captions as :meth:`Captioner.log_probs` does, without gradient and without noise, (n_captions,)."""
        ...


class FrozenReference:
    """A captioner whose weights take no gradient and whose forward has no noise.

    Args:
        captioner: Its model is put into evaluation mode and its weights are frozen, in place.
    """

    def __init__(self, captioner: Captioner) -> None:
        self.captioner = captioner
        captioner.model.requires_grad_(False)
        captioner.model.eval()
        captioner.make_deterministic()

    def log_probs(self, images: Images, captions: CaptionBatch) -> Tensor:
        """See :meth:`Reference.log_probs`."""
        with torch.no_grad():
            return self.captioner.log_probs(self.captioner.model, images, captions)


def frozen_copy(model: Model) -> Model:
    """A copy of a model as it is now.

    The weights are copied and not loaded again by the name in the config: a model made in memory has no name, and one
    that was edited is not what its name says.
    """
    return copy.deepcopy(model).requires_grad_(False).eval()
