"""Every family of captioners: the same claims, each against the few naive lines of a user of the model alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor

from hf_contrastive_caption.captioners import CaptionBatch, Captioner, caption_batch, captioner_for
from hf_contrastive_caption.captioners.pairs import PairScorer
from hf_contrastive_caption.captioners.registry import takes_prompt
from hf_contrastive_caption.evaluation.retrieval.self_retrieval import self_retrieval
from hf_contrastive_caption.generation import caption_images
from hf_contrastive_caption.loading import load_processing
from hf_contrastive_caption.reference import AdapterReference
from tests import tiny
from tests.captioners.naive import gradients, relative_difference
from tests.families import FAMILIES, Family
from tests.training import logged, trainer

IMAGE_INDEX = (0, 2, 1, 0, 0, 2, 3, 0)  # image 4 of the five has no caption

every_family = pytest.mark.parametrize("family", FAMILIES, ids=str)


def captioner_of(family: Family, model: Any = None, **options: Any) -> Captioner:
    model = family.model(0.0) if model is None else model
    return captioner_for(model, family.processing(), **{**dict(family.options), **options})


def inputs_of(captioner: Captioner, n: int = 5) -> dict[str, Tensor]:
    return captioner.processor.process_images(tiny.images(n))


def one(inputs: dict[str, Tensor], image: int) -> dict[str, Tensor]:
    return {name: value[image : image + 1] for name, value in inputs.items()}


def split(captions: CaptionBatch) -> list[tuple[Tensor, int]]:
    sentences = captions["input_ids"].split(captions["lengths"].tolist())
    return list(zip(sentences, captions["image_index"].tolist(), strict=True))


def naive(family: Family, model: Any, inputs: dict[str, Tensor], captions: CaptionBatch) -> Tensor:
    """Log-probability of each caption token, one forward per caption, (n_tokens,)."""
    scores = []
    for ids, image in split(captions):
        logits = family.logits(model, one(inputs, image), ids)
        scores.append(logits.float().log_softmax(-1)[torch.arange(len(ids)), ids])
    return torch.cat(scores)


def naive_captions(family: Family, model: Any, inputs: dict[str, Tensor], captions: CaptionBatch) -> Tensor:
    tokens = naive(family, model, inputs, captions).split(captions["lengths"].tolist())
    return torch.stack([caption.sum() for caption in tokens])


def greedy(family: Family, model: Any, inputs: dict[str, Tensor], longest: int) -> str:
    """A caption of one image, a forward for each token."""
    model.eval()
    ids: list[int] = []
    while len(ids) < longest and tiny.EOS not in ids:
        with torch.no_grad():  # what stands in the place of the token to come does not matter
            ids.append(int(family.logits(model, inputs, torch.tensor([*ids, tiny.PAD]))[-1].argmax()))
    text: str = family.tokenizer().decode(ids, skip_special_tokens=True)
    return text


def own_hooks(model: Any) -> list[str]:
    """Names of the package's hooks that are left in a model; transformers has some of its own."""
    hooks = [
        hook
        for module in model.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    ]
    return [hook.__qualname__ for hook in hooks if hook.__module__.startswith("hf_contrastive_caption")]


