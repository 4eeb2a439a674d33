"""The prompt goes where the processor goes, and what is given comes before what was saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import AutoProcessor

from hf_contrastive_caption import ContrastiveCaptionTrainer
from hf_contrastive_caption.captioners import Captioner, captioner_for
from hf_contrastive_caption.cli.main import main
from hf_contrastive_caption.evaluation.evaluator import evaluate_captioner
from hf_contrastive_caption.generation import caption_images
from hf_contrastive_caption.prompting import PromptProcessor
from tests import tiny
from tests.families import FAMILIES, Family
from tests.families.chat import LLAVA, PROMPT, llava_model, llava_processing
from tests.training import arguments, trainer

OTHER = "a picture ."
PROMPTED = [family for family in FAMILIES if dict(family.options).get("prompt")]


def prompt_of(captioner: Captioner) -> str | None:
    assert isinstance(captioner.processor, PromptProcessor)
    return captioner.processor.prompt


def save(folder: Path, prompt: str | None = PROMPT, family: Family = LLAVA) -> Captioner:
    captioner = captioner_for(family.model(0.0), family.processing(), prompt=prompt)
    captioner.model.save_pretrained(folder)
    captioner.processor.save_pretrained(folder)
    return captioner


@pytest.mark.parametrize("family", PROMPTED, ids=str)
class TestEveryFamily:
    def test_plain_transformers_brings_it_back_and_passes_it_on(self, family: Family, tmp_path: Path) -> None:
        before = save(tmp_path / "first", family=family)
        processing = AutoProcessor.from_pretrained(tmp_path / "first")
        processing.save_pretrained(tmp_path / "second")
        again = AutoProcessor.from_pretrained(tmp_path / "second")
        inputs = before.processor.process_images(tiny.images(2))
        for loaded in (processing, again):
            captioner = captioner_for(before.model, loaded)
            assert prompt_of(captioner) == PROMPT
            assert captioner.processor.reads_like(before.processor)
            for name, value in captioner.processor.process_images(tiny.images(2)).items():
                torch.testing.assert_close(value, inputs[name], rtol=0, atol=0)

    def test_what_is_given_comes_first(self, family: Family, tmp_path: Path) -> None:
        model = save(tmp_path, family=family).model
        processing = AutoProcessor.from_pretrained(tmp_path)
        assert prompt_of(captioner_for(model, processing, prompt=OTHER)) == OTHER
        captioner_for(model, processing, prompt=OTHER).processor.save_pretrained(tmp_path)
        assert prompt_of(captioner_for(model, AutoProcessor.from_pretrained(tmp_path))) == OTHER
        assert prompt_of(captioner_for(model, processing)) == PROMPT  # as it was loaded


class TestSaving:
    def test_the_users_processor_stays_as_it_is(self, tmp_path: Path) -> None:
        processing = llava_processing()
        captioner_for(llava_model(), processing, prompt=PROMPT).processor.save_pretrained(tmp_path)
        assert prompt_of(captioner_for(llava_model(), processing)) is None
        assert json.loads((tmp_path / "tokenizer_config.json").read_text())["caption_prompt"] == PROMPT

    def test_nothing_is_saved_without_a_prompt(self, tmp_path: Path) -> None:
        model = save(tmp_path).model
        alone = captioner_for(model, AutoProcessor.from_pretrained(tmp_path), prompt="")
        assert prompt_of(alone) is None
        alone.processor.save_pretrained(tmp_path)
        assert "caption_prompt" not in json.loads((tmp_path / "tokenizer_config.json").read_text())
        assert prompt_of(captioner_for(model, AutoProcessor.from_pretrained(tmp_path))) is None

    def test_a_prompt_beside_another(self, tmp_path: Path) -> None:
        captioner = save(tmp_path)
        with pytest.raises(ValueError, match="prompt='' was given beside a processor that was made for prompt='Desc"):
            captioner_for(captioner.model, captioner.processor, prompt="")
        with pytest.raises(ValueError, match=r"prompt='a' was given beside a captioner.*give it to captioner_for"):
            evaluate_captioner(captioner, tiny.caption_dataset(4, 1), prompt="a")


class TestUsing:
    def test_captions(self, tmp_path: Path) -> None:
        captioner, images = save(tmp_path), tiny.images(3)
        loaded = AutoProcessor.from_pretrained(tmp_path)
        options: dict[str, Any] = {"max_new_tokens": 6, "num_beams": 1}
        expected = caption_images(captioner.model, captioner.processor, images, **options)
        asked = captioner_for(captioner.model, llava_processing(), prompt=OTHER)
        other = caption_images(captioner.model, asked.processor, images, **options)
        assert expected != other
        assert caption_images(captioner.model, loaded, images, **options) == expected
        assert caption_images(captioner.model, loaded, images, prompt=OTHER, **options) == other

    def test_evaluation_by_name(self, tmp_path: Path) -> None:
        captioner, data = save(tmp_path), tiny.caption_dataset(4, 1)
        options: dict[str, Any] = {"k": (), "metrics": ("rouge_l",), "max_new_tokens": 4, "progress": False}
        expected = evaluate_captioner(captioner, data, **options)
        report = evaluate_captioner(tmp_path, data, **options)
        assert report.captions == expected.captions
        assert report.decoding.endswith(f", asked {PROMPT!r}")
        assert evaluate_captioner(tmp_path, data, prompt=OTHER, **options).decoding.endswith(f", asked {OTHER!r}")

    def test_command(self, tmp_path: Path) -> None:
        save(tmp_path / "tuned")
        save(tmp_path / "base", prompt=None)
        (tmp_path / "data").mkdir()
        tiny.caption_dataset(4, 1).to_parquet(tmp_path / "data" / "test.parquet")
        words = ["--data", "data", "--reference", "base", "--k", "", "--metrics", "rouge_l", "--max-new-tokens", "4"]

        def asked(*more: str) -> tuple[str, str]:
            given = [str(tmp_path / word) if word in ("data", "base") else word for word in words]
            with pytest.raises(SystemExit) as end:
                main(["evaluate", str(tmp_path / "tuned"), *given, *more, "--out", str(tmp_path / "report.json")])
            assert not end.value.code
            content = json.loads((tmp_path / "report.json").read_text())
            return tuple(part["decoding"].partition("asked ")[2] for part in (content, content["reference"]))

        assert asked() == (repr(PROMPT), repr(PROMPT))
        assert asked("--prompt", OTHER) == (repr(OTHER), repr(OTHER))
        assert asked("--reference-prompt", OTHER) == (repr(PROMPT), repr(OTHER))

    def test_command_without_the_reference_that_is_asked(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as end:
            main(["evaluate", "a/b", "--data", "c", "--reference-prompt", "d"])
        assert end.value.code == 2
        told = (
            "Invalid value for --reference-prompt: it is what the captioner of --reference is asked, and there is none"
        )
        assert told in capsys.readouterr().err


class TestTraining:
    def test_of_a_checkpoint_and_of_the_result(self, tmp_path: Path) -> None:
        data = tiny.caption_dataset(4, 1)
        options = {"prompt": PROMPT, "save_strategy": "steps", "save_steps": 1, "max_steps": 1}
        run = trainer(tmp_path, llava_model(), data, options, processing_class=llava_processing())
        run.train()
        run.save_model()
        for folder in (tmp_path, tmp_path / "checkpoint-1"):
            again = ContrastiveCaptionTrainer(str(folder), arguments(tmp_path / "again"), data)
            assert prompt_of(again.captioner) == prompt_of(again.reference.captioner) == PROMPT

    def test_of_an_adapter(self, tmp_path: Path) -> None:
        save(tmp_path / "base", prompt=None)
        data = tiny.caption_dataset(4, 1)
        lora = LoraConfig(r=2, target_modules=LLAVA.adapt)
        options = arguments(tmp_path / "run", prompt=PROMPT, max_steps=1)
        run = ContrastiveCaptionTrainer(str(tmp_path / "base"), options, data, peft_config=lora)
        run.train()
        run.save_model()
        report = evaluate_captioner(tmp_path / "run", data, k=(), metrics=("rouge_l",), max_new_tokens=4)
        assert report.decoding.endswith(f", asked {PROMPT!r}")


class TestReferences:
    """Prompts of (target, reference) by what is given and what was saved."""

    def prompts(self, tmp_path: Path, model: Any, reference: Any, **options: Any) -> tuple[str | None, str | None]:
        processing = None if isinstance(model, str) else llava_processing()
        run = trainer(
            tmp_path / "run", model, tiny.caption_dataset(4, 1), options, processing_class=processing,
            reference_model=reference,
        )  # fmt: skip
        assert run.reference is not None
        return prompt_of(run.captioner), prompt_of(run.reference.captioner)

    def test_a_copy_is_asked_the_same(self, tmp_path: Path) -> None:
        assert self.prompts(tmp_path, llava_model(), None, prompt=PROMPT) == (PROMPT, PROMPT)

    def test_another_model_is_asked_the_same(self, tmp_path: Path) -> None:
        assert self.prompts(tmp_path, llava_model(), llava_model(seed=1), prompt=PROMPT) == (PROMPT, PROMPT)

    def test_another_model_is_asked_what_it_is_given(self, tmp_path: Path) -> None:
        options = {"prompt": PROMPT, "reference_prompt": OTHER}
        assert self.prompts(tmp_path, llava_model(), llava_model(seed=1), **options) == (PROMPT, OTHER)

    def test_what_was_saved_with_each(self, tmp_path: Path) -> None:
        save(tmp_path / "model")
        save(tmp_path / "reference", OTHER)
        names = str(tmp_path / "model"), str(tmp_path / "reference")
        assert self.prompts(tmp_path, *names) == (PROMPT, OTHER)
        assert self.prompts(tmp_path, *names, prompt="the picture .") == ("the picture .", OTHER)
        assert self.prompts(tmp_path, *names, reference_prompt="") == (PROMPT, None)

    def test_what_was_saved_with_the_target_if_the_reference_has_none(self, tmp_path: Path) -> None:
        save(tmp_path / "model")
        save(tmp_path / "reference", None)
        names = str(tmp_path / "model"), str(tmp_path / "reference")
        assert self.prompts(tmp_path, *names) == (PROMPT, PROMPT)

    def test_a_reference_with_the_targets_processor_and_not_what_was_saved_in_it(self, tmp_path: Path) -> None:
        save(tmp_path / "model")
        assert self.prompts(tmp_path, str(tmp_path / "model"), llava_model(seed=1), prompt=OTHER) == (OTHER, OTHER)

    def test_one_of_two_families(self, tmp_path: Path) -> None:
        chat, data = save(tmp_path / "chat"), tiny.caption_dataset(4, 1)
        run = trainer(tmp_path / "a", tiny.captioner_model(), data, reference_model=str(tmp_path / "chat"))
        assert run.reference is not None and prompt_of(run.reference.captioner) == PROMPT
        options = {"reference_prompt": OTHER}
        run = trainer(tmp_path / "b", tiny.captioner_model(), data, options, reference_model=str(tmp_path / "chat"))
        assert run.reference is not None and prompt_of(run.reference.captioner) == OTHER
        plain: dict[str, Any] = {
            "processing_class": llava_processing(),
            "reference_model": tiny.captioner_model(),
            "reference_processing_class": tiny.processing(),
        }
        run = trainer(tmp_path / "c", chat.model, data, {"prompt": PROMPT}, **plain)
        assert prompt_of(run.captioner) == PROMPT
        assert not isinstance(run.reference.captioner.processor, PromptProcessor)
        with pytest.raises(ValueError, match=r"reference_prompt='a' was given, but the reference_model, a VisionEnc"):
            trainer(tmp_path / "d", chat.model, data, {"reference_prompt": "a"}, **plain)

    def test_a_prompt_for_a_target_that_takes_none(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"prompt='a' was given, but the model, a Vision.*reference_prompt for"):
            trainer(tmp_path, options={"prompt": "a"})

    def test_a_prompt_for_a_copy(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"reference_prompt='a' was given without a reference_model"):
            trainer(tmp_path, options={"reference_prompt": "a"})
