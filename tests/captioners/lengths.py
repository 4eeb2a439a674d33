"""Images that take prompts of different lengths, as a family's own test makes them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from hf_contrastive_caption.captioners import Captioner
from hf_contrastive_caption.captioners.pairs import PairScorer
from hf_contrastive_caption.generation import caption_images
from tests import tiny
from tests.captioners.naive import gradients, relative_difference
from tests.families.chat import IMAGE, chat_inputs


def check_images_of_different_lengths(captioner: Captioner, images: Sequence[Image.Image], method: str) -> None:
    """Scores, gradients, kept states, pairs and captions of three images together are those of each one alone.

    Args:
        captioner: The captioner.
        images: Three images whose prompts have different numbers of tokens.
        method: How it is expected to score all pairs.
    """
    model, processor = captioner.model, captioner.processor
    inputs = processor.process_images(list(images))
    captions = tiny.captions([0, 1, 2, 1, 0])

    def naive() -> Tensor:
        scores = []
        sentences = captions["input_ids"].split(captions["lengths"].tolist())
        for ids, image in zip(sentences, captions["image_index"].tolist(), strict=True):
            alone = processor.process_images([images[image]])  # without padding
            logits = model(**chat_inputs(alone, ids)).logits[0, -len(ids) - 1 : -1]
            scores.append(logits.log_softmax(-1)[torch.arange(len(ids)), ids].sum())
        return torch.stack(scores)

    scores = captioner.log_probs(model, inputs, captions)
    torch.testing.assert_close(scores, naive(), rtol=0, atol=1e-4)
    assert relative_difference(gradients(model, scores), gradients(model, naive())) < 1e-4
    states = captioner.encode(inputs)
    with torch.no_grad():
        torch.testing.assert_close(captioner.log_probs(model, states, captions), naive(), rtol=0, atol=1e-4)
    pairs = PairScorer(captioner, [[7, 8, tiny.EOS], [7, 9, tiny.EOS]])
    assert pairs.plan.method == method
    table = pairs.scores(inputs)
    for number, image in enumerate(images):
        alone = processor.process_images([image])
        sliced = {name: value[number : number + 1] for name, value in inputs.items()}  # with its padding
        for one in (alone, sliced):
            torch.testing.assert_close(pairs.scores(one)[0], table[number], rtol=0, atol=1e-4)
    for num_beams in (1, 3):
        options = {"num_beams": num_beams, "max_new_tokens": 5, "bad_words_ids": [[IMAGE]]}
        together = caption_images(model, processor, images, **options)
        assert together == caption_images(model, processor, images, batch_size=1, **options)
