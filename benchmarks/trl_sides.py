"""The models, pairs and trainers that ``against_trl.py`` compares."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    Trainer,
)
from trl import DPOConfig, DPOTrainer

from hf_contrastive_caption import ContrastiveCaptionConfig, ContrastiveCaptionTrainer
from hf_contrastive_caption.captioners import captioner_for
from hf_contrastive_caption.data import ContrastiveCaptionDataset
from hf_contrastive_caption.models import small_image_processor

PROMPT = "Describe the image in one sentence ."
SPECIAL = ("<pad>", "<end_of_utterance>", "<unk>", "<image>", "<fake_token_around_image>", "<global-img>")
PAD, END, _, IMAGE = range(4)
CHAT = ("User", "Assistant", ":", *PROMPT.split())
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | replace('user', 'User') | replace('assistant', 'Assistant') }}:"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>{% else %} {{ part['text'] }}"
    "{% endif %}{% endfor %}<end_of_utterance>{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""SmolVLM's, without the line break behind the end of an answer, which TRL would score and the model never writes."""


@dataclass(frozen=True)
class Size:
    """Sizes of a model: width, layers, heads and MLP of the vision encoder and of the text decoder.

    Attributes:
        pixels: Width and height of an image, in pixels.
        patch: Width and height of a patch.
        image_tokens: Tokens of an image in the prompt.
        vocabulary: Tokens of the vocabulary.
    """

    family: str
    pixels: int
    patch: int
    image_tokens: int
    vision: tuple[int, int, int, int]
    text: tuple[int, int, int, int]
    text_key_heads: int
    vocabulary: int


@dataclass(frozen=True)
class Setting:
    """What is compared: a model and a batch.

    Attributes:
        images: Images of a batch.
        negatives: K; TRL gets as many pairs for each image.
        frozen: Whether the vision encoder is frozen.
    """

    size: Size
    images: int
    negatives: int = 1
    frozen: bool = False


SMOLVLM = Size("smolvlm", 512, 16, 64, (128, 3, 4, 512), (96, 15, 3, 256), 1, 4_104)
LLAVA = Size("llava", 336, 14, 576, (64, 3, 2, 256), (256, 4, 4, 688), 4, 251)
SETTINGS = {
    "smolvlm": Setting(SMOLVLM, images=2),
    "llava": Setting(LLAVA, images=2),
    "smolvlm_frozen": Setting(SMOLVLM, images=2, frozen=True),
    "smolvlm_5": Setting(SMOLVLM, images=1, negatives=5),
}
_TINY_SMOLVLM = Size("smolvlm", 64, 16, 4, (32, 2, 2, 64), (48, 2, 3, 96), 1, 64)
_TINY_LLAVA = Size("llava", 42, 14, 9, (32, 2, 2, 64), (48, 2, 3, 96), 3, 64)
QUICK_SETTINGS = {
    name: Setting(_TINY_SMOLVLM if setting.size is SMOLVLM else _TINY_LLAVA, 2, setting.negatives, setting.frozen)
    for name, setting in SETTINGS.items()
}


# Models --------------------------------------------------------------------------------------------------------------


def build(size: Size) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A model with seeded random weights, and its processor."""
    tokenizer = _tokenizer(size.vocabulary)
    vision, text = _vision(size), _text(size)
    torch.manual_seed(0)
    model: PreTrainedModel
    processor: ProcessorMixin
    if size.family == "llava":
        model = LlavaForConditionalGeneration(
            LlavaConfig(vision_config=CLIPVisionConfig(**vision), text_config=text, image_token_id=IMAGE)
        )
        processor = LlavaProcessor(
            image_processor=small_image_processor(size.pixels),
            tokenizer=tokenizer,
            patch_size=size.patch,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,  # the class token, which "default" leaves out again
            chat_template=CHAT_TEMPLATE,
        )
    else:
        shuffle = round(((size.pixels // size.patch) ** 2 / size.image_tokens) ** 0.5)
        model = SmolVLMForConditionalGeneration(
            SmolVLMConfig(
                vision_config=vision,
                text_config=text.to_dict(),
                scale_factor=shuffle,
                image_token_id=IMAGE,
                pad_token_id=PAD,
            )
        )
        edge = {"longest_edge": size.pixels}
        pieces = Idefics3ImageProcessorPil(size=edge, max_image_size=edge, do_image_splitting=False)
        processor = Idefics3Processor(pieces, tokenizer, image_seq_len=size.image_tokens, chat_template=CHAT_TEMPLATE)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = END, PAD
    return model.train(), processor


def _vision(size: Size) -> dict[str, Any]:
    width, layers, heads, mlp = size.vision
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": mlp,
        "image_size": size.pixels,
        "patch_size": size.patch,
    }


def _text(size: Size) -> LlamaConfig:
    width, layers, heads, mlp = size.text
    return LlamaConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=size.text_key_heads,
        intermediate_size=mlp,
        vocab_size=size.vocabulary,
        max_position_embeddings=2048,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=END,
    )


def _tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Words of a vocabulary: what chats need, and as many words ``w0``, ``w1``, ... as there is room for."""
    words = [*SPECIAL, *CHAT]
    words += [f"w{number}" for number in range(vocabulary - len(words))]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=SPECIAL[PAD],
        eos_token=SPECIAL[END],
        unk_token="<unk>",
        additional_special_tokens=list(SPECIAL[IMAGE:]),
    )


