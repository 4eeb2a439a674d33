"""Captions for images equal those of plain ``generate``."""

from __future__ import annotations

from io import BytesIO

import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from torch import nn
from transformers import GenerationConfig

from hf_contrastive_caption.captioners import Captioner, captioner_for
from hf_contrastive_caption.data.scenes import scenes
from hf_contrastive_caption.generation import caption_images, describe_decoding
from hf_contrastive_caption.processing import CaptionProcessor
from tests import tiny
from tests.families.blip import blip_model
from tests.families.chat import PROMPT, llava_model, llava_processing
from tests.families.git import git_model
from tests.families.qwen_vl import qwen_model, qwen_processing


@pytest.fixture(scope="module")
def model():
    return tiny.captioner_model()


@pytest.fixture(scope="module")
def processor(model) -> CaptionProcessor:
    return captioner_for(model, tiny.processing()).processor


def plain(model, images, **arguments) -> list[str]:
    """The naive few lines: one image at a time."""
    tokenizer, image_processor = tiny.processing()
    model.eval()
    captions = []
    for image in images:
        pixels = image_processor(images=[image.convert("RGB")], return_tensors="pt")["pixel_values"]
        sequence = model.generate(pixel_values=pixels, do_sample=False, **arguments)
        captions.append(" ".join(tokenizer.decode(sequence[0], skip_special_tokens=True).split()))
    model.train()
    return captions


def test_defaults_are_three_beams_and_the_length_of_the_processor(model, processor):
    images = tiny.images(7)
    expected = plain(model, images, num_beams=3, max_new_tokens=64)
    assert len(set(expected)) > 1
    for batch_size in (1, 3, 32):
        assert caption_images(model, processor, images, batch_size=batch_size) == expected


def test_arguments_of_generate_pass_through(model, processor):
    images = tiny.images(4)
    expected = plain(model, images, num_beams=1, max_new_tokens=5)
    assert caption_images(model, processor, images, num_beams=1, max_new_tokens=5) == expected
    assert max(len(caption.split()) for caption in expected) <= 5
    expected = plain(model, images, num_beams=2, max_length=4)
    assert caption_images(model, processor, images, num_beams=2, max_length=4) == expected


def test_outputs_that_are_no_texts(model, processor):
    with pytest.raises(ValueError, match="Got return_dict_in_generate=True, but captions are texts here"):
        caption_images(model, processor, tiny.images(1), return_dict_in_generate=True)


def test_a_short_processor_gives_short_captions(model):
    tokenizer, image_processor = tiny.processing()
    short = CaptionProcessor(tokenizer, image_processor, tiny.EOS, max_caption_tokens=3)
    captions = caption_images(model, short, tiny.images(3))
    assert max(len(caption.split()) for caption in captions) <= 3


def test_every_way_to_give_images(model, processor, tmp_path):
    data = scenes(3, 0, 0)["train"]
    images = list(data["image"])
    expected = plain(model, images, num_beams=3, max_new_tokens=64)
    files, contents = [], []
    for number, image in enumerate(images):
        image.save(tmp_path / f"{number}.png")
        files.append(tmp_path / f"{number}.png")
        file = BytesIO()
        image.save(file, format="PNG")
        contents.append(file.getvalue())
    ways = (data["image"], images, tuple(images), iter(images), files, list(map(str, files)), contents)
    for way in ways:
        assert caption_images(model, processor, way) == expected
    for one in (images[0], files[0], str(files[0]), contents[0], {"bytes": contents[0], "path": None}):
        assert caption_images(model, processor, one) == expected[:1]
    assert caption_images(model, processor, []) == []


def test_the_pair_of_tokenizer_and_image_processor_will_do(model, processor):
    images = tiny.images(2)
    assert caption_images(model, tiny.processing(), images) == caption_images(model, processor, images)


def test_images_of_any_mode_are_converted(model, processor):
    images = [image.convert(mode) for image, mode in zip(tiny.images(3), ("L", "CMYK", "RGBA"), strict=True)]
    expected = plain(model, images, num_beams=3, max_new_tokens=64)
    assert caption_images(model, processor, images) == expected


