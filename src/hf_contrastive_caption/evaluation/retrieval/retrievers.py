"""What tells how well a caption fits an image: a captioner's own likelihood, or an image-text dual encoder."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from accelerate import PartialState
from PIL import Image
from torch import Tensor
from transformers import AutoModel, AutoProcessor, BaseImageProcessor, PreTrainedModel, ProcessorMixin

from hf_contrastive_caption.captioners import Captioner
from hf_contrastive_caption.captioners.determinism import evaluation_mode
from hf_contrastive_caption.captioners.pairs import DEFAULT_MAX_MEMORY_BYTES, PairScorer
from hf_contrastive_caption.fingerprints import autocast_settings, json_digest, model_digest
from hf_contrastive_caption.loading import check_name, short_name, wrong_keys
from hf_contrastive_caption.processing import CaptionProcessor

logger = logging.getLogger(__name__)


BY_ITSELF = "ln p(caption | image) of the captioner itself"
"""Who ranked, where no retriever was given."""


class Scorer(Protocol):
    """Scores the captions that it was made for.

    Attributes:
        images_at_once: Images of one call.
        description: How it scores, in a few words.
    """

    images_at_once: int
    description: str

    def scores(self, images: Sequence[Image.Image]) -> Tensor:
        """Score every caption with each of some RGB images, float32 on the CPU, (n_images, n_captions)."""
        ...


class Retriever(Protocol):
    """Anything that scores captions against images.

    Attributes:
        name: What the result calls it.
    """

    name: str

    def scorer(self, captions: Sequence[str]) -> Scorer:
        """A scorer of these captions."""
        ...

    def fingerprint(self) -> str:
        """A hash of everything that its scores depend on but captions and images."""
        ...


class CaptionerRetriever:
    """Ranks images by ln p(caption | image), as the paper does (Dai and Lin 2017, section 4.2).

    Args:
        captioner: Any captioner: the one that wrote the captions, or another as their judge.
        max_memory_bytes: See :class:`PairScorer`.
    """

    def __init__(self, captioner: Captioner, max_memory_bytes: int = DEFAULT_MAX_MEMORY_BYTES) -> None:
        self.captioner = captioner
        self.max_memory_bytes = max_memory_bytes
        self.name = f"ln p(caption | image) of {captioner.name}{_which(captioner.base_model)}"

    def scorer(self, captions: Sequence[str]) -> Scorer:
        """See :meth:`Retriever.scorer`."""
        tokenized = self.captioner.processor.tokenize(captions)
        if any(tokenized.cut):
            logger.warning(
                "%d of %d captions have more than the %s tokens that are scored, and are cut",
                sum(tokenized.cut),
                len(captions),
                self.captioner.processor.max_caption_tokens,
            )
        return _CaptionerScorer(self.captioner, tokenized.input_ids, self.max_memory_bytes)

    def fingerprint(self) -> str:
        """See :meth:`Retriever.fingerprint`."""
        captioner, processor = self.captioner, self.captioner.processor
        parts: list[Any] = [model_digest(captioner.model), processor.text_fingerprint(), processor.image_fingerprint()]
        parts += [captioner.name, captioner.start_token_id]
        return json_digest([*parts, autocast_settings(captioner.device)])


class _CaptionerScorer:
    def __init__(self, captioner: Captioner, input_ids: Sequence[Sequence[int]], max_memory_bytes: int) -> None:
        self._pairs = PairScorer(captioner, input_ids, max_memory_bytes)
        plan = self._pairs.plan
        self.images_at_once = plan.images_at_once
        self.description = (
            f"{plan.num_distinct} distinct captions with {plan.num_tokens} tokens, scored by {plan.method} in "
            f"{plan.num_positions} decoder positions an image"
        )

    def scores(self, images: Sequence[Image.Image]) -> Tensor:
        return self._pairs.scores(self._pairs.captioner.processor.process_images(images))


class DualEncoderRetriever:
    """Ranks images by the cosine similarity of an image-text dual encoder (CLIP, SigLIP).

    Args:
        model: A model with ``get_image_features`` and ``get_text_features``, as ``AutoModel`` loads it.
        processor: Its processor, as ``AutoProcessor`` loads it.
        images_at_once: Images that are encoded together, and captions.

    Raises:
        TypeError: If the model has not these methods, or the processor is not one of images and text.
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin, images_at_once: int = 64) -> None:
        methods = ("get_image_features", "get_text_features")
        if not isinstance(model, PreTrainedModel) or not all(callable(getattr(model, name, None)) for name in methods):
            raise TypeError(
                f"Got a {type(model).__name__}, which lacks {' or '.join(methods)}; give an image-text dual encoder "
                "as AutoModel loads it, such as CLIPModel or SiglipModel."
            )
        if not isinstance(processor, ProcessorMixin):
            raise TypeError(
                f"Got a {type(processor).__name__} as the processor of a dual encoder; give the one that "
                "AutoProcessor.from_pretrained loads, which has both a tokenizer and an image processor."
            )
        self.model = model
        self._processor: Any = processor
        self.images_at_once = images_at_once
        self.name = f"cosine similarity of {type(model).__name__}{_which(model)}"

    @classmethod
    def from_pretrained(cls, name: str) -> DualEncoderRetriever:
        """A dual encoder and its processor by name or folder, in float32 and on this process's GPU if there is one.

        Raises:
            ValueError: If it is neither a folder nor a possible name of a repository, or weights are missing in it.
            OSError: If there is no such repository, or nothing that can be loaded in it.
        """
        check_name(name)
        loaded: Any = AutoModel.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
        model, found = loaded
        told = wrong_keys(found, ("missing_keys", "mismatched_keys"))
        if told:  # they would be random, and so would the ranks
            raise ValueError(
                f"{name} has not all weights of a {type(model).__name__}, as which AutoModel loads it; {told}. Give "
                "an image-text dual encoder such as CLIP or SigLIP"
            )
        return cls(model.to(PartialState().device), AutoProcessor.from_pretrained(name))

    @property
    def image_processor(self) -> BaseImageProcessor:
        """What makes pixels of images."""
        image_processor: BaseImageProcessor = self._processor.image_processor
        return image_processor

    def scorer(self, captions: Sequence[str]) -> Scorer:
        """See :meth:`Retriever.scorer`."""
        return _DualEncoderScorer(self, self.text_features(captions))

    def text_features(self, captions: Sequence[str]) -> Tensor:
        """Features of captions, of length 1, (n_captions, width)."""
        length = self.model.config.get_text_config().max_position_embeddings
        pieces = []
        for first in range(0, len(captions), self.images_at_once):
            # SigLIP was trained on texts that are padded to their full length; CLIP does not see its padding.
            text = self._processor.tokenizer(
                list(captions[first : first + self.images_at_once]),
                padding="max_length",
                truncation=True,
                max_length=length,
                return_tensors="pt",
            )
            pieces.append(self._features("get_text_features", dict(text)))
        return torch.cat(pieces)

    def process_images(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Images as :attr:`image_processor` makes them."""
        return dict(self.image_processor(images=list(images), return_tensors="pt"))

    def image_features(self, images: Sequence[Image.Image]) -> Tensor:
        """Features of images, of length 1, (n_images, width)."""
        return self.pixel_features(self.process_images(images))

    def pixel_features(self, pixels: dict[str, Tensor]) -> Tensor:
        """Features of images as :attr:`image_processor` makes them, of length 1, (n_images, width)."""
        return self._features("get_image_features", pixels)

    def fingerprint(self) -> str:
        """See :meth:`Retriever.fingerprint`."""
        reading = CaptionProcessor(self._processor.tokenizer, self._processor.image_processor, end_token_id=0)
        parts = [model_digest(self.model), reading.text_fingerprint(), reading.image_fingerprint()]
        return json_digest([*parts, autocast_settings(self.model.device)])

    def _features(self, method: str, inputs: dict[str, Tensor]) -> Tensor:
        placed = {name: value.to(self.model.device) for name, value in inputs.items()}
        with evaluation_mode(self.model), torch.no_grad():
            features = getattr(self.model, method)(**placed)
        if not isinstance(features, Tensor):  # transformers 5 returns an output object
            features = features.pooler_output
        return torch.nn.functional.normalize(features.float(), dim=-1)


def _which(model: PreTrainedModel) -> str:
    """Which model of its class it is, for a name; nothing for one that was made in memory."""
    return f" ({short_name(model.name_or_path)})" if model.name_or_path else ""


class _DualEncoderScorer:
    def __init__(self, retriever: DualEncoderRetriever, text: Tensor) -> None:
        self._retriever, self._text = retriever, text  # (n_captions, width)
        self.images_at_once = retriever.images_at_once
        self.description = f"{text.shape[0]} captions, features of {text.shape[1]} numbers"

    def scores(self, images: Sequence[Image.Image]) -> Tensor:
        return (self._retriever.image_features(images) @ self._text.T).cpu()