@every_family
class TestScores:
    @pytest.mark.parametrize("packing", ["auto", "repeated"])
    def test_equal_one_by_one_from_images_and_from_states(self, family: Family, packing: Any) -> None:
        captioner = captioner_of(family, packing=packing)
        model, inputs, captions = captioner.model, inputs_of(captioner), tiny.captions(IMAGE_INDEX)
        captioner.verify()
        assert captioner.layout == (family.layout if packing == "auto" else "repeated")
        assert captioner.head == "fused"
        with torch.no_grad():
            expected = naive(family, model, inputs, captions)
            tokens = captioner.token_log_probs(model, inputs, captions)
            states = captioner.encode(inputs)
            from_states = captioner.token_log_probs(model, states, captions)
        torch.testing.assert_close(tokens, expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(from_states, expected, rtol=0, atol=1e-4)
        assert all(len(value) == 5 for value in states.values())
        assert captioner.encode(states) is states
        assert naive_captions(family, model, inputs, captions).std() > 10  # far from uniform, so that errors show
        assert not own_hooks(model)

    def test_equal_the_models_own_loss(self, family: Family) -> None:
        captioner = captioner_of(family)
        inputs, captions = inputs_of(captioner), tiny.captions(IMAGE_INDEX)
        with torch.no_grad():
            scores = captioner.log_probs(captioner.model, inputs, captions)
            for score, (ids, image) in zip(scores, split(captions), strict=True):
                loss = family.loss(captioner.model, one(inputs, image), ids)
                assert -score.item() == pytest.approx(loss.item() * len(ids), abs=1e-4)

    @pytest.mark.parametrize("packing", ["auto", "repeated"])
    def test_gradients_equal_one_by_one(self, family: Family, packing: Any) -> None:
        captioner = captioner_of(family, packing=packing)
        model, inputs, captions = captioner.model, inputs_of(captioner), tiny.captions(IMAGE_INDEX)
        expected = gradients(model, naive_captions(family, model, inputs, captions))
        ours = gradients(model, captioner.log_probs(model, inputs, captions))
        assert relative_difference(ours, expected) < 1e-4

    def test_gradients_from_states_equal_those_with_a_frozen_encoder(self, family: Family) -> None:
        captioner = captioner_of(family)
        model, inputs, captions = captioner.model, inputs_of(captioner), tiny.captions(IMAGE_INDEX)
        assert (captioner.vision is not None) == family.vision
        for name, weight in (captioner.vision or model).named_parameters():
            weight.requires_grad_(captioner.vision is None and not name.startswith(family.before_states))
        expected = gradients(model, naive_captions(family, model, inputs, captions))
        ours = gradients(model, captioner.log_probs(model, captioner.encode(inputs), captions))
        assert relative_difference(ours, expected) < 1e-4

    def test_no_log_probability_depends_on_later_tokens(self, family: Family) -> None:
        captioner = captioner_of(family)
        captioner.verify()
        inputs = inputs_of(captioner, 1)
        ids = [7, 8, 9, 10, 11, tiny.EOS]
        changed = [*ids[:3], 20, *ids[4:]]
        both = caption_batch([ids, changed], [0, 0])
        with torch.no_grad():
            before, after = captioner.token_log_probs(captioner.model, inputs, both).split(6)
        torch.testing.assert_close(before[:3], after[:3], rtol=0, atol=1e-5)
        assert ((before[3:] - after[3:]).abs() > 1e-2).all()

    def test_bfloat16_is_finite_and_near(self, family: Family) -> None:
        captioner = captioner_of(family, family.model(0.0).bfloat16())
        inputs, captions = inputs_of(captioner), tiny.captions(IMAGE_INDEX)
        half = {name: value.bfloat16() if value.is_floating_point() else value for name, value in inputs.items()}
        with torch.no_grad():
            scores = captioner.log_probs(captioner.model, half, captions)
            expected = naive_captions(family, captioner.model, half, captions)
        assert scores.dtype == torch.float32
        assert ((scores - expected).abs() / captions["lengths"]).max() < 0.2

    def test_gradient_checkpointing_changes_nothing(self, family: Family) -> None:
        captioner = captioner_of(family)
        model, inputs, captions = captioner.model, inputs_of(captioner), tiny.captions(IMAGE_INDEX)
        captioner.make_deterministic()
        model.train()
        expected = gradients(model, captioner.log_probs(model, inputs, captions))
        model.gradient_checkpointing_enable({"use_reentrant": False})
        assert relative_difference(gradients(model, captioner.log_probs(model, inputs, captions)), expected) < 1e-5


@every_family
class TestPairs:
    def test_all_captions_against_all_images(self, family: Family) -> None:
        captioner = captioner_of(family)
        inputs = inputs_of(captioner, 3)
        stem = [7, 8, 9, 10]
        sentences = [[*stem[:n], *end, tiny.EOS] for n in (1, 2, 4) for end in ([], [20], [21, 22])]
        scorer = PairScorer(captioner, sentences)
        assert scorer.plan.method == ("prefix tries" if family.tries else "rows")
        captions = caption_batch(
            [ids for _ in range(3) for ids in sentences], [i for i in range(3) for _ in sentences]
        )
        with torch.no_grad():
            expected = naive_captions(family, captioner.model, inputs, captions).view(3, -1)
        torch.testing.assert_close(scorer.scores(inputs), expected, rtol=0, atol=1e-4)
        assert expected.std(0).mean() > 0.1  # the image is seen

    def test_self_retrieval(self, family: Family) -> None:
        captioner = captioner_of(family)
        images = tiny.images(6)
        result = self_retrieval(captioner, images, k=(1, 3), resamples=10, progress=False, max_new_tokens=6)
        captions = caption_batch(captioner.processor.tokenize(result.captions).input_ids, range(6))
        with torch.no_grad():
            own = naive_captions(family, captioner.model, inputs_of(captioner, 6), captions)
        torch.testing.assert_close(torch.tensor(result.scores.diagonal()).float(), own, rtol=0, atol=1e-4)


@every_family
class TestGeneration:
    def test_greedy_captions_take_the_likeliest_token_each_time(self, family: Family) -> None:
        captioner = captioner_of(family)
        model, images, inputs = captioner.model, tiny.images(4), inputs_of(captioner, 4)
        expected = [greedy(family, model, one(inputs, number), 8) for number in range(4)]
        assert len(set(expected)) > 1
        for batch_size in (1, 4):
            options = {"num_beams": 1, "max_new_tokens": 8, "batch_size": batch_size}
            assert caption_images(model, captioner.processor, images, **options) == expected

    def test_saved_and_loaded_again(self, family: Family, tmp_path: Path) -> None:
        captioner = captioner_of(family)
        images = tiny.images(2)
        captions = caption_images(captioner.model, captioner.processor, images, max_new_tokens=6)
        captioner.model.save_pretrained(tmp_path)
        captioner.processor.save_pretrained(tmp_path)
        model = type(captioner.model).from_pretrained(tmp_path)
        whole = takes_prompt(model)
        again = captioner_for(model, load_processing(str(tmp_path), whole=whole), **dict(family.options))
        assert caption_images(again.model, again.processor, images, max_new_tokens=6) == captions
        inputs, batch = inputs_of(captioner, 2), tiny.captions([0, 1, 1])
        with torch.no_grad():
            scores = captioner.log_probs(captioner.model, inputs, batch)
            torch.testing.assert_close(again.log_probs(again.model, inputs, batch), scores, rtol=0, atol=1e-5)


@every_family
class TestTraining:
    def test_two_training_forwards_are_equal_with_dropout(self, family: Family) -> None:
        captioner = captioner_of(family, family.model(0.3))
        inputs, captions = inputs_of(captioner), tiny.captions(IMAGE_INDEX)
        captioner.model.train()
        rates = captioner.make_deterministic()
        assert rates
        first, second = (captioner.log_probs(captioner.model, inputs, captions) for _ in range(2))
        assert torch.equal(first, second)
        captioner.model.eval()
        torch.testing.assert_close(captioner.log_probs(captioner.model, inputs, captions), first, rtol=0, atol=1e-5)

    def test_weights_that_are_left_get_a_gradient(self, family: Family) -> None:
        captioner = captioner_of(family)
        captioner.freeze_unused()
        captioner.log_probs(captioner.model, inputs_of(captioner), tiny.captions(IMAGE_INDEX)).sum().backward()
        trained = {name: weight for name, weight in captioner.model.named_parameters() if weight.requires_grad}
        assert not [name for name, weight in trained.items() if weight.grad is None]
        assert len(trained) > 40

    def test_the_loss_falls_and_the_margin_grows(self, family: Family, tmp_path: Path) -> None:
        run = train(family, tmp_path, {"max_steps": 14, "learning_rate": 2e-3})
        losses, margins = logged(run, "loss"), logged(run, "margin")
        assert losses[0] == pytest.approx(1.3862944, abs=1e-3)
        assert losses[-1] < 1.0
        assert margins[-1] > 1.0

    def test_adapters_off_is_the_reference(self, family: Family, tmp_path: Path) -> None:
        model = family.model(0.0)
        before = captioner_of(family, family.model(0.0))
        lora = LoraConfig(r=4, target_modules=family.adapt, init_lora_weights=True)
        run = train(family, tmp_path, {"max_steps": 6, "learning_rate": 1e-2}, model=model, peft_config=lora)
        assert isinstance(run.reference, AdapterReference)
        assert logged(run, "loss")[0] == pytest.approx(1.3862944, abs=1e-3)
        inputs, captions = inputs_of(before, 2), tiny.captions([0, 1, 1])
        with torch.no_grad():
            expected = before.log_probs(before.model, inputs, captions)
            ours = run.captioner.log_probs(run.captioner.model, inputs, captions)
            with run.captioner.model.disable_adapter():
                off = run.captioner.log_probs(run.captioner.model, inputs, captions)
        torch.testing.assert_close(off, expected, rtol=0, atol=1e-4)
        assert (ours - expected).abs().max() > 0.1

    def test_a_shared_frozen_encoder(self, family: Family, tmp_path: Path) -> None:
        options = {"max_steps": 2, "freeze_vision_encoder": True}
        if not family.vision:
            with pytest.raises(ValueError, match="has no vision encoder that could be run without the caption"):
                train(family, tmp_path, options)
            return
        run = train(family, tmp_path / "own", options, model=family.model(0.0))
        assert run.reference.shares_vision
        cached = {**options, "cache_vision_states": True, "precomputed_dir": str(tmp_path / "states")}
        again = train(family, tmp_path / "cached", cached, model=family.model(0.0))
        assert logged(again, "loss") == pytest.approx(logged(run, "loss"), abs=1e-4)


def train(family: Family, folder: Path, options: dict[str, Any], *, model: Any = None, **kwargs: Any) -> Any:
    run = trainer(
        folder,
        family.model(0.0) if model is None else model,
        tiny.caption_dataset(4, 1),
        {**dict(family.options), **options},
        processing_class=family.processing(),
        **kwargs,
    )
    run.train()
    return run