def test_modes_of_the_modules_are_left_as_they_were(model, processor):
    model.train()
    frozen = next(module for module in model.modules() if isinstance(module, nn.LayerNorm))
    frozen.eval()
    before = [module.training for module in model.modules()]
    caption_images(model, processor, tiny.images(1), max_new_tokens=2)
    assert [module.training for module in model.modules()] == before and len(set(before)) == 2
    with pytest.raises(ValueError, match="does not open"):
        caption_images(model, processor, ["/no/such/picture.png"])
    assert [module.training for module in model.modules()] == before
    model.train()
    assert all(weight.grad is None for weight in model.parameters())


def test_a_model_with_adapters_captions_with_them(processor):
    plain_model, images = tiny.captioner_model(), tiny.images(3)
    before = caption_images(plain_model, processor, images)
    peft = get_peft_model(plain_model, LoraConfig(target_modules=["c_attn"], init_lora_weights=False))
    after = caption_images(peft, processor, images)
    assert after == plain(plain_model, images, num_beams=3, max_new_tokens=64) != before
    with peft.disable_adapter():
        assert caption_images(peft, processor, images) == before


def test_progress_is_shown_only_if_asked_for(model, processor, capsys):
    caption_images(model, processor, tiny.images(2), max_new_tokens=2)
    assert capsys.readouterr().err == ""
    caption_images(model, processor, tiny.images(2), max_new_tokens=2, progress=True)
    assert "2/2" in capsys.readouterr().err


def test_wrong_use_is_explained(model, processor):
    image = tiny.images(1)[0]
    with pytest.raises(TypeError, match="Got a Linear"):
        caption_images(torch.nn.Linear(1, 1), processor, image)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch_size=0"):
        caption_images(model, processor, image, batch_size=0)
    with pytest.raises(ValueError, match="one caption"):
        caption_images(model, processor, image, num_return_sequences=2)
    with pytest.raises(TypeError, match="Got a int as images"):
        caption_images(model, processor, 3)
    with pytest.raises(TypeError, match=r"Image 0 is a row with the columns image_id, image, captions"):
        caption_images(model, processor, scenes(1, 0, 0)["train"])
    with pytest.raises(ValueError, match="Image 1: "):
        caption_images(model, processor, [image, b"no image"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "by beam search with 3 beams, max_new_tokens=64"),
        (
            {"num_beams": 5, "length_penalty": 0.8},
            "by beam search with 5 beams, length_penalty=0.8, max_new_tokens=64",
        ),
        ({"num_beams": 1}, "greedily, max_new_tokens=64"),
        ({"num_beams": 1, "max_length": 9}, "greedily, max_length=9"),
        ({"do_sample": True, "num_beams": 1, "top_k": 4}, "by sampling, max_new_tokens=64, top_k=4"),
        ({"do_sample": True}, "by sampling with 3 beams, max_new_tokens=64"),
        ({"generation_config": GenerationConfig(num_beams=7)}, "by a generation_config of the user's"),
    ],
)
def test_decoding_is_said_in_words(processor, arguments, words):
    given = dict(arguments)
    assert describe_decoding(processor, arguments) == f"captions generated {words}"
    assert arguments == given


def test_decoding_names_the_length_of_a_short_processor():
    short = CaptionProcessor(*tiny.processing(), tiny.EOS, max_caption_tokens=3)
    assert describe_decoding(short, {}) == "captions generated by beam search with 3 beams, max_new_tokens=3"