# Pairs ---------------------------------------------------------------------------------------------------------------


def make_captions(setting: Setting, steps: int) -> Dataset:
    """JPEG images of coarse noise, each with a caption of 8 to 20 tokens, 12 on the average, for some steps."""
    rng = np.random.default_rng(0)
    words = setting.size.vocabulary - len(SPECIAL) - len(CHAT)
    images, captions = [], []
    for _ in range(setting.images * steps):
        noise = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((640, 480))
        noise.save(file := io.BytesIO(), "JPEG", quality=90)
        images.append({"bytes": file.getvalue(), "path": None})
        length = int(np.clip(round(rng.normal(11.8, 3)), 8, 20))
        captions.append(" ".join(f"w{word}" for word in rng.integers(0, words, length - 1)))  # and the end token
    features = Features({"image": ImageFeature(), "caption": Value("string")})
    return Dataset.from_dict({"image": images, "caption": captions}, features=features)


def make_pairs(captions: Dataset, setting: Setting, processor: Any) -> Dataset:
    """The pairs that the package draws in its first epoch, in the order of the rows, as TRL takes them."""
    drawn = ContrastiveCaptionDataset(captions, [processor], setting.negatives)
    numbers, _ = drawn.draw(np.arange(len(drawn)), 0)  # (rows, 1 + K)
    texts = np.reshape(drawn.caption_texts(numbers), numbers.shape)
    pairs = captions.select(np.repeat(np.arange(len(drawn)), setting.negatives)).remove_columns("caption")
    said = {
        "prompt": [[{"role": "user", "content": PROMPT}]] * len(pairs),
        "chosen": [[{"role": "assistant", "content": text}] for text in np.repeat(texts[:, 0], setting.negatives)],
        "rejected": [[{"role": "assistant", "content": text}] for text in texts[:, 1:].flat],
    }
    for name, column in said.items():
        pairs = pairs.add_column(name, column)
    return pairs


# Sides ---------------------------------------------------------------------------------------------------------------


def settings_of(folder: Path, rows: int, steps: int) -> dict[str, Any]:
    """The training arguments of both sides."""
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": rows,
        "max_steps": steps,
        "train_sampling_strategy": "sequential",
        "learning_rate": 1e-5,
        "beta": 1.0,
        "bf16": False,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
        "seed": 0,
    }


def ours(setting: Setting, folder: Path, steps: int) -> Trainer:
    """The package's trainer."""
    model, processor = build(setting.size)
    args = ContrastiveCaptionConfig(
        **settings_of(folder, setting.images, steps),
        num_negatives=setting.negatives,
        prompt=PROMPT,
        freeze_vision_encoder=setting.frozen,
    )
    return ContrastiveCaptionTrainer(
        model=model, args=args, train_dataset=make_captions(setting, steps), processing_class=processor
    )


def trl(setting: Setting, folder: Path, steps: int) -> Trainer:
    """TRL's trainer, whose batch is of pairs."""
    model, processor = build(setting.size)
    reference = copy.deepcopy(model)
    captioner = captioner_for(model, processor, prompt=PROMPT)
    pairs = make_pairs(make_captions(setting, steps), setting, captioner.processor)
    assert captioner.vision is not None
    captioner.vision.requires_grad_(not setting.frozen)
    args = DPOConfig(
        **settings_of(folder, setting.images * setting.negatives, steps), loss_type=["bco_pair"], max_length=None
    )
    return DPOTrainer(model=model, ref_model=reference, args=args, train_dataset=pairs, processing_class=processor)


SIDES: dict[str, Callable[[Setting, Path, int], Trainer]] = {"ours": ours, "trl": trl, "trl_gpu_way": trl}


@contextmanager
def side_context(side: str) -> Iterator[None]:
    """For ``trl_gpu_way``, have TRL project the tokens of completions only.

    It does so on GPUs, and projects every position elsewhere, where a compiler would have to follow the number of
    tokens. There is no option for it.
    """
    if side != "trl_gpu_way":
        yield
        return
    with mock.patch("trl.trainer.utils._use_triton", lambda device: True):
        yield
