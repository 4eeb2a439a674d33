"""The small captioner from scratch: tokenizer, sizes, and what comes back from disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoImageProcessor, AutoTokenizer, PreTrainedTokenizerFast, VisionEncoderDecoderModel

from hf_contrastive_caption.captioners import captioner_for
from hf_contrastive_caption.data.scenes import scenes
from hf_contrastive_caption.models import small_captioner, small_image_processor, word_level_tokenizer

CAPTIONS = ["A red circle, and a star.", "the dog's t-shirt is red", "a Star"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return word_level_tokenizer(CAPTIONS)


def tiny(tokenizer, **sizes):
    return small_captioner(
        tokenizer, **{"image_size": 32, "width": 32, "encoder_layers": 1, "decoder_layers": 1, "mlp": 64, **sizes}
    )


def test_vocabulary_is_ordered_by_frequency_then_spelling(tokenizer):
    words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    assert words[:4] == ["<pad>", "<s>", "</s>", "<unk>"]
    assert words[4:] == ["a", "red", "star", ",", ".", "and", "circle", "dog's", "is", "t-shirt", "the"]
    assert word_level_tokenizer(reversed(CAPTIONS)).get_vocab() == tokenizer.get_vocab()


def test_captions_end_with_the_end_token_and_decode_to_clean_text(tokenizer):
    ids = tokenizer(CAPTIONS[0]).input_ids
    assert ids == [4, 5, 10, 7, 9, 4, 6, 8, 2]
    for caption in CAPTIONS:
        assert tokenizer.decode(tokenizer(caption).input_ids, skip_special_tokens=True) == caption.lower()
    assert tokenizer("a purple circle").input_ids == [4, 3, 10, 2]
    assert tokenizer.decode([1, 4, 6, 2, 0, 0], skip_special_tokens=True) == "a star"
    assert [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id] == [
        1,
        2,
        0,
        3,
    ]


def test_every_scene_caption_survives_the_round_trip():
    captions = [caption for row in scenes(300, 0, 0)["train"]["captions"] for caption in row]
    tokenizer = word_level_tokenizer(captions)
    assert tokenizer.batch_decode(tokenizer(captions).input_ids, skip_special_tokens=True) == captions
    assert 40 < len(tokenizer) < 70


def test_rare_words_become_unknown():
    tokenizer = word_level_tokenizer(CAPTIONS, min_frequency=2)
    assert set(tokenizer.get_vocab()) == {"<pad>", "<s>", "</s>", "<unk>", "a", "red", "star"}
    assert tokenizer("a red dog").input_ids == [4, 5, 3, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"captions": CAPTIONS, "min_frequency": 0}, "min_frequency=0"),
        ({"captions": CAPTIONS, "min_frequency": 9}, "No word is seen 9 times"),
        ({"captions": []}, "No word is seen"),
        ({"captions": "a red star"}, "one string"),
    ],
)
def test_a_vocabulary_without_words_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        word_level_tokenizer(**arguments)


def test_the_default_size_is_that_of_the_demo(tokenizer):
    model = small_captioner(tokenizer)
    assert model.encoder.embeddings.patch_embeddings.num_patches == 16
    vit = (
        128 * (16 * 16 * 3 + 1)
        + 128 * (16 + 1 + 1)
        + 3 * (4 * (128 * 128 + 128) + 2 * 128 * 384 + 384 + 128 + 4 * 128)
    )
    vit += 2 * 128 + 128 * 128 + 128  # the last norm, and the pooler
    assert sum(weight.numel() for weight in model.encoder.parameters()) == vit
    layer = 2 * 4 * (128 * 128 + 128) + 2 * 128 * 384 + 384 + 128 + 3 * 2 * 128  # self and cross attention, MLP, norms
    gpt = 128 * (len(tokenizer) + 128) + 2 * layer + 2 * 128
    assert sum(weight.numel() for weight in model.decoder.parameters()) == gpt
    assert model.training and model.dtype == torch.float32


def test_token_ids_are_set_for_training_and_generation(tokenizer):
    model = tiny(tokenizer, num_positions=24)
    for settings in (model.config, model.generation_config):
        assert (settings.decoder_start_token_id, settings.eos_token_id, settings.pad_token_id) == (1, 2, 0)
    assert model.generation_config.max_new_tokens == 24
    processor = captioner_for(model, (tokenizer, small_image_processor(32))).processor
    assert processor.end_token_id == 2 and processor.max_caption_tokens == 24


def test_weights_are_a_function_of_the_seed_and_the_global_generator_is_left_alone(tokenizer):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, same, other = (tiny(tokenizer, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["decoder.transformer.wte.weight"], other["decoder.transformer.wte.weight"])


def test_the_unused_pooler_gets_no_gradient_and_everything_else_does(tokenizer):
    model = tiny(tokenizer)
    labels = torch.tensor([[4, 5, 6, 2]])
    model(pixel_values=torch.randn(1, 3, 32, 32), labels=labels).loss.backward()
    without = {name for name, weight in model.named_parameters() if weight.grad is None}
    assert without == {"encoder.pooler.dense.weight", "encoder.pooler.dense.bias"}


def test_everything_comes_back_from_disk(tokenizer, tmp_path: Path, caplog):
    model, images = tiny(tokenizer).eval(), small_image_processor(32)
    for part in (model, tokenizer, images):
        part.save_pretrained(tmp_path)
    again = VisionEncoderDecoderModel.from_pretrained(tmp_path).eval()
    words, looks = AutoTokenizer.from_pretrained(tmp_path), AutoImageProcessor.from_pretrained(tmp_path)
    assert "MISSING" not in caplog.text
    assert again.state_dict().keys() == model.state_dict().keys()
    picture = scenes(1, 0, 0)["train"][0]["image"]
    pixels = images(picture, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 32, 32) and -1 <= pixels.min() < pixels.max() <= 1
    assert torch.equal(looks(picture, return_tensors="pt")["pixel_values"], pixels)
    labels = torch.tensor([tokenizer(CAPTIONS[0]).input_ids])
    assert words(CAPTIONS[0]).input_ids == labels[0].tolist()
    with torch.no_grad():
        assert torch.equal(again(pixels, labels=labels).logits, model(pixels, labels=labels).logits)
    generated = model.generate(pixels)
    assert torch.equal(again.generate(pixels), generated)
    assert words.batch_decode(generated, skip_special_tokens=True) == tokenizer.batch_decode(
        generated, skip_special_tokens=True
    )
    assert words.decode(labels[0], skip_special_tokens=True) == CAPTIONS[0].lower()


def test_the_fused_activation_equals_gpt2s_own(tokenizer):
    model = tiny(tokenizer).eval()
    inputs = {"pixel_values": torch.randn(2, 3, 32, 32), "labels": torch.tensor([[4, 5, 2], [6, 7, 2]])}
    config = model.config.decoder
    assert config.activation_function == "gelu_pytorch_tanh"
    config.activation_function = "gelu_new"
    plain = VisionEncoderDecoderModel(config=model.config).eval()
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(plain(**inputs).logits, model(**inputs).logits, atol=1e-6, rtol=1e-5)


def test_sizes_and_tokenizers_that_do_not_fit_are_refused(tokenizer):
    with pytest.raises(ValueError, match="patch_size must divide image_size"):
        small_captioner(tokenizer, image_size=60)
    with pytest.raises(ValueError, match="heads must divide width"):
        small_captioner(tokenizer, width=130)
    no_start = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, eos_token="</s>", pad_token="<pad>"
    )
    with pytest.raises(ValueError, match="has no bos_token"):
        small_captioner(no_start)
    no_start.unk_token = "<unk>"  # which must not stand in its place
    with pytest.raises(ValueError, match="has no bos_token"):
        small_captioner(no_start)
