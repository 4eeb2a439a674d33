"""A small captioner from scratch: a word-level tokenizer, a ViT and a GPT-2 from configs.

All three save and load with plain ``AutoTokenizer``, ``AutoImageProcessor`` and
``VisionEncoderDecoderModel.from_pretrained``. They are what the demo trains on a laptop's processor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    BaseImageProcessor,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

from hf_contrastive_caption.generation import MAX_NEW_TOKENS, NUM_BEAMS

PAD, START, END, UNKNOWN = "<pad>", "<s>", "</s>", "<unk>"

_WORD_OR_SIGN = r"\w+(?:['’-]\w+)*|[^\w\s]"
_CLOSING_SIGN = r"[.,!?;:]"


def word_level_tokenizer(captions: Iterable[str], min_frequency: int = 1) -> PreTrainedTokenizerFast:
    """Make a tokenizer whose tokens are the lower-cased words and punctuation signs of some captions.

    Words keep their apostrophes and hyphens ("dog's", "t-shirt"). Each caption is closed with the end token. The
    vocabulary is ordered by falling frequency, then by spelling, so it does not depend on the captions' order.

    Args:
        captions: Captions of the training split.
        min_frequency: Words that are seen less often become the unknown token.

    Returns:
        The tokenizer, with the special tokens ``<pad>`` (id 0), ``<s>``, ``</s>`` and ``<unk>``.

    Raises:
        ValueError: If ``min_frequency`` is less than 1, or no word is left.
    """
    if min_frequency < 1:
        raise ValueError(f"Got min_frequency={min_frequency}. Accepted: 1 (keep every word) or more.")
    if isinstance(captions, str):
        raise ValueError("Got one string as captions. Pass a list of captions.")
    normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    splitter = pre_tokenizers.Split(Regex(_WORD_OR_SIGN), behavior="removed", invert=True)
    counts: Counter[str] = Counter()
    for caption in captions:
        counts.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(caption)))
    special = [PAD, START, END, UNKNOWN]
    words = sorted((word for word in counts if counts[word] >= min_frequency), key=lambda word: (-counts[word], word))
    if not words:
        raise ValueError(
            f"No word is seen {min_frequency} times or more in the captions ({len(counts)} different words). "
            "Pass more captions or a smaller min_frequency."
        )
    vocabulary = {token: number for number, token in enumerate([*special, *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    backend.normalizer = normalizer
    backend.pre_tokenizer = splitter
    backend.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, vocabulary[END])])
    backend.decoder = decoders.Sequence(
        [decoders.Replace(Regex(rf"^(?!{_CLOSING_SIGN}$)"), " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=START,
        eos_token=END,
        pad_token=PAD,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
    )


def small_image_processor(image_size: int = 64) -> BaseImageProcessor:
    """Make the image processor of a small captioner: resized to a square, values from -1 to 1.

    Args:
        image_size: Width and height in pixels.

    Returns:
        A ``ViTImageProcessor`` that works with Pillow, so pixels do not depend on whether torchvision is installed.
    """
    processor: BaseImageProcessor = ViTImageProcessorPil(size={"height": image_size, "width": image_size})
    return processor


def small_captioner(
    tokenizer: PreTrainedTokenizerBase,
    image_size: int = 64,
    patch_size: int = 16,
    width: int = 128,
    encoder_layers: int = 3,
    decoder_layers: int = 2,
    heads: int = 4,
    mlp: int = 384,
    dropout: float = 0.0,
    num_positions: int = 128,
    seed: int = 0,
) -> VisionEncoderDecoderModel:
    """Make a captioner with random weights: a ViT that a GPT-2 attends to.

    The ViT's pooler, which no captioner uses, is there but frozen: ``from_pretrained`` makes one in any case, and
    would report its weights as missing.

    Args:
        tokenizer: Says the size of the vocabulary and the start, end and padding token.
        image_size: Width and height of the images in pixels.
        patch_size: Width and height of a patch in pixels; the encoder has (image_size / patch_size)² patches.
        width: Width of encoder and decoder.
        encoder_layers: Layers of the ViT.
        decoder_layers: Layers of the GPT-2.
        heads: Attention heads of both.
        mlp: Hidden width of the MLPs of both.
        dropout: Dropout rate of both, everywhere.
        num_positions: Positions of the decoder. All captions of an image together should fit, 1 + K in contrastive
            training: they are scored in one row, which is faster than a row for each.
        seed: Seed of the random weights. The state of torch's global generator is left as it was.

    Returns:
        The captioner in float32 and training mode, with all token ids set for training and for ``generate``.

    Raises:
        ValueError: If the sizes do not divide each other, or the tokenizer lacks a start, end or padding token.
    """
    if image_size % patch_size or width % heads:
        raise ValueError(
            f"Got image_size={image_size}, patch_size={patch_size}, width={width}, heads={heads}. patch_size must "
            "divide image_size, and heads must divide width."
        )
    start, end, pad = (token_id(tokenizer, name) for name in ("bos_token", "eos_token", "pad_token"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = ViTModel(
            ViTConfig(
                image_size=image_size,
                patch_size=patch_size,
                hidden_size=width,
                num_hidden_layers=encoder_layers,
                num_attention_heads=heads,
                intermediate_size=mlp,
                hidden_dropout_prob=dropout,
                attention_probs_dropout_prob=dropout,
            )
        )
        decoder = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=len(tokenizer),
                n_positions=num_positions,
                n_embd=width,
                n_layer=decoder_layers,
                n_head=heads,
                n_inner=mlp,
                activation_function="gelu_pytorch_tanh",  # equals the default "gelu_new", in one operation
                resid_pdrop=dropout,
                embd_pdrop=dropout,
                attn_pdrop=dropout,
                add_cross_attention=True,
                bos_token_id=start,
                eos_token_id=end,
                pad_token_id=pad,
            )
        )
        model = VisionEncoderDecoderModel(encoder=encoder, decoder=decoder)
    if encoder.pooler is not None:
        encoder.pooler.requires_grad_(False)
    _set_tokens(model, start, end, pad, num_positions)
    model.train()
    return model


def _set_tokens(model: VisionEncoderDecoderModel, start: int, end: int, pad: int, num_positions: int) -> None:
    """Tell the config, for training, and ``generate`` which tokens open, close and fill a caption."""
    model.config.decoder_start_token_id = start
    model.config.eos_token_id = end
    model.config.pad_token_id = pad
    model.generation_config = GenerationConfig(
        decoder_start_token_id=start,
        bos_token_id=start,
        eos_token_id=end,
        pad_token_id=pad,
        num_beams=NUM_BEAMS,
        max_new_tokens=min(MAX_NEW_TOKENS, num_positions),
    )


def token_id(tokenizer: PreTrainedTokenizerBase, name: str) -> int:
    """The id of a special token by its name, such as ``"eos_token"``; a ``ValueError`` if there is none."""
    token = tokenizer.special_tokens_map.get(name)
    number = None if token is None else tokenizer.convert_tokens_to_ids(token)
    if not isinstance(number, int):
        raise ValueError(f"The {type(tokenizer).__name__} has no {name}. Set tokenizer.{name} to one of its tokens.")
    return number
