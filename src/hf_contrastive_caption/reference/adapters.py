"""The target itself as reference, without its adapters or with them as they were: no second copy of the model."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from hf_contrastive_caption.captioners import CaptionBatch, Captioner, Images
from hf_contrastive_caption.captioners.determinism import evaluation_mode, largest_difference
from hf_contrastive_caption.captioners.verification import probe
from hf_contrastive_caption.fingerprints import (
    adapter_settings,
    base_digest,
    json_digest,
    model_digest,
    tensors_digest,
)
from hf_contrastive_caption.reference.base import Reference, average_
from hf_contrastive_caption.sharding import full_tensor

logger = logging.getLogger(__name__)

PROMPT_LEARNING = (
    "prompt learning puts virtual tokens before the caption, which captioners score wrongly; use an adapter in the "
    "layers, such as peft.LoraConfig"
)

_STATE_FILE = "adapter_state.safetensors"


class AdapterReference(Reference):
    """A PEFT model whose trained weights are taken away, or put back to what they were, while it scores as reference.

    Args:
        captioner: The target's own captioner.
        keep_state: Score with a stored copy of the weights that train, and not with the adapters off. Needed where
            the adapter does something already, where base weights train along, and for a reference that is replaced.
        inert: Whether the adapters change no score now.
    """

    def __init__(self, captioner: Captioner, *, keep_state: bool, inert: bool) -> None:
        super().__init__(captioner, equals_target=True)
        self._inert = inert
        self.shares_vision = True
        self._base_digest: str | None = None
        self._state: dict[str, Tensor] | None = None
        if keep_state:
            self._state = {name: weight.detach().clone() for name, weight in self._weights().items()}

    @property
    def description(self) -> str:
        """See :attr:`Reference.description`."""
        if self._state is None:
            return "the model with its adapters off"
        return "the model with its adapters as they were" + (f" at replacement {self.version}" if self.version else "")

    def log_probs(self, images: Images, captions: CaptionBatch) -> Tensor:
        """See :meth:`Reference.log_probs`."""
        with torch.no_grad(), self.in_place() as captioner:
            return captioner.log_probs(captioner.model, images, captions)

    def encode(self, images: Images) -> Images:
        """See :meth:`Reference.encode`."""
        with self.in_place():
            return super().encode(images)

    def digest(self) -> str:
        """See :meth:`Reference.digest`; that of a frozen copy of the base, where the adapters have no effect."""
        if self._state is None or (self._inert and self.version == 0):
            return self._base()
        return self.weights_name()

    def weights_name(self) -> str:
        """See :meth:`Reference.weights_name`; weights without effect are weights too."""
        return json_digest([self.identity(), tensors_digest(self.weights())])

    def weights(self) -> dict[str, Tensor]:
        """See :meth:`Reference.weights`."""
        return self._state or {}

    def place(self, device: torch.device) -> None:
        """See :meth:`Reference.place`; the model itself is the target, which the trainer places."""
        if self._state is not None:
            self._state = {name: value.to(device) for name, value in self._state.items()}

    def identity(self) -> str:
        """See :meth:`Reference.identity`."""
        if self._state is None:
            return ""
        model = self.captioner.model
        assert isinstance(model, PeftModel)
        return json_digest([self._base(), adapter_settings(model), sorted(self._state)])

    def _base(self) -> str:
        if self._base_digest is None:  # taken at the start; what trains beside adapters will change
            assert isinstance(self.captioner.model, PeftModel)
            self._base_digest = base_digest(self.captioner.model)
        return self._base_digest

    def check_refresh(self, target: Captioner) -> None:
        """See :meth:`Reference.check_refresh`; adapters always can."""

    def refresh(self, target: Captioner, mixup: float) -> None:
        """See :meth:`Reference.refresh`; averages weights of adapters, which is not the average of their effects."""
        assert self._state is not None  # the selection keeps a state where the reference is to be replaced
        with torch.no_grad():
            for name, weight in self._weights().items():
                average_(self._state[name], full_tensor(weight.detach()), mixup)
        self.version += 1
        self.equals_target = mixup == 1.0

    @property
    def has_state(self) -> bool:
        """See :attr:`Reference.has_state`."""
        return self._state is not None

    def save(self, folder: Path) -> None:
        """See :meth:`Reference.save`."""
        assert self._state is not None
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous().cpu() for name, value in self._state.items()}, folder / _STATE_FILE)

    def load(self, folder: Path) -> None:
        """See :meth:`Reference.load`."""
        assert self._state is not None
        stored = load_file(folder / _STATE_FILE)
        if stored.keys() != self._state.keys():
            raise ValueError(
                f"the reference in {folder} has {len(stored)} weights, but {len(self._state)} weights of this model "
                "train, or they have other names; resume with the adapter configuration of the run"
            )
        for name, value in stored.items():
            self._state[name].copy_(value)

    def _weights(self) -> dict[str, Tensor]:
        """What trains: the adapters, and whatever else takes a gradient."""
        return {name: weight for name, weight in self.captioner.model.named_parameters() if weight.requires_grad}

    @contextmanager
    def in_place(self) -> Iterator[Captioner]:
        """See :meth:`Reference.in_place`; the target's captioner, whose trained weights are away for as long."""
        try:
            with adapters_off(self.captioner.model) if self._state is None else self._stored_weights(self._state):
                yield self.captioner
        finally:
            # Autocast keeps casts of trained weights, and the target would go on with the reference's.
            torch.clear_autocast_cache()

    @contextmanager
    def _stored_weights(self, state: dict[str, Tensor]) -> Iterator[None]:
        pairs = [(weight.data, state[name]) for name, weight in self._weights().items()]
        current = [weight.clone() for weight, _ in pairs]
        # Through .data: no graph is alive that has seen these weights, and none shall complain of the exchange.
        for weight, stored in pairs:
            weight.copy_(_placed_like(weight, stored))
        try:
            yield
        finally:
            for (weight, _), value in zip(pairs, current, strict=True):
                weight.copy_(value)


