"""``Captioner.from_pretrained``, ``caption`` and ``stream``, for every family, against what they are made of."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from hf_contrastive_caption import Captioner, captioner_for
from hf_contrastive_caption.captioners import caption_batch
from hf_contrastive_caption.captioners.blip import BlipCaptioner
from hf_contrastive_caption.captioners.encoder_decoder import EncoderDecoderCaptioner
from hf_contrastive_caption.generation import CaptionedImage, ScoredCaption, caption_images
from tests import tiny
from tests.families import FAMILIES, Family
from tests.families.chat import LLAVA

SHORT: dict[str, Any] = {"max_new_tokens": 6, "num_beams": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved captioner."""
    made = tmp_path_factory.mktemp("captioner")
    model = tiny.captioner_model()
    model.save_pretrained(made)
    captioner_for(model, tiny.processing()).processor.save_pretrained(made)
    return made


@pytest.fixture(scope="module")
def captioner(folder: Path) -> Captioner:
    return Captioner.from_pretrained(folder)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Seven images in two folders, and what is no image among them."""
    top = tmp_path / "photographs"
    (top / "b" / ".hidden").mkdir(parents=True)
    for number, image in enumerate(tiny.images(7)):
        image.save(top / ("b" if number > 3 else ".") / f"{number}.{'PNG' if number % 2 else 'bmp'}")
    (top / "notes.txt").write_text("none")
    (top / "._0.png").write_bytes(b"what macOS leaves behind")
    tiny.images(1)[0].save(top / "b" / ".hidden" / "8.png")
    return top


def naive_score(captioner: Captioner, image: Any, caption: str) -> float:
    """The sum of log-probabilities by the plainest forward, of one image and one caption."""
    captioner.model.eval()
    inputs = captioner.processor.process_images([image.convert("RGB")])
    batch = caption_batch(captioner.processor.tokenize([caption]).input_ids, [0])
    with torch.no_grad():
        return captioner.reference_log_probs(inputs, batch).sum().item()


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_every_family_is_loaded_and_captions_as_before_it_was_saved(family: Family, tmp_path: Path) -> None:
    options = dict(family.options)
    before = captioner_for(family.model(0.0), family.processing(), **options)
    before.base_model.save_pretrained(tmp_path)
    before.processor.save_pretrained(tmp_path)
    prompt = options.get("prompt")
    images = tiny.images(3)
    expected = caption_images(before.model, before.processor, images, **SHORT)
    after = Captioner.from_pretrained(tmp_path, prompt=prompt)
    assert type(after) is type(before) and after.dtype == torch.float32 and not after.model.training
    assert after.caption(images, **SHORT) == expected
    scored = after.caption(images, return_log_probs=True, **SHORT)
    assert [one.caption for one in scored] == expected
    for image, one in zip(images, scored, strict=True):
        assert one.log_prob == pytest.approx(naive_score(before, image, one.caption), abs=1e-3)


class TestCaption:
    def test_one_image_gives_one_caption_and_a_list_a_list(self, captioner: Captioner, photographs: Path) -> None:
        images = tiny.images(7)
        expected = caption_images(captioner.model, captioner.processor, images)
        assert len(set(expected)) > 3
        for one in (images[1], photographs / "1.PNG", str(photographs / "1.PNG")):
            assert captioner.caption(one) == expected[1]
        assert captioner.caption(images) == captioner.caption(images, batch_size=2) == expected
        assert captioner.caption(iter(images[:1])) == expected[:1]
        assert captioner.caption([]) == []

    def test_likelihoods_are_of_the_text_and_not_of_a_beam(self, captioner: Captioner) -> None:
        image = tiny.images(1)[0]
        found = captioner.caption(image, return_log_probs=True, num_beams=3, length_penalty=2.0, max_new_tokens=4)
        assert isinstance(found, ScoredCaption)
        assert found.log_prob == pytest.approx(naive_score(captioner, image, found.caption), abs=1e-4)
        assert found.log_prob < -1
        assert captioner.caption([image], return_log_probs=True, max_new_tokens=4, length_penalty=2.0) == [found]

    def test_sampling_is_as_seeded(self, captioner: Captioner) -> None:
        images, options = tiny.images(4), {"do_sample": True, "num_beams": 1, "max_new_tokens": 8}
        torch.manual_seed(3)
        first = captioner.caption(images, **options)
        torch.manual_seed(3)
        assert captioner.caption(images, **options) == first != captioner.caption(images, **options)

    def test_a_folder_is_pointed_to_stream(self, captioner: Captioner, photographs: Path) -> None:
        with pytest.raises(ValueError, match=r"is a folder; captioner\.stream\("):
            captioner.caption(photographs)


class TestStream:
    def test_a_folder_by_path_in_order(self, captioner: Captioner, photographs: Path) -> None:
        expected = caption_images(captioner.model, captioner.processor, tiny.images(7), **SHORT)
        found = list(captioner.stream(photographs, batch_size=3, return_log_probs=True, **SHORT))
        names = ["0.bmp", "1.PNG", "2.bmp", "3.PNG", "b/4.bmp", "b/5.PNG", "b/6.bmp"]
        assert [one.image for one in found] == [photographs / name for name in names]
        assert [one.caption for one in found] == expected
        for one, image in zip(found, tiny.images(7), strict=True):
            assert one.log_prob == pytest.approx(naive_score(captioner, image, one.caption), abs=1e-4)
        assert next(captioner.stream(str(photographs), **SHORT)) == CaptionedImage(found[0].image, expected[0], None)

    def test_no_more_than_a_batch_is_read_ahead(self, captioner: Captioner) -> None:
        read = []

        def images() -> Any:
            for number, image in enumerate(tiny.images(10)):
                read.append(number)
                yield image

        found = captioner.stream(images(), batch_size=2, **SHORT)
        assert read == []
        for wanted in range(1, 6):
            next(found)
            assert len(read) == 2 * ((wanted + 1) // 2)

    def test_a_stream_that_is_left_leaves_modes_as_they_were(self, captioner: Captioner) -> None:
        captioner.model.train()
        next(captioner.model.children()).eval()
        before = [module.training for module in captioner.model.modules()]
        found = captioner.stream(tiny.images(4), batch_size=2, **SHORT)
        next(found)
        assert torch.is_grad_enabled()
        assert [module.training for module in captioner.model.modules()] == before and len(set(before)) == 2
        captioner.model.eval()

    def test_images_that_do_not_open_are_named_or_left_out(
        self, captioner: Captioner, photographs: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (photographs / "1.PNG").write_bytes(b"no image")
        with pytest.raises(ValueError, match=r"Image 1: the file '.*1\.PNG' does not open"):
            list(captioner.stream(photographs, **SHORT))
        with caplog.at_level(logging.WARNING, "hf_contrastive_caption"):
            found = list(captioner.stream(photographs, on_bad_image="skip", batch_size=2, **SHORT))
        assert [one.image.name for one in found] == ["0.bmp", "2.bmp", "3.PNG", "4.bmp", "5.PNG", "6.bmp"]
        assert [record.message.split(" does")[0] for record in caplog.records] == [
            f"skipped: Image 1: the file '{photographs / '1.PNG'}'"
        ]

    def test_progress_counts_the_folder(
        self, captioner: Captioner, photographs: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        list(captioner.stream(photographs, **SHORT))
        assert capsys.readouterr().err == ""
        list(captioner.stream(photographs, progress=True, **SHORT))
        assert "7/7" in capsys.readouterr().err

    def test_wrong_arguments_are_refused_at_once(self, captioner: Captioner) -> None:
        with pytest.raises(ValueError, match="on_bad_image is 'ignore', but must be 'raise' or 'skip'"):
            captioner.stream([], on_bad_image="ignore")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="batch_size=0"):
            captioner.stream([], batch_size=0)
        with pytest.raises(ValueError, match="one caption"):
            captioner.stream([], num_return_sequences=2)
        with pytest.raises(TypeError, match="Got a int as images"):
            captioner.stream(3)


class TestLoading:
    def test_dtype_and_device(self, folder: Path) -> None:
        loaded = Captioner.from_pretrained(folder, dtype=torch.bfloat16, device="meta")
        assert loaded.dtype == torch.bfloat16 and loaded.device.type == "meta"
        assert EncoderDecoderCaptioner.from_pretrained(folder).device.type == "cpu"

    @pytest.mark.parametrize("own_processing", [True, False])
    def test_an_adapter_is_put_on_its_base(self, folder: Path, tmp_path: Path, own_processing: bool) -> None:
        model = tiny.captioner_model().from_pretrained(folder)
        adapted = get_peft_model(
            model, LoraConfig(target_modules=["c_attn"], init_lora_weights=False, fan_in_fan_out=True)
        )
        adapted.save_pretrained(tmp_path)
        before = captioner_for(adapted, tiny.processing())
        if own_processing:
            before.processor.save_pretrained(tmp_path)
        images = tiny.images(3)
        loaded = Captioner.from_pretrained(tmp_path)
        assert loaded.caption(images, **SHORT) == before.caption(images, **SHORT)
        with loaded.model.disable_adapter():  # type: ignore[operator]
            plain = Captioner.from_pretrained(folder).caption(images, **SHORT)
            assert loaded.caption(images, **SHORT) == plain != before.caption(images, **SHORT)

    def test_an_adapter_of_a_chat_model_has_the_whole_processor_of_its_base(self, tmp_path: Path) -> None:
        base, own = tmp_path / "base", tmp_path / "adapter"
        LLAVA.model(0.0).save_pretrained(base)
        LLAVA.processing().save_pretrained(base)
        model = type(LLAVA.model(0.0)).from_pretrained(base)
        adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
        adapted.save_pretrained(own)
        before = captioner_for(adapted, LLAVA.processing(), **dict(LLAVA.options))
        loaded = Captioner.from_pretrained(own, **dict(LLAVA.options))
        assert loaded.caption(tiny.images(2), **SHORT) == before.caption(tiny.images(2), **SHORT)

    def test_what_cannot_be_loaded_is_explained(self, folder: Path, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"\./nowhere is neither a folder nor the name of a repository"):
            Captioner.from_pretrained("./nowhere")
        with pytest.raises(ValueError, match="config.json is a file; give the folder"):
            Captioner.from_pretrained(folder / "config.json")
        (tmp_path / "run" / "checkpoint-7").mkdir(parents=True)
        (tmp_path / "run" / "checkpoint-12").mkdir()
        with pytest.raises(ValueError, match=r"holds no model: neither config\.json nor .*run/checkpoint-12"):
            Captioner.from_pretrained(tmp_path / "run")
        with pytest.raises(OSError, match="me/nothing cannot be loaded. We couldn't connect"):  # offline
            Captioner.from_pretrained("me/nothing")
        with pytest.raises(TypeError, match="is served by EncoderDecoderCaptioner, not by BlipCaptioner"):
            BlipCaptioner.from_pretrained(folder)

    def test_a_text_model_is_refused_before_its_weights_are_read(self, tmp_path: Path) -> None:
        GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=4, n_head=1, vocab_size=9)).save_pretrained(tmp_path)
        (tmp_path / "model.safetensors").unlink()
        with pytest.raises(TypeError, match=rf"{tmp_path} reads text alone, and captions are of images"):
            Captioner.from_pretrained(tmp_path)

    def test_an_adapter_without_its_base_is_explained(self, tmp_path: Path) -> None:
        model: nn.Module = get_peft_model(tiny.captioner_model(), LoraConfig(target_modules=["c_attn"]))
        model.save_pretrained(tmp_path)  # type: ignore[operator]
        with pytest.raises(ValueError, match="does not say to which model it belongs"):
            Captioner.from_pretrained(tmp_path)
        file = tmp_path / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": "/a/b"}))
        with pytest.raises(ValueError, match="adapter of the model in the folder /a/b, which is not here"):
            Captioner.from_pretrained(tmp_path)
