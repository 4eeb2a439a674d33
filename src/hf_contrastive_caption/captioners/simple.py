"""Captioners of a user's own: any model that reads images and tokens and gives logits."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import BaseImageProcessor, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.generic import ModelOutput

from hf_contrastive_caption.captioners.base import Captioner
from hf_contrastive_caption.captioners.batch import CaptionBatch, Images
from hf_contrastive_caption.captioners.packing import DecoderRows, decoder_rows
from hf_contrastive_caption.captioners.settings import (
    check_vocabulary,
    given_end_token,
    given_start_token,
    position_limit,
    setting,
    to_dtype,
)
from hf_contrastive_caption.captioners.verification import check_states
from hf_contrastive_caption.captioners.vocabulary import log_probs_instead_of_logits, log_softmax_of
from hf_contrastive_caption.processing import CaptionProcessor
from hf_contrastive_caption.sharding import resharded

VISION_STATES = "vision_states"


class SimpleCaptioner(Captioner):
    """Scores captions with a model that does no more than read images and tokens: a row for each caption.

    The model is asked for one thing: ``model(**images, input_ids=tokens)`` gives an output whose ``logits``,
    (rows, length, vocabulary), say behind each token which one follows; a caption's start token comes first, padding
    last. Where an image stands before the text, logits may begin with its positions. The config says ``vocab_size``,
    ``hidden_size`` and ``num_hidden_layers`` of the text decoder.

    It may be registered as it is. With ``vision_path`` images are encoded once for all of their captions; with
    ``states_argument`` also once for a self-retrieval, and the encoder can be frozen, shared, and its states cached.

    Attributes:
        text_argument: The name of the tokens in the model's forward.
        vision_path: Where in the model the module is that reads the images and nothing else. It gives one tensor,
            (n_images, ...), or an output of transformers whose first entry is one.
        states_argument: The name under which the model's forward takes that tensor in place of images.
    """

    text_argument: ClassVar[str] = "input_ids"
    vision_path: ClassVar[str | None] = None
    states_argument: ClassVar[str | None] = None
    way_out = (
        "Leave vision_path out, with which the module there is run once per image and its states are repeated; "
        "without it the whole model is run for each caption with its image"
    )

    def __init__(self, model: nn.Module, processor: CaptionProcessor, **options: Any) -> None:
        if options.get("packing") == "packed":
            raise ValueError(
                f"packing='packed' was given, but {type(self).__name__} gives each caption a row of its own; leave "
                "packing out"
            )
        super().__init__(model, processor, **{**options, "packing": "repeated"})
        captioner = self.base_model
        generating = _generation_config(captioner)
        _check_config(captioner)
        check_vocabulary(captioner.config, processor, "model")
        self._encoder = self._find_encoder()
        self.start_token_id = given_start_token(
            setting(captioner.config, "decoder_start_token_id"),
            setting(generating, "decoder_start_token_id"),
            setting(captioner.config, "bos_token_id"),
            setting(generating, "bos_token_id"),
            processor.tokenizer.bos_token_id,
            processor.tokenizer.cls_token_id,
        )
        self.pad_token_id: int = setting(captioner.config, "pad_token_id") or 0

    @classmethod
    def make_processor(
        cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, image_processor: BaseImageProcessor
    ) -> CaptionProcessor:
        """See :meth:`Captioner.make_processor`."""
        stops = setting(_generation_config(model), "eos_token_id"), setting(model.config, "eos_token_id")
        end = given_end_token(model, tokenizer, *stops)
        return CaptionProcessor(tokenizer, image_processor, end, position_limit(model.config))

    def own_arguments(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """See :meth:`Captioner.own_arguments`: captions begin behind the token that they are scored behind."""
        encodes = setting(self.base_model.config, "is_encoder_decoder")
        start = "decoder_start_token_id" if encodes else "bos_token_id"
        return {start: self.start_token_id, **arguments}

    @property
    def vision(self) -> nn.Module | None:
        """See :attr:`Captioner.vision`; none without :attr:`states_argument`."""
        return self._encoder if self.states_argument else None

    def adopt_vision(self, other: Captioner) -> None:
        """See :meth:`Captioner.adopt_vision`."""
        assert type(other) is type(self) and self.vision_path is not None and other.vision is not None
        self._encoder = other.vision
        self.base_model.set_submodule(self.vision_path, self._encoder)

    def encode(self, images: Images) -> Images:
        """See :meth:`Captioner.encode`; the images themselves without :attr:`states_argument`."""
        if self.vision is None or VISION_STATES in images:
            return images
        self._hold_norms()
        found: list[Tensor] = []
        hook = self.vision.register_forward_hook(lambda module, args, output: found.append(_states_of(output)))
        start = torch.full((_count(images), 1), self.start_token_id, device=self.device)
        try:
            with torch.no_grad():  # by the model's own forward, which may do something to the images first
                self.base_model(**self._images(images), **{self.text_argument: start})
        finally:
            hook.remove()
        return {VISION_STATES: found[0]}

    def rows(self, images: Images, captions: CaptionBatch) -> DecoderRows:
        """See :meth:`Captioner.rows`."""
        return decoder_rows(captions, 0, self.start_token_id, self.pad_token_id, packed=False)

    def prepare(self, images: Images, captions: CaptionBatch, rows: DecoderRows) -> dict[str, Any]:
        """See :meth:`Captioner.prepare`."""
        arguments = {self.text_argument: rows.input_ids}
        if self._encoder is not None and VISION_STATES not in images:
            return {**self._images(images), **arguments}  # their states are repeated within the call
        of_rows = {name: value.index_select(0, captions["image_index"]) for name, value in images.items()}
        return {**self._images(of_rows), **arguments}

    @contextmanager
    def scoring(self, images: Images, captions: CaptionBatch, rows: DecoderRows) -> Iterator[None]:
        """See :meth:`Captioner.scoring`."""
        with ExitStack() as opened:
            if self._encoder is not None and VISION_STATES not in images:
                index = captions["image_index"]
                hook = self._encoder.register_forward_hook(lambda module, args, output: _repeated(output, index))
                opened.callback(hook.remove)
            if self.head == "fused":
                opened.enter_context(
                    log_probs_instead_of_logits(
                        self.base_model.get_output_embeddings(),
                        rows.source,
                        captions["input_ids"],
                        self.max_logits_bytes,
                        width=rows.input_ids.shape[1],
                    )
                )
            yield

    def gather(self, outputs: ModelOutput, captions: CaptionBatch, rows: DecoderRows) -> Tensor:
        """See :meth:`Captioner.gather`; positions of an image before the text do not count."""
        if self.head == "fused":
            return super().gather(outputs, captions, rows)
        logits = outputs["logits"][:, -rows.input_ids.shape[1] :]
        return log_softmax_of(logits.flatten(0, -2).index_select(0, rows.source), captions["input_ids"])

    def reference_log_probs(self, images: Images, captions: CaptionBatch) -> Tensor:
        """See :meth:`Captioner.reference_log_probs`."""
        scores = []
        start = torch.full((1,), self.start_token_id, device=self.device)
        pieces = captions["input_ids"].split(captions["lengths"].tolist())
        for ids, image in zip(pieces, captions["image_index"].tolist(), strict=True):
            one = self._images({name: value[image : image + 1] for name, value in images.items()})
            inputs = torch.cat([start, ids[:-1]])[None]  # (1, length)
            logits = _logits_of(self.base_model(**one, **{self.text_argument: inputs}))
            scores.append(log_softmax_of(logits[0, -len(ids) :], ids))
        return torch.cat(scores)

    def verify(self) -> None:
        """See :meth:`Captioner.verify`; also that the states of images give the scores that the images give.

        Raises:
            ValueError: As there, or if they do not.
        """
        super().verify()
        if self.vision is not None:
            self.verified = False  # not yet
            with resharded(self.model):
                check_states(self)
            self.verified = True

    def _images(self, images: Images) -> dict[str, Any]:
        """Images, or their states, as arguments of the model."""
        if VISION_STATES in images:
            assert self.states_argument is not None
            return {self.states_argument: images[VISION_STATES]}
        return {name: to_dtype(value, self.dtype) for name, value in images.items()}

    def _find_encoder(self) -> nn.Module | None:
        model, kind = self.base_model, type(self).__name__
        taken = inspect.signature(model.forward).parameters
        for attribute in ("text_argument", "states_argument"):
            name = getattr(self, attribute)
            if name is not None and name not in taken:
                raise ValueError(
                    f"{kind}.{attribute} is {name!r}, but the forward of {type(model).__name__} takes "
                    f"{', '.join(taken)}; name one of them"
                )
        if self.vision_path is None:
            if self.states_argument is not None:
                raise ValueError(
                    f"{kind} has a states_argument and no vision_path: say as vision_path which module of "
                    f"{type(model).__name__} makes these states"
                )
            return None
        try:
            return model.get_submodule(self.vision_path)
        except AttributeError as error:
            raise ValueError(
                f"{kind}.vision_path is {self.vision_path!r}, but {type(model).__name__} has no such module; it has "
                f"{', '.join(name for name, _ in model.named_children())}"
            ) from error


def _generation_config(model: PreTrainedModel) -> GenerationConfig | None:
    """Only models that can generate have one; a reference, or a model that is only trained, need not."""
    return model.generation_config if model.can_generate() else None


def _check_config(model: PreTrainedModel) -> None:
    missing = [
        name for name in ("vocab_size", "hidden_size", "num_hidden_layers") if setting(model.config, name) is None
    ]
    if missing:
        raise ValueError(
            f"the {type(model.config).__name__} does not say {', '.join(missing)}, from which sizes in memory are "
            "estimated and the tokenizer is checked; add it, or say under which name it goes with attribute_map"
        )
    if model.get_output_embeddings() is None:
        raise ValueError(
            f"get_output_embeddings() of {type(model).__name__} gives None, so the projection to the vocabulary is "
            "not known; call it lm_head, the word embedding embed_tokens, or give the model both methods, "
            "get_input_embeddings and get_output_embeddings"
        )


def _count(images: Images) -> int:
    return next(iter(images.values())).shape[0]


def _logits_of(output: Any) -> Tensor:
    if not isinstance(output, Mapping) or "logits" not in output:
        raise TypeError(
            f"the model's forward gave a {type(output).__name__}, but it must give an output with logits, for example "
            "transformers.modeling_outputs.CausalLMOutput(logits=logits)"
        )
    logits: Tensor = output["logits"]
    return logits


def _states_of(output: Any) -> Tensor:
    """The states in what a vision module gave, (n_images, ...)."""
    states = output[0] if isinstance(output, ModelOutput) else output
    if not isinstance(states, Tensor):
        raise TypeError(
            f"the module at vision_path gave a {type(output).__name__}; a tensor, or an output of transformers that "
            "begins with one, is taken"
        )
    return states


def _repeated(output: Any, image_index: Tensor) -> Any:
    """What a vision module gave for images, for the image of each row."""
    states = _states_of(output).index_select(0, image_index)
    if isinstance(output, Tensor):
        return states
    values = {name: value.index_select(0, image_index) for name, value in output.items() if isinstance(value, Tensor)}
    return type(output)(**{**output, **values})