class TargetReference(Reference):
    """The target as it is before its training, for scores that are computed ahead: no copy at all."""

    def __init__(self, captioner: Captioner) -> None:
        super().__init__(captioner, equals_target=True)
        self.shares_vision = True

    def place(self, device: torch.device) -> None:
        """See :meth:`Reference.place`; it is the target, which the trainer places."""

    @property
    def description(self) -> str:
        """See :attr:`Reference.description`."""
        return "the model before its training"

    def log_probs(self, images: Images, captions: CaptionBatch) -> Tensor:
        """See :meth:`Reference.log_probs`."""
        with torch.no_grad(), evaluation_mode(self.captioner.model), self.captioner.deterministic():
            return self.captioner.log_probs(self.captioner.model, images, captions)

    def digest(self) -> str:
        """See :meth:`Reference.digest`."""
        return model_digest(self.captioner.model)


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Take the adapters of a PEFT model out, and put them back with every weight taking gradients as it did.

    What ``PeftModel.disable_adapter`` does, without its report on all adapters, which would be made in every step; and
    PEFT would let all weights of the active adapters train when it puts them back, also those that were frozen.
    """
    trained = {weight: weight.requires_grad for weight in model.parameters()}
    layers = [module for module in model.modules() if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper))]
    on = [layer for layer in layers if not layer.disable_adapters]
    try:
        for layer in on:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in on:
            layer.enable_adapters(True)
        for weight, requires_grad in trained.items():
            weight.requires_grad_(requires_grad)


def adapter_reference(captioner: Captioner, *, replaced: bool) -> AdapterReference:
    """The reference that a PEFT model is for itself: its adapters off, or as they are now if they do something.

    Args:
        captioner: The target.
        replaced: Whether the reference will be replaced, for which the adapter's weights have to be kept.

    Raises:
        ValueError: If adapters are merged into the weights, or cannot be switched off.
    """
    model = captioner.model
    assert isinstance(model, PeftModel)
    if any(isinstance(module, BaseTunerLayer) and module.merged for module in model.modules()):
        raise ValueError(
            "the adapters of the model are merged into its weights, so the model cannot be scored without them; call "
            "unmerge_adapter(), or merge_and_unload() and pass peft_config for a new adapter"
        )
    if any(config.is_prompt_learning for config in model.peft_config.values()):
        raise ValueError(PROMPT_LEARNING)
    change = _effect_of_adapters(captioner)
    beside = _trained_beside_adapters(captioner)
    if change > 0:
        logger.info(
            "the adapter does something already (it moves scores by up to %.3g nats): the reference is the model with "
            "the adapter as it is now. For the model without it, pass reference_model",
            change,
        )
    if beside:
        logger.info("the reference keeps a copy of weights that train beside the adapters: %s", ", ".join(beside[:5]))
    return AdapterReference(captioner, keep_state=replaced or change > 0 or bool(beside), inert=change == 0)


def _effect_of_adapters(captioner: Captioner) -> float:
    """By how much the adapters change scores of the probe, in nats; exactly 0 for a new LoRA."""
    images, captions = probe(captioner)
    with torch.no_grad(), evaluation_mode(captioner.model):
        on = captioner.log_probs(captioner.model, images, captions)
        with adapters_off(captioner.model):
            off = captioner.log_probs(captioner.model, images, captions)
    return largest_difference(on, off)


def _trained_beside_adapters(captioner: Captioner) -> list[str]:
    """Weights that train and still count when the adapters are off, such as biases of the base model."""
    images, captions = probe(captioner)
    model = captioner.model
    with evaluation_mode(model), adapters_off(model), torch.enable_grad():
        weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        if not weights:
            return []
        score = captioner.log_probs(model, images, captions).sum()
        if not score.requires_grad:
            return []
        gradients = torch.autograd.grad(score, list(weights.values()), allow_unused=True)
    return [name for name, gradient in zip(weights, gradients, strict=True) if gradient is not None]


def _placed_like(weight: Tensor, stored: Tensor) -> Tensor:
    """A stored weight as the model holds it: on its device, and cut where FSDP2 cuts it."""
    if isinstance(weight, DTensor) and not isinstance(stored, DTensor):
        return distribute_tensor(stored.to(weight.device), weight.device_mesh, weight.placements)
    return stored
