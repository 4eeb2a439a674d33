"""What every family of captioners offers: ln p(caption | image) for any number of captions per image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import BaseImageProcessor, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin
from transformers.utils.generic import ModelOutput

from hf_contrastive_caption.captioners.batch import CaptionBatch, Images, Padding
from hf_contrastive_caption.captioners.determinism import (
    disable_dropout,
    evaluation_mode,
    norms_with_statistics,
    restore_dropout,
)
from hf_contrastive_caption.captioners.front import FrontDoor
from hf_contrastive_caption.captioners.packing import DecoderRows, sum_by_caption
from hf_contrastive_caption.captioners.settings import setting, to_dtype, token_ids
from hf_contrastive_caption.captioners.tries import PrefixTrie
from hf_contrastive_caption.captioners.verification import exact_tries, probe, verify
from hf_contrastive_caption.captioners.vocabulary import (
    DEFAULT_MAX_LOGITS_BYTES,
    log_probs_instead_of_logits,
    log_softmax_of,
)
from hf_contrastive_caption.fingerprints import settings_of
from hf_contrastive_caption.processing import CaptionProcessor
from hf_contrastive_caption.sharding import check_tied_weights, is_sharded, resharded

Packing = Literal["auto", "packed", "repeated"]
TrieScorer = Callable[[PrefixTrie], Tensor]
"""Scores the edges of a trie for the images that it was made for: ln p of each, (n_images, n_edges)."""


class Captioner(FrontDoor, ABC):
    """A thin adapter around a captioning model; it owns alignment, start and end tokens, and the layout of captions.

    Made by :func:`captioner_for`. One family of models has one subclass, which says how captions and images become
    the arguments of the model's own forward, and where in the outputs the log-probabilities are.

    Gradients flow only through the call of the model that :meth:`log_probs` is given, as Accelerate wrapped it.
    Calling its submodules instead would leave the gradients of DDP unsynchronised without any error. The model's own
    loss is never read.

    Args:
        model: The captioner, a ``PreTrainedModel`` or a PEFT model around one.
        processor: Tokenizer and image processor.
        packing: ``"packed"`` puts all captions of an image into one decoder row, ``"repeated"`` gives each its own
            row and repeats the states of the image; ``"auto"`` packs if that is exact for this very model, which
            :meth:`verify` finds out.
        max_logits_bytes: Largest size of the logits that are held at one time.

    Attributes:
        layout: ``"packed"`` or ``"repeated"``, what is in use.
        head: ``"fused"`` (log-probabilities come out of the model in place of logits) or ``"logits"`` (a decoder
            that changes its logits after the projection).
        verified: Whether :meth:`verify` has run.
        takes_prompt: Whether the family asks for a caption with a prompt, in which case its processor is made by
            :meth:`make_prompt_processor`.
        way_out: What :meth:`verify` advises where no way of scoring is exact.
        nodes_attend: Whether the nodes of a trie attend to each other, which costs the square of their number.
        start_token_id: The token from which the first token of a caption is predicted; set by a family with tries.
        position_limit: Positions of a row of the decoder, where captions that need more get rows of their own.
    """

    start_token_id: int = None  # type: ignore[assignment]  # of families without tries
    position_limit: int | None = None
    takes_prompt: ClassVar[bool] = False
    way_out: ClassVar[str] = (
        "With packing='auto' repeated states are tried as well; if you did, please report the model's config as a "
        "bug, or register a captioner of your own with register_captioner"
    )
    nodes_attend: ClassVar[bool] = True

    def __init__(
        self,
        model: nn.Module,
        processor: CaptionProcessor,
        *,
        packing: Packing = "auto",
        max_logits_bytes: int = DEFAULT_MAX_LOGITS_BYTES,
    ) -> None:
        if packing not in ("auto", "packed", "repeated"):
            raise ValueError(f"packing is {packing!r}, but must be 'auto', 'packed' or 'repeated'")
        if max_logits_bytes < 1:
            raise ValueError(f"max_logits_bytes must be at least 1, but is {max_logits_bytes}")
        self.model = model
        self.processor = processor
        self.packing = packing
        self.max_logits_bytes = max_logits_bytes
        self.layout: Literal["packed", "repeated"] = "repeated" if packing == "repeated" else "packed"
        self.head: Literal["fused", "logits"] = "fused"
        self.verified = False
        self._frozen_norms: list[nn.Module] = []
        self._tries: bool | None = None

    # What a family has to say -----------------------------------------------------------------------------------

    @classmethod
    def for_model(cls, model: PreTrainedModel) -> type[Captioner]:
        """The class that serves a model with the registered config: this one, unless such models are of two kinds."""
        return cls

    @classmethod
    def make_processor(
        cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, image_processor: BaseImageProcessor
    ) -> CaptionProcessor:
        """The processor of a family that takes no prompt: which token ends its captions, and how long they may be.

        Raises:
            ValueError: If the tokenizer has no end token, or the model cannot caption.
        """
        raise NotImplementedError(f"{cls.__name__} does not say make_processor")

    @classmethod
    def make_prompt_processor(
        cls, model: PreTrainedModel, processor: ProcessorMixin, prompt: str | None
    ) -> CaptionProcessor:
        """The processor of a family that takes a prompt.

        Args:
            model: The captioner.
            processor: Its whole processor, with tokenizer, image processor and the way that a prompt is written.
            prompt: What the user asks for; ``None`` for the image alone.
        """
        raise NotImplementedError(f"{cls.__name__} does not say make_prompt_processor")

    @abstractmethod
    def rows(self, images: Images, captions: CaptionBatch) -> DecoderRows:
        """Lay the captions out in decoder rows by ``self.layout``."""

    @abstractmethod
    def prepare(self, images: Images, captions: CaptionBatch, rows: DecoderRows) -> dict[str, Any]:
        """The keyword arguments of the model's forward."""

    @abstractmethod
    def scoring(self, images: Images, captions: CaptionBatch, rows: DecoderRows) -> AbstractContextManager[None]:
        """A context in which the model's call gives log-probabilities by the current layout and head."""

    @abstractmethod
    def encode(self, images: Images) -> Images:
        """Run the vision side once, without gradients; the result can stand for ``images`` in :meth:`log_probs`.

        Args:
            images: What the image processor gives, n_images along the first dimension. States are returned as they
                are.

        Returns:
            A dict of tensors with n_images along the first dimension.
        """

    @abstractmethod
    def reference_log_probs(self, images: Images, captions: CaptionBatch) -> Tensor:
        """Log-probability of each caption token by the plainest way there is, (n_tokens,).

        One forward per caption without padding, packing or hooks, logits read from the outputs: the naive twin with
        which :meth:`verify` compares the quick ways.
        """

    def checking_images(self, images: Images) -> AbstractContextManager[None]:
        """A context for :meth:`reference_log_probs` that raises a ValueError where images do not fit the model."""
        return nullcontext()

    def generate(self, images: Images, **arguments: Any) -> Tensor:
        """Caption images by the model's own ``generate``; adapters take part.

        Args:
            images: What the image processor gives, on the model's device and in its dtype.
            **arguments: Arguments of ``generate``.

        Returns:
            Token ids, (n_images, n_tokens), without a prompt.
        """
        model: Any = self.base_model  # generate types its self
        sequences: Tensor = model.generate(**images, **self.own_arguments(arguments))
        return sequences

    def own_arguments(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """What the model's own ``generate`` takes in place of the arguments of :meth:`generate`."""
        return arguments

    @property
    def stop_token_ids(self) -> list[int]:
        """The tokens at which :meth:`generate` stops, once each: the end token of captions, then the model's own."""
        own = token_ids(setting(self.base_model.generation_config, "eos_token_id"))
        return list(dict.fromkeys([self.processor.end_token_id, *own]))

    @property
    def vision(self) -> nn.Module | None:
        """The part of the model that :meth:`encode` runs and that no caption reaches; ``None`` if there is none."""
        return None

    def padding(self) -> dict[str, Padding]:
        """What of :meth:`encode` has a size that depends on the image, and how it is padded; by name."""
        return {}

    def vision_settings(self) -> dict[str, Any]:
        """All that :meth:`encode` depends on beside the weights of :attr:`vision` and the images.

        The settings of the whole model unless a family says that fewer of them matter: which layer's states are read
        stands outside of the vision encoder's own config in some.
        """
        settings: dict[str, Any] = settings_of(self.base_model.config)
        return settings

    def adopt_vision(self, other: Captioner) -> None:
        """Hold the vision side of another captioner of the same family in place of one's own."""
        raise NotImplementedError(f"{type(self).__name__} has no vision side of its own")

    @property
    def decoder(self) -> PreTrainedModel:
        """The part of the model that reads captions; the whole model unless a family says another."""
        return self.base_model

    def decoder_size(self) -> tuple[int, int]:
        """Layers and width of the decoder, from which follow estimates of memory."""
        config = self.decoder.config.get_text_config(decoder=True)
        return config.num_hidden_layers, config.hidden_size

    def trie_scorer(self, images: Images, max_logits_bytes: int | None = None) -> TrieScorer | None:
        """A function that scores tries of captions for some images, without gradients; ``None`` if there is none.

        What depends on the images alone is computed once for all tries. The model is in evaluation mode when it is
        called.

        Args:
            images: What the image processor gives, or the result of :meth:`encode`.
            max_logits_bytes: Largest size of the logits that are held at one time; the captioner's if not given.
        """
        return None

    def layer_calls(self, longest: int) -> int:
        """How often layers of the decoder are called for a trie, from which follows how large tries should be.

        Each layer once, as the nodes are one row; a family that reads them one after the other says another number.

        Args:
            longest: Tokens of the trie's longest caption.
        """
        return self.decoder_size()[0]

    def gather(self, outputs: ModelOutput, captions: CaptionBatch, rows: DecoderRows) -> Tensor:
        """Log-probability of each caption token, (n_tokens,), which are the logits, or made of them, by the head."""
        logits: Tensor = outputs["logits"]
        if self.head == "fused":
            if logits.numel() != captions["input_ids"].numel():
                raise ValueError(
                    f"{self.name} gave {tuple(logits.shape)} logits where the log-probabilities of "
                    f"{captions['input_ids'].numel()} tokens were expected: the output embedding that "
                    "get_output_embeddings() names is not the one that ran. Register a captioner of your own with "
                    "register_captioner that says which one it is"
                )
            return logits.view(-1)
        return log_softmax_of(logits.flatten(0, -2).index_select(0, rows.source), captions["input_ids"])

    # What every family gives ------------------------------------------------------------------------------------

    @property
    def base_model(self) -> PreTrainedModel:
        """The captioner itself, without an adapter's wrapper."""
        model: Any = self.model
        base = model.get_base_model() if _is_peft(model) else model
        assert isinstance(base, PreTrainedModel)
        return base

    def token_log_probs(self, model: nn.Module, images: Images, captions: CaptionBatch) -> Tensor:
        """Score every caption token: ln p of it given its image and the tokens before it.

        Args:
            model: ``self.model``, wrapped or not; its own call is what gradients flow through.
            images: What the image processor gives, n_images along the first dimension, or the result of
                :meth:`encode`.
            captions: The captions to score.

        Returns:
            Log-probabilities in nats, at least float32 whatever the autocast, (n_tokens,).
        """
        if not self.verified:
            self.verify()
        return self._token_log_probs(model, images, captions)

    def log_probs(self, model: nn.Module, images: Images, captions: CaptionBatch) -> Tensor:
        """Score captions: ln p(caption | image), summed over tokens with the end token, not normalised by length.

        Args:
            model: ``self.model``, wrapped or not; its own call is what gradients flow through.
            images: What the image processor gives, n_images along the first dimension, or the result of
                :meth:`encode`.
            captions: The captions to score.

        Returns:
            Log-probabilities in nats, at least float32 whatever the autocast, (n_captions,).
        """
        return sum_by_caption(self.token_log_probs(model, images, captions), captions["lengths"])

    def verify(self) -> None:
        """Check the quick ways of scoring against the plain one on this very model, and choose what is exact.

        With ``packing="auto"`` a family, or a decoder, in which packing is not exact falls back to repeated states
        with one warning. Also checks that the decoder is causal. Called by the first scoring if not before.

        Raises:
            ValueError: If no way agrees with the plain one, the decoder sees later tokens, or ``packing="packed"``
                was asked for and is not exact; or tied weights of a sharded model are torn apart.
        """
        check_tied_weights(self.model)
        with resharded(self.model):
            verify(self)
        self.verified = True

    @property
    def tries(self) -> bool:
        """Whether tries are exact for this very model; found out when it is first asked."""
        if self._tries is None:
            if not self.verified:
                self.verify()
            self._tries = self.layout == "packed" and exact_tries(self)
        return self._tries

    def make_deterministic(self) -> dict[str, float]:
        """Set the rates of all dropout to 0 and keep batch norms from using the batch, also in training mode.

        Returns:
            The dropout rates that were above 0, by name.
        """
        self._frozen_norms = norms_with_statistics(self.model)
        return disable_dropout(self.model)

    @contextmanager
    def deterministic(self) -> Iterator[dict[str, float]]:
        """As :meth:`make_deterministic`, and back to what it was at the end."""
        norms = self._frozen_norms
        rates = self.make_deterministic()
        try:
            yield rates
        finally:
            restore_dropout(self.model, rates)
            self._frozen_norms = norms

    def freeze_unused(self) -> list[str]:
        """Freeze the weights that no gradient ever reaches, such as the pooler of a vision encoder.

        DDP waits for the gradient of every weight that is not frozen, and stops with an error where none comes. FSDP
        waits for none, and computes with other tensors than the weights that a model of it shows, so that no gradient
        would seem to reach any of them: a sharded model is left as it is.

        Returns:
            The names of the weights that were frozen.
        """
        weights = {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}
        if not weights or is_sharded(self.model):
            return []
        images, captions = probe(self)
        with evaluation_mode(self.model), torch.enable_grad():  # a probe must not move the statistics of a batch norm
            score = self.log_probs(self.model, images, captions).sum()
            gradients = torch.autograd.grad(score, list(weights.values()), allow_unused=True)
        unused = [name for name, gradient in zip(weights, gradients, strict=True) if gradient is None]
        for name in unused:
            weights[name].requires_grad_(False)
        return unused

    @contextmanager
    def scoring_with(
        self, hooks: Iterable[RemovableHandle], captions: CaptionBatch, rows: DecoderRows
    ) -> Iterator[None]:
        """:meth:`scoring` by a family's own hooks, which are removed at the end, and the head that is in use."""
        with ExitStack() as opened:
            for hook in hooks:
                opened.callback(hook.remove)
            if self.head == "fused":
                targets = captions["input_ids"]
                opened.enter_context(
                    log_probs_instead_of_logits(self.vocabulary, rows.source, targets, self.max_logits_bytes)
                )
            yield

    @property
    def vocabulary(self) -> nn.Module:
        """The vocabulary projection that runs now: PEFT may train a copy of it, and switch between the two."""
        head: nn.Module = self.base_model.get_output_embeddings()
        return head

    def _token_log_probs(self, model: nn.Module, images: Images, captions: CaptionBatch) -> Tensor:
        self._hold_norms()
        rows = self.rows(images, captions)
        with self.scoring(images, captions, rows):
            outputs = model(**self.prepare(images, captions, rows))
        return self.gather(outputs, captions, rows)

    def _hold_norms(self) -> None:
        for norm in self._frozen_norms:  # Trainer calls model.train() before every step
            norm.eval()

    @property
    def name(self) -> str:
        """What messages call the captioner: the classes that it consists of."""
        return type(self.base_model).__name__

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the decoder's floating weights; transformers keeps parts of some models in float32."""
        return next(weight.dtype for weight in self.decoder.parameters() if weight.is_floating_point())

    def placed(self, images: Images) -> Images:
        """Images where the model is, floating values in :attr:`dtype`, to which not every encoder casts its pixels."""
        return {name: to_dtype(value.to(self.device), self.dtype) for name, value in images.items()}


def _is_peft(model: nn.Module) -> bool:
    from peft import PeftModel

    return isinstance(model, PeftModel)
