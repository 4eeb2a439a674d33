"""Tiny captioners, tokenizers, image processors and data for all tests: made from configs, seeded, offline.

The weights are drawn wide (``initializer_range`` 0.3), so that the models are far from uniform and errors show.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BaseImageProcessor,
    BeitConfig,
    BertConfig,
    DeiTConfig,
    Dinov2Config,
    DonutSwinConfig,
    GPT2Config,
    MBartConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
    SwinConfig,
    TrOCRConfig,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessor,
)

from hf_contrastive_caption.captioners import CaptionBatch, caption_batch

DecoderName = Literal["gpt2", "bert", "roberta", "mbart", "trocr", "opt"]
EncoderName = Literal["vit", "deit", "beit", "swin", "donut-swin", "dinov2"]

PAD, BOS, EOS, UNK = 0, 1, 2, 3
SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")
WORDS = tuple(
    "a the one two three red green blue yellow white black grey pink small large round flat tall wide old new dog cat "
    "bird horse fish tree house car boat ball cup book chair table child man woman runs sits stands sleeps eats jumps "
    "looks on under beside behind over near with and of in left right grass water sand snow".split()
)
VOCABULARY_SIZE = len(SPECIAL_TOKENS) + len(WORDS)


def tokenizer(**special_tokens: str | None) -> PreTrainedTokenizerFast:
    """A word-level tokenizer of :data:`WORDS` that adds no special tokens; ``eos_token=None`` leaves that one out."""
    vocabulary = {word: number for number, word in enumerate((*SPECIAL_TOKENS, *WORDS))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL_TOKENS, strict=True))
    given = {name: token for name, token in {**names, **special_tokens}.items() if token is not None}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **given)


def image_processor(size: int = 32) -> BaseImageProcessor:
    """Resizes to ``size`` pixels and scales to [-1, 1]."""
    return ViTImageProcessor(size={"height": size, "width": size})


def encoder_config(encoder: EncoderName = "vit", *, size: int = 32, dropout: float = 0.0) -> PreTrainedConfig:
    """Config of a two-layer vision encoder of width 32."""
    common: dict[str, Any] = {"image_size": size, "initializer_range": 0.3}
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    layers = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    if encoder in ("vit", "deit"):
        config_class = ViTConfig if encoder == "vit" else DeiTConfig
        return config_class(**common, **rates, **layers, patch_size=8)
    if encoder == "beit":
        return BeitConfig(**common, **rates, **layers, patch_size=8, drop_path_rate=dropout)
    if encoder == "dinov2":
        del layers["intermediate_size"]  # mlp_ratio times the width
        return Dinov2Config(**common, **rates, **layers, patch_size=8, mlp_ratio=2, drop_path_rate=dropout)
    config_class = SwinConfig if encoder == "swin" else DonutSwinConfig
    return config_class(
        **common, **rates, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=2, patch_size=4,
        drop_path_rate=dropout,
    )  # fmt: skip


def decoder_config(decoder: DecoderName = "gpt2", *, dropout: float = 0.0, **overrides: Any) -> PreTrainedConfig:
    """Config of a two-layer text decoder of width 32 with 64 positions; ``overrides`` are its own settings."""
    common = {"vocab_size": VOCABULARY_SIZE, "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
    if decoder == "gpt2":
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "initializer_range": 0.3}
        rates = {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
        return GPT2Config(**{**common, **sizes, **rates, **overrides})
    if decoder in ("bert", "roberta"):
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        positions = {"max_position_embeddings": 64 + (decoder == "roberta"), "initializer_range": 0.3}
        rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
        config_class = BertConfig if decoder == "bert" else RobertaConfig
        return config_class(**{**common, **sizes, **positions, **rates, **overrides})
    rates = {"dropout": dropout, "attention_dropout": dropout}
    if decoder == "opt":
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 64}
        return OPTConfig(**{**common, **sizes, **rates, "max_position_embeddings": 64, **overrides})
    sizes = {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 64}
    rates |= {"activation_dropout": dropout, "decoder_layerdrop": dropout, "init_std": 0.3}
    config_class = MBartConfig if decoder == "mbart" else TrOCRConfig
    return config_class(**{**common, **sizes, **rates, "max_position_embeddings": 64, **overrides})


def captioner_model(
    decoder: DecoderName = "gpt2",
    seed: int = 0,
    dropout: float = 0.0,
    *,
    encoder: EncoderName = "vit",
    size: int = 32,
    **overrides: Any,
) -> VisionEncoderDecoderModel:
    """A tiny captioner in training mode, with random weights and its start, end and padding token set."""
    torch.manual_seed(seed)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        encoder_config(encoder, size=size, dropout=dropout), decoder_config(decoder, dropout=dropout, **overrides)
    )
    model = VisionEncoderDecoderModel(config=config)
    for settings in (model.config, model.generation_config):
        settings.decoder_start_token_id, settings.eos_token_id, settings.pad_token_id = BOS, EOS, PAD
    return model.train()


def processing(size: int = 32) -> tuple[PreTrainedTokenizerFast, BaseImageProcessor]:
    """The pair that is given as ``processing_class``."""
    return tokenizer(), image_processor(size)


def images(n: int, seed: int = 0) -> list[Image.Image]:
    """``n`` different RGB images of coarse coloured noise, (40, 36) pixels."""
    generator = np.random.default_rng(seed)
    blocks = generator.integers(0, 256, (n, 5, 6, 3), dtype=np.uint8)
    return [Image.fromarray(block).resize((40, 36), Image.Resampling.NEAREST) for block in blocks]


def pixel_values(n: int, seed: int = 0, size: int = 32, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """``n`` images as the encoder takes them: ``{"pixel_values": (n, 3, size, size)}``."""
    values = image_processor(size)(images=images(n, seed), return_tensors="pt")["pixel_values"]
    return {"pixel_values": values.to(dtype)}


def texts(n: int, seed: int = 0, longest: int = 9) -> list[str]:
    """``n`` different captions of one to ``longest`` words."""
    generator = np.random.default_rng(seed)
    found: dict[str, None] = {}
    while len(found) < n:
        found[" ".join(generator.choice(WORDS, generator.integers(1, longest + 1)))] = None
    return list(found)


def captions(image_index: Sequence[int], seed: int = 0, longest: int = 9) -> CaptionBatch:
    """A batch of different captions of one to ``longest`` words, each closed by the end token."""
    encode = tokenizer()
    return caption_batch(
        [[*encode(text)["input_ids"], EOS] for text in texts(len(image_index), seed, longest)], image_index
    )


def caption_dataset(rows: int = 16, captions_per_image: int = 5, seed: int = 0) -> Dataset:
    """A data set with an ``image`` and a ``captions`` column, all images and all captions different."""
    sentences = texts(rows * captions_per_image, seed)
    grouped = [sentences[row * captions_per_image : (row + 1) * captions_per_image] for row in range(rows)]
    features = Features({"image": ImageFeature(), "captions": List(Value("string"))})
    return Dataset.from_dict({"image": images(rows, seed), "captions": grouped}, features=features)
