"""A reference with weights of its own: a frozen copy of the target, or another captioner."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, TypeVar

import torch
from peft import PeftModel
from torch import Tensor, nn

from hf_contrastive_caption.captioners import CaptionBatch, Captioner, Images
from hf_contrastive_caption.captioners.determinism import restore_dropout
from hf_contrastive_caption.fingerprints import model_digest, settings_of, without_dropout
from hf_contrastive_caption.loading import restore_weights
from hf_contrastive_caption.reference.base import Reference, average_
from hf_contrastive_caption.sharding import full_tensor, is_sharded, whole_copy

Model = TypeVar("Model", bound=nn.Module)


class FrozenReference(Reference):
    """A captioner whose weights take no gradient and whose forward has no noise.

    Args:
        captioner: Its model is put into evaluation mode and its weights are frozen, in place.
        equals_target: Whether it is a copy of the target.
        shares_vision: Whether its vision encoder is the target's, frozen, so that it can read the target's states.
    """

    def __init__(self, captioner: Captioner, *, equals_target: bool = False, shares_vision: bool = False) -> None:
        super().__init__(captioner, equals_target=equals_target)
        self.shares_vision = shares_vision
        self._is_copy = equals_target
        captioner.model.requires_grad_(False)
        captioner.model.eval()
        rates = captioner.make_deterministic()
        if shares_vision and captioner.vision is not None:  # the target's, whose dropout is off while it trains
            inside = set(captioner.vision.modules())
            modules = dict(captioner.model.named_modules())
            of_target = {path: rate for path, rate in rates.items() if modules[path.rpartition(".")[0]] in inside}
            restore_dropout(captioner.model, of_target)

    @property
    def description(self) -> str:
        """See :attr:`Reference.description`."""
        what = "a frozen copy of the model" if self._is_copy or self.version else f"{self.captioner.name}, frozen"
        return f"{what} (with the model's vision encoder)" if self.shares_vision else what

    def log_probs(self, images: Images, captions: CaptionBatch) -> Tensor:
        """See :meth:`Reference.log_probs`."""
        with torch.no_grad():
            return self.captioner.log_probs(self.captioner.model, images, captions)

    def digest(self) -> str:
        """See :meth:`Reference.digest`."""
        return model_digest(self.captioner.model)

    def weights(self) -> dict[str, Tensor]:
        """See :meth:`Reference.weights`."""
        return tensors_of(self.captioner.model)

    def check_refresh(self, target: Captioner) -> None:
        """See :meth:`Reference.check_refresh`."""
        if isinstance(self.captioner.model, PeftModel):
            raise ValueError(
                "reference_refresh does not work with a PEFT model as reference_model; leave reference_model out, so "
                "that the reference is the model with its adapters as they are"
            )
        own = self.weights()
        theirs = tensors_of(target.model)
        differ = differing(own, theirs)
        if differ:
            raise ValueError(
                f"reference_refresh replaces the reference by the target, but they are different models "
                f"({self.captioner.name} and {target.name}; {len(differ)} weights differ in name or shape). Leave "
                "reference_refresh out, or leave reference_model out to start from a copy of the target"
            )
        if not self.captioner.processor.reads_like(target.processor) or _computing(self.captioner) != _computing(
            target
        ):
            raise ValueError(
                "reference_refresh replaces the weights of the reference by those of the target, but the two read "
                "captions or images in different ways, or have configs that differ, so that it would not become the "
                "target. Leave reference_refresh out, or leave reference_model out to start from a copy of the target"
            )

    def refresh(self, target: Captioner, mixup: float) -> None:
        """See :meth:`Reference.refresh`; every process gathers the weights of a sharded target."""
        theirs = tensors_of(target.model)
        with torch.no_grad():
            for name, value in self.weights().items():
                if value is not theirs[name]:
                    average_(value, full_tensor(theirs[name]).detach(), mixup)
        self.version += 1
        self.equals_target = mixup == 1.0

    @property
    def has_state(self) -> bool:
        """See :attr:`Reference.has_state`; a given PEFT model is never replaced, and would be saved in part."""
        return not isinstance(self.captioner.model, PeftModel)

    def save(self, folder: Path) -> None:
        """See :meth:`Reference.save`; the folder can be given as ``reference_model`` too."""
        self.captioner.save_pretrained(folder)

    def load(self, folder: Path) -> None:
        """See :meth:`Reference.load`."""
        restore_weights(self.captioner.base_model, str(folder))


def frozen_copy(model: Model, share: nn.Module | None = None) -> Model:
    """A copy of a model as it is now.

    The weights are copied and not loaded again by the name in the config: a model made in memory has no name, and one
    that was edited is not what its name says.

    Args:
        model: The model; of one that is sharded over processes every process gets a whole copy.
        share: A part of it that is held by both and not copied.
    """
    if is_sharded(model):
        return whole_copy(model)
    shared = {} if share is None else {id(share): share}
    copied = copy.deepcopy(model, shared)
    copied.requires_grad_(False).eval()
    return copied


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Weights and buffers by name, tied ones once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def differing(own: dict[str, Tensor], theirs: dict[str, Tensor]) -> list[str]:
    """The names that only one of two models has, or that have other shapes in the other."""
    return sorted(
        name
        for name in own.keys() | theirs.keys()
        if name not in own or name not in theirs or own[name].shape != theirs[name].shape
    )


def _computing(captioner: Captioner) -> tuple[Any, int]:
    """What a captioner computes beside its weights; without dropout, which is off."""
    return without_dropout(settings_of(captioner.base_model.config)), captioner.start_token_id