def test_the_models_own_stop_tokens_end_a_caption():
    chat, images = llava_model(), tiny.images(4)
    options = {"num_beams": 1, "max_new_tokens": 8}
    whole = caption_images(chat, captioner_for(chat, llava_processing(), prompt=PROMPT).processor, images, **options)
    words = whole[0].split()
    stop = llava_processing().tokenizer(words[2])["input_ids"][0]
    chat.generation_config.eos_token_id = [stop, tiny.EOS]
    captioner = captioner_for(chat, llava_processing(), prompt=PROMPT)
    assert captioner.processor.end_token_id == tiny.EOS  # with which the template ends an answer
    assert captioner.stop_token_ids == [tiny.EOS, stop]
    calls = []
    chat.register_forward_hook(lambda *given: calls.append(given))
    captions = caption_images(chat, captioner.processor, images[:1], **options)
    assert captions == [" ".join(words[: words.index(words[2])])]
    assert len(calls) <= 3  # nothing is generated behind it
    given = GenerationConfig(**options, do_sample=False, eos_token_id=tiny.EOS, pad_token_id=tiny.PAD)
    assert caption_images(chat, captioner.processor, images, generation_config=given) == whole


def test_blip_stops_at_its_separator_alone():
    model, images = blip_model(), tiny.images(2)
    captioner = captioner_for(model, tiny.processing())
    expected = caption_images(model, captioner.processor, images)
    model.generation_config.eos_token_id = [9, tiny.EOS]
    assert captioner.stop_token_ids == [tiny.EOS]
    assert caption_images(model, captioner.processor, images) == expected
    with pytest.raises(ValueError, match=r"eos_token_id is \[9, 2\], but BLIP"):
        caption_images(model, captioner.processor, images, eos_token_id=[9, tiny.EOS])


def test_a_stream_passes_over_images_that_the_image_processor_refuses(caplog):
    captioner = captioner_for(qwen_model(), qwen_processing(), prompt="picture")
    images = tiny.images(4)
    images[1] = Image.new("RGB", (900, 4))
    options = {"num_beams": 1, "max_new_tokens": 4, "batch_size": 3}
    with pytest.raises(ValueError, match="Image 1: the image processor takes no image of 900 × 4 pixels"):
        list(captioner.stream(images, **options))
    found = list(captioner.stream(images, on_bad_image="skip", **options))
    assert [one.caption for one in found] == captioner.caption([images[n] for n in (0, 2, 3)], **options)
    assert [one.image for one in found] == [images[0], images[2], images[3]]
    assert "skipped: Image 1: the image processor takes no image" in caplog.text
    assert list(captioner.stream(images[1:2], on_bad_image="skip", **options)) == []


def test_no_image_is_skipped_where_captions_belong_to_images_by_place(model, processor):
    damaged = [*tiny.images(2), b"no image"]
    captioner = captioner_for(model, processor)
    with pytest.raises(ValueError, match="images are skipped by captioner.stream"):
        captioner.caption(damaged, on_bad_image="skip")
    with pytest.raises(ValueError, match="images are skipped by captioner.stream"):
        caption_images(model, processor, damaged, on_bad_image="skip")
    assert len(list(captioner.stream(damaged, on_bad_image="skip", max_new_tokens=3))) == 2
    with pytest.raises(ValueError, match="Image 2: an image of 8 bytes does not open"):
        captioner.caption(damaged, on_bad_image="raise")


@pytest.mark.parametrize("own", [tiny.BOS, None])
def test_captions_begin_behind_the_token_that_they_are_scored_behind(own):
    model = tiny.captioner_model().eval()
    model.config.decoder_start_token_id = 9  # generate() looks into generation_config, which does not follow
    model.generation_config.decoder_start_token_id = model.generation_config.bos_token_id = own
    captioner = captioner_for(model, tiny.processing())
    assert captioner.start_token_id == 9
    pixels = captioner.placed(captioner.processor.process_images(tiny.images(2)))
    ids = captioner.generate(pixels, num_beams=1, do_sample=False, max_new_tokens=4)
    assert ids[:, 0].tolist() == [9, 9]


def test_the_start_token_of_git_is_not_rounded_with_its_pixels(monkeypatch):
    captioner = captioner_for(git_model(), tiny.processing())
    captioner.start_token_id = 50257
    monkeypatch.setattr(Captioner, "generate", lambda self, images, **_: images["input_ids"].repeat(1, 2))
    pixels = torch.zeros(2, 3, 32, 32, dtype=torch.bfloat16)
    assert captioner.generate({"pixel_values": pixels}).tolist() == [[50257], [50257]]
