"""What the recurrent captioners have in common: the image's features, ragged captions, and the state in ``generate``.

A recurrent captioner is a vision model and a recurrent decoder, in one ``PreTrainedModel`` that is saved, loaded and
generates like any encoder-decoder of transformers. Two things are its own. Captions need no padding: they may be given
flat, one behind the other, with their lengths and the number of the image of each. And what is carried from one
generated word to the next is a state of fixed size instead of keys and values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    DynamicCache,
    EncoderDecoderCache,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    initialization,
)
from transformers.modeling_outputs import Seq2SeqLMOutput
from transformers.utils.generic import can_return_tuple

from hf_contrastive_caption.models.state import RecurrentState
from hf_contrastive_caption.models.vision import VisionFeatures, pretrained_vision_model, vision_model, vision_width

_IGNORED = -100
"""The label of padding, as everywhere in transformers."""


class RecurrentCaptionerConfig(PreTrainedConfig):
    """What the configs of recurrent captioners have in common.

    Attributes:
        vision_config: Config of the vision model, or a dict with its ``model_type``; a ResNet-50 if not given.
        vision_backbone: Whether the vision model is made by ``AutoBackbone``, whose last feature map is used, instead
            of ``AutoModel``, whose last hidden state is used.
        vision_hidden_size: Channels of the features, for a vision model whose config does not say.
        freeze_vision: Whether the vision model is left as it is: no gradients, and so evaluation mode, in which the
            statistics of batch norms stay too.
        vocab_size: Number of tokens.
        embedding_size: Width of the word embedding.
        hidden_size: Width of the LSTM.
        num_hidden_layers: Layers of the LSTM.
        dropout: Rate of dropout of the word embedding and of what the vocabulary projection reads.
        initializer_range: Standard deviation of new weights of linear layers and embeddings.
        decoder_start_token_id: The token from which the first one of a caption is predicted.
        eos_token_id: The token that ends a caption.
        pad_token_id: The token behind the end of generated captions.
    """

    sub_configs = {"vision_config": AutoConfig}

    vision_config: dict[str, Any] | PreTrainedConfig | None = None
    vision_backbone: bool = False
    vision_hidden_size: int | None = None
    freeze_vision: bool = False
    vocab_size: int = 10_000
    embedding_size: int = 512
    hidden_size: int = 512
    num_hidden_layers: int = 1
    dropout: float = 0.0
    initializer_range: float = 0.05
    is_encoder_decoder: bool = True
    tie_word_embeddings: bool = False
    decoder_start_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    pad_token_id: int | None = 0

    def __post_init__(self, **kwargs: Any) -> None:
        """Make a config of what stands for the vision model."""
        if self.vision_config is None:
            self.vision_config = ResNetConfig()
        elif isinstance(self.vision_config, dict):
            settings = dict(self.vision_config)
            self.vision_config = AutoConfig.for_model(settings.pop("model_type"), **settings)
        for name in ("vocab_size", "embedding_size", "hidden_size", "num_hidden_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}, but must be at least 0 and less than 1")
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]


class DecoderOutput(NamedTuple):
    """What a recurrent decoder makes of caption tokens.

    Attributes:
        hidden: What the vocabulary projection reads, (n_tokens, hidden_size).
        state: The state behind the last token of each caption.
        attention: Weights of the image's positions and, in the last column, of the sentinel, (n_tokens,
            positions + 1); ``None`` from a decoder without attention.
    """

    hidden: Tensor
    state: RecurrentState
    attention: Tensor | None = None


class RecurrentDecoder(nn.Module):
    """The part that reads captions: a word embedding, an LSTM and the projection to the vocabulary.

    Args:
        config: The captioner's config.
        vision_width: Channels of the image's features.
    """

    def __init__(self, config: RecurrentCaptionerConfig, vision_width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_size)
        self.dropout = nn.Dropout(config.dropout)
        self.vocabulary = nn.Linear(config.hidden_size, config.vocab_size)

    def see(self, features: Tensor) -> tuple[Tensor, ...]:
        """What words read of the images, computed once for all of them.

        Args:
            features: Of the images, (n_images, positions, width).

        Returns:
            Tensors with n_images along the first dimension.
        """
        return (features,)

    def start(self, seen: tuple[Tensor, ...]) -> RecurrentState:
        """The states before the first token, one for each image, of what :meth:`see` gave."""
        raise NotImplementedError

    def forward(
        self,
        seen: tuple[Tensor, ...],
        input_ids: Tensor,
        lengths: list[int],
        image_index: Tensor,
        state: RecurrentState,
    ) -> DecoderOutput:
        """Read captions, or a further piece of each.

        Args:
            seen: What :meth:`see` made of the images.
            input_ids: Tokens of all captions one behind the other, (n_tokens,).
            lengths: Number of tokens of each caption, n_captions numbers.
            image_index: The image of each caption, (n_captions,).
            state: The states of the captions before these tokens.
        """
        raise NotImplementedError

    def forget_gates(self) -> Iterator[tuple[Tensor, int]]:
        """The biases that hold those of forget gates, and where in each they begin; they are hidden_size long."""
        raise NotImplementedError

    def bytes_per_token(self, features: Tensor) -> int:
        """Working memory of a token without gradients, about: the five gates and the states of the LSTM."""
        return 12 * self.vocabulary.in_features * features.element_size()


@dataclass
class RecurrentCaptionerOutput(Seq2SeqLMOutput):
    """Output of a recurrent captioner.

    Attributes:
        loss: Mean negative log-likelihood of the labels in nats, if labels were given.
        logits: (n_captions, width, vocab_size), or (n_tokens, vocab_size) for flat captions.
        past_key_values: The :class:`RecurrentState` of the captions, with ``use_cache=True``.
        cross_attentions: With ``output_attentions=True``, of a decoder with attention, a tuple of one tensor
            (n_captions, 1, width, positions + 1): weights that sum to 1, the last one that of the visual sentinel.
            (n_tokens, positions + 1) for flat captions.
        sentinel_gate: The weight of the visual sentinel alone, (n_captions, width) or (n_tokens,).
        encoder_last_hidden_state: The image's features.
    """

    sentinel_gate: Tensor | None = None


class RecurrentCaptionerModel(PreTrainedModel, GenerationMixin):
    """A vision model and a recurrent decoder.

    Args:
        config: The config.
        vision: The vision model; one with random weights is made from ``config.vision_config`` if not given.
    """

    config_class = RecurrentCaptionerConfig
    decoder_class: type[RecurrentDecoder]
    pooled: bool
    main_input_name = "pixel_values"
    input_modalities = ["image", "text"]
    base_model_prefix = ""
    _is_stateful = True  # generate refuses assistants then, whose guesses a state could not take back
    _supports_sdpa = True  # asked by transformers; it is the vision model that attends by it
    _supports_flash_attn = True

    def __init__(self, config: Any, vision: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        if vision is None:
            vision = vision_model(config.vision_config, backbone=config.vision_backbone)
        config.vision_config = vision.config
        self.vision = VisionFeatures(vision, pooled=self.pooled)
        self.supports_gradient_checkpointing = (
            vision.supports_gradient_checkpointing
        )  # the decoder has no layers for it
        width = config.vision_hidden_size or vision_width(vision, backbone=config.vision_backbone)
        self.decoder = self.decoder_class(config, width)
        self.post_init()  # type: ignore[no-untyped-call]
        self.train()  # what is frozen is so from the start

    @classmethod
    def from_vision_pretrained(cls, name: str, *, vision_backbone: bool = False, **settings: Any) -> Self:
        """A captioner with a trained vision model and a new decoder.

        Args:
            name: Repository on the Hub or folder of a vision model (ResNet, ConvNeXt, Swin, ViT, ...).
            vision_backbone: Whether ``AutoBackbone`` loads it instead of ``AutoModel``.
            **settings: Of the captioner's config: ``vocab_size``, ``freeze_vision``, token ids, and so on.
        """
        vision = pretrained_vision_model(name, backbone=vision_backbone)
        config = cls.config_class(vision_config=vision.config, vision_backbone=vision_backbone, **settings)
        return cls(config, vision)

    def train(self, mode: bool = True) -> Self:
        """Set the mode; a vision model whose weights are all frozen stays in evaluation mode.

        Statistics of batch norms and dropout would else change what is frozen.
        """
        super().train(mode)
        if self.config.freeze_vision:
            self.vision.requires_grad_(False)  # from_pretrained wakes all weights, and calls eval() at its end
        if not any(weight.requires_grad for weight in self.vision.parameters()):
            self.vision.eval()
        return self

    def _init_weights(self, module: nn.Module) -> None:
        """As transformers, but forget gates begin open, with a bias of 1 (Gers et al. 2000, Jozefowicz et al. 2015).

        At 0 the memory is halved at each word, and with it the image that Show and Tell reads before them.
        """
        super()._init_weights(module)  # type: ignore[no-untyped-call]
        own = {id(weight) for weight in module.parameters(recurse=False)}
        for bias, begin in self.decoder.forget_gates():
            if id(bias) in own:
                opened = torch.zeros_like(bias)
                opened[begin : begin + self.config.hidden_size] = 1.0
                initialization.copy_(bias, opened)  # which leaves weights alone that from_pretrained has loaded

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        """What ``generate`` runs once per image."""
        return self.vision

    def get_input_embeddings(self) -> nn.Module:
        """The word embedding."""
        return self.decoder.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the word embedding."""
        assert isinstance(value, nn.Embedding)
        self.decoder.embedding = value

    def get_output_embeddings(self) -> nn.Module:
        """The projection to the vocabulary."""
        return self.decoder.vocabulary

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replace the projection to the vocabulary."""
        self.decoder.vocabulary = new_embeddings

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        pixel_values: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        lengths: Tensor | None = None,
        image_index: Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: RecurrentState | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
    ) -> RecurrentCaptionerOutput:
        """Logits of the next token behind each token of captions; see the class of the output for what comes back.

        Args:
            pixel_values: What the image processor gives, (n_images, channels, height, width).
            decoder_input_ids: The tokens that are read, the start token first: padded, (n_captions, width), or flat,
                one caption behind the other, (n_tokens,). Made from ``labels`` if not given.
            lengths: Tokens of each caption, (n_captions,), where captions are flat.
            image_index: The image of each caption, (n_captions,); needed for flat captions. Padded ones belong to the
                images in order if it is not given.
            encoder_outputs: What :attr:`vision` gave for the images, in place of ``pixel_values``.
            past_key_values: The state before these tokens; that of a new caption if not given.
            labels: The token that each token read shall predict, of the shape of ``decoder_input_ids``; -100 is not
                counted.
            use_cache: Whether to return the state behind the tokens.
            output_attentions: Whether to return attention weights; a decoder without attention has none.

        Raises:
            ValueError: If images or captions are missing, or their numbers do not fit.
        """
        if encoder_outputs is None:
            if pixel_values is None:
                raise ValueError("a captioner needs images: pass pixel_values, or encoder_outputs made of them")
            encoder_outputs = self.vision(pixel_values)
        features: Tensor = encoder_outputs[0]
        sizes = _sizes(decoder_input_ids if decoder_input_ids is not None else labels, lengths)
        if decoder_input_ids is None:
            assert labels is not None
            decoder_input_ids = self._shifted(labels, sizes)
        if image_index is None:
            image_index = _images_in_order(decoder_input_ids, features)
        seen = past_key_values.seen if past_key_values is not None else None
        if seen is None:
            seen = self.decoder.see(features)
        state = past_key_values or self.decoder.start(seen).select(image_index)
        read: DecoderOutput = self.decoder(seen, decoder_input_ids.reshape(-1), sizes, image_index, state)
        logits: Tensor = self.decoder.vocabulary(read.hidden.view(*decoder_input_ids.shape, -1))
        loss = None
        if labels is not None:
            wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
            loss = F.cross_entropy(wide.flatten(0, -2), labels.reshape(-1), ignore_index=_IGNORED)
        output = RecurrentCaptionerOutput(loss=loss, logits=logits, encoder_last_hidden_state=features)
        if use_cache:
            output["past_key_values"] = RecurrentState(read.state.hidden, read.state.cell, seen)
        if output_attentions and read.attention is not None:
            weights = read.attention.view(*decoder_input_ids.shape, -1)
            output["cross_attentions"] = (weights[:, None] if weights.ndim == 3 else weights,)
            output["sentinel_gate"] = weights[..., -1]
        return output

    def prepare_inputs_for_generation(  # type: ignore[override]
        self, input_ids: Tensor, past_key_values: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        """What the next step of ``generate`` reads: the last token behind a state, or all of them."""
        # The cache that generate makes for attention comes first; after a step there is a state in its place.
        state = past_key_values if isinstance(past_key_values, RecurrentState) else None
        if state is None:
            _check_default_cache(past_key_values)
        names = ("encoder_outputs", "use_cache", "output_attentions")
        return {
            "decoder_input_ids": input_ids if state is None else input_ids[:, -1:],
            "past_key_values": state,
            **{name: kwargs[name] for name in names if name in kwargs},
        }

    def _shifted(self, labels: Tensor, sizes: list[int]) -> Tensor:
        """The start token and all but the last label of each caption."""
        start, pad = self.config.decoder_start_token_id, self.config.pad_token_id
        if start is None:
            raise ValueError("labels need a start token before them: set config.decoder_start_token_id")
        flat = labels.reshape(-1).roll(1)
        ends = torch.tensor(sizes, device=labels.device).cumsum(0)
        flat[ends - torch.tensor(sizes, device=labels.device)] = start
        return flat.masked_fill(flat == _IGNORED, pad or 0).view(labels.shape)


def _check_default_cache(cache: Any) -> None:
    """Refuse caches of other kinds than ``generate`` makes by itself: they would stay empty."""
    own = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
    if own is not None and (type(own) is not DynamicCache or own.offloading):
        raise ValueError(
            f"generate was asked for a {type(own).__name__} of its own kind, but a recurrent captioner keeps one "
            "state of fixed size per caption and no keys and values; leave cache_implementation and past_key_values "
            "out"
        )


def _sizes(tokens: Tensor | None, lengths: Tensor | None) -> list[int]:
    """Number of tokens of each caption, padding included."""
    if tokens is None:
        raise ValueError("there are no captions: pass decoder_input_ids, or labels from which they are made")
    if tokens.ndim == 2 and lengths is None:
        return [tokens.shape[1]] * tokens.shape[0]
    if tokens.ndim != 1 or lengths is None:
        given = "with" if lengths is not None else "without"
        raise ValueError(
            f"captions have the shape {tuple(tokens.shape)} and come {given} lengths; pass padded ones of shape "
            "(n_captions, width) without lengths, or flat ones of shape (n_tokens,) with lengths and image_index"
        )
    sizes: list[int] = lengths.tolist()
    if sum(sizes) != tokens.shape[0] or min(sizes, default=0) < 1:
        raise ValueError(
            f"there are {tokens.shape[0]} caption tokens, but the lengths sum to {sum(sizes)} and the shortest is "
            f"{min(sizes, default=0)}; each caption has at least one token, and lengths count all of them"
        )
    return sizes


def _images_in_order(tokens: Tensor, features: Tensor) -> Tensor:
    if tokens.ndim != 2 or tokens.shape[0] != features.shape[0]:
        raise ValueError(
            f"captions of shape {tuple(tokens.shape)} do not tell which of {features.shape[0]} images each belongs "
            "to; pass image_index, (n_captions,), or one padded row for each image"
        )
    return torch.arange(features.shape[0], device=tokens.device)
