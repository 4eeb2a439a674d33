"""LLaVA with a vision encoder that puts the patches of all images into one row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor, PixtralVisionConfig

from hf_contrastive_caption.captioners import Captioner, captioner_for
from tests import tiny
from tests.families.chat import CHAT_TEMPLATE, CHAT_TOKENS, IMAGE, PROMPT, chat_tokenizer
from tests.families.common import LAYERS
from tests.training import logged, trainer


class SizesProcessor(LlavaProcessor):
    """Also gives the size of each image, as Pixtral's processor does, which needs torchvision."""

    def __call__(self, images: Any = None, **options: Any) -> Any:
        features = super().__call__(images=images, **options)
        features["image_sizes"] = torch.tensor([[32, 32]] * len(images))
        return features


def pixtral_processing() -> LlavaProcessor:
    return SizesProcessor(
        image_processor=tiny.image_processor(),
        tokenizer=chat_tokenizer(),
        patch_size=8,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        chat_template=CHAT_TEMPLATE,
    )


def pixtral_model() -> LlavaForConditionalGeneration:
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=PixtralVisionConfig(**LAYERS, image_size=32, patch_size=8),
        text_config=LlamaConfig(**LAYERS, **CHAT_TOKENS, max_position_embeddings=96),
        image_token_id=IMAGE,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    model = LlavaForConditionalGeneration(config).train()
    model.generation_config.eos_token_id = tiny.EOS
    return model


@pytest.fixture
def captioner() -> Captioner:
    return captioner_for(pixtral_model(), pixtral_processing(), prompt=PROMPT)


def test_captions_are_scored_and_trained(captioner: Captioner, tmp_path: Path) -> None:
    inputs, captions = captioner.processor.process_images(tiny.images(3)), tiny.captions([0, 2, 1, 0])
    with torch.no_grad():
        tokens = captioner.token_log_probs(captioner.model, inputs, captions)
        plain = captioner.reference_log_probs(inputs, captions)
    torch.testing.assert_close(tokens, plain, rtol=0, atol=1e-4)
    options = {"prompt": PROMPT, "max_steps": 1}
    data = tiny.caption_dataset(4, 1)
    run = trainer(tmp_path, pixtral_model(), data, options, processing_class=pixtral_processing())
    run.train()
    assert logged(run, "loss") == pytest.approx([1.3862944], abs=1e-4)


def test_states_that_are_not_told_apart_are_refused(captioner: Captioner) -> None:
    inputs = captioner.processor.process_images(tiny.images(3))
    with pytest.raises(ValueError, match=r"PixtralVisionModel .* gives states of \(1, 48, 32\) for 3 images"):
        captioner.encode(inputs)
    with pytest.raises(ValueError, match=r"neither freeze_vision_encoder, cache_vision_states nor self-retrieval"):
        assert captioner.tries
