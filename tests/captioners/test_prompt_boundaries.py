"""Where the prompt ends and a caption begins, with tokenizers that join words with the space before them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlavaProcessor, PreTrainedTokenizerFast

from hf_contrastive_caption.captioners import Captioner, caption_batch, captioner_for
from hf_contrastive_caption.prompting import PromptProcessor
from tests import tiny
from tests.families.chat import llava_model

SPECIAL = ["<pad>", "<s>", "</s>", "<image>", "<unk>"]
PAD, START, END, IMAGE = range(4)
PROMPT = "Describe the image."
CORPUS = [
    *tiny.texts(200),
    *["USER: Describe the image. ASSISTANT: A dog's ball, it's red.\n", "a photo of a cat\n"] * 20,
]
CAPTIONS = ("A dog", "a photo of a cat", "it's red", "the one")
KINDS = ("byte-level", "first", "always")
"""Byte-level BPE, and Metaspace that writes a space before the first word of a text, or of each part of it."""

MESSAGES = (
    "{% for m in messages %}{{ m['role'].upper() + ':' + gap }}{% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}<image>\n{% else %}{{ p['text'] }}"
    "{% if m['role'] == 'user' %} {% endif %}{% endif %}{% endfor %}"
    "{% if m['role'] == 'assistant' %}</s>{% endif %}{% endfor %}"
)
TEMPLATES = {
    "plain": "{% set gap = ' ' %}" + MESSAGES + "{% if add_generation_prompt %}ASSISTANT:{% endif %}",
    "space": "{% set gap = ' ' %}" + MESSAGES + "{% if add_generation_prompt %}ASSISTANT: {% endif %}",
    "newline": "{% set gap = '\n' %}" + MESSAGES + "{% if add_generation_prompt %}ASSISTANT:\n{% endif %}",
}


def tokenizer(kind: str, *, adds_start: bool) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    if kind == "byte-level":
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind)
        backend.decoder = decoders.Metaspace(prepend_scheme=kind)
    alphabet = pre_tokenizers.ByteLevel.alphabet() if kind == "byte-level" else []
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    if adds_start:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", START)])
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, additional_special_tokens=["<image>"], **names)


def captioner_of(kind: str, template: str, *, adds_start: bool = False) -> Captioner:
    reads = tokenizer(kind, adds_start=adds_start)
    model = llava_model(vocab_size=len(reads), max_position_embeddings=160)
    model.config.image_token_id, model.generation_config.eos_token_id = IMAGE, END
    processing = LlavaProcessor(
        image_processor=tiny.image_processor(),
        tokenizer=reads,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )
    return captioner_for(model, processing, prompt=PROMPT)


def whole_chat(captioner: Captioner, caption: str) -> dict[str, Any]:
    """Question and answer written by the template and tokenized together, as people do who train such a model."""
    processing: Any = captioner.processor.processing_class
    user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}
    answer = {"role": "assistant", "content": [{"type": "text", "text": caption}]}
    text = processing.apply_chat_template([user, answer], tokenize=False)
    inputs = processing(
        images=tiny.images(1), text=[text], add_special_tokens=not text.startswith("<s>"), return_tensors="pt"
    )
    return dict(inputs)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("start", ["nobody", "tokenizer", "template", "both"])
def test_scores_are_those_of_the_whole_chat(kind: str, name: str, start: str) -> None:
    template = ("<s>" if start in ("template", "both") else "") + TEMPLATES[name]
    captioner = captioner_of(kind, template, adds_start=start in ("tokenizer", "both"))
    prompt = captioner.processor.process_images(tiny.images(1))
    ids = captioner.processor.tokenize(CAPTIONS).input_ids
    with torch.no_grad():
        scores = captioner.log_probs(captioner.model, prompt, caption_batch(ids, [0] * len(ids)))
    for caption, own, score in zip(CAPTIONS, ids, scores.tolist(), strict=True):
        inputs = whole_chat(captioner, caption)
        together = inputs["input_ids"][0].tolist()
        assert [*prompt["input_ids"][0].tolist(), *own] == together
        assert together.count(START) == (start != "nobody")
        assert together.count(IMAGE) == 16
        with torch.no_grad():
            logits = captioner.model(**inputs).logits[0].log_softmax(-1)
        first = len(together) - len(own)
        expected = sum(logits[place - 1, together[place]].item() for place in range(first, len(together)))
        assert score == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("kind", KINDS)
def test_one_space_or_line_between_prompt_and_caption(kind: str, name: str) -> None:
    processor = captioner_of(kind, TEMPLATES[name]).processor
    assert isinstance(processor, PromptProcessor)
    between = "\n" if name == "newline" else " "
    assert processor.lead == ("" if name == "newline" else " ")
    assert processor.question.endswith("ASSISTANT:\n" if name == "newline" else "ASSISTANT:")
    prompt = processor.process_images(tiny.images(1))["input_ids"][0].tolist()
    for caption, ids in zip(CAPTIONS, processor.tokenize(CAPTIONS).input_ids, strict=True):
        assert ids[-1] == END
        assert processor.tokenizer.decode([*prompt, *ids[:-1]]).endswith(f"ASSISTANT:{between}{caption}")
        assert processor.decode([ids]) == [caption]


def test_a_caption_that_the_tokenizer_joins_with_the_question_is_read_alone() -> None:
    template = TEMPLATES["plain"].replace("ASSISTANT:{% endif", "a pho{% endif").replace("gap }}", "'' }}")
    captioner = captioner_of("byte-level", template)
    processor = captioner.processor
    assert isinstance(processor, PromptProcessor)
    assert (processor.question[-5:], processor.lead) == ("a pho", "")
    alone = processor.tokenizer(["to", "dog"])["input_ids"]
    assert processor.tokenize(["to", "dog"]).input_ids == [[*ids, END] for ids in alone]
