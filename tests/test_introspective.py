"""Introspective learning: one call of the model, no reference, fixed distractors, and what it moves."""

from __future__ import annotations

import copy
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

from hf_contrastive_caption import (
    ContrastiveCaptionDataset,
    ContrastiveCaptionTrainer,
    captioner_for,
    scenes,
)
from hf_contrastive_caption.captioners.determinism import evaluation_mode
from hf_contrastive_caption.captioners.packing import sum_by_caption
from hf_contrastive_caption.losses import introspective_loss
from hf_contrastive_caption.models import small_captioner, small_image_processor, word_level_tokenizer
from tests import recurrent, tiny
from tests.families import FAMILIES
from tests.training import arguments, logged, trainer

OPTIONS: dict[str, Any] = {"objective": "introspective", "num_negatives": 2}


def introspective(folder: Path, model: Any = None, data: Any = None, **options: Any) -> ContrastiveCaptionTrainer:
    return trainer(folder, model, data, {**OPTIONS, **options}, eval_dataset=tiny.caption_dataset(7, seed=3))


def test_the_loss_is_the_mean_of_the_naive_formula(tmp_path: Path) -> None:
    model = tiny.captioner_model()
    run = introspective(tmp_path, model, beta=0.5, captions_per_image=2)
    batch = next(iter(run.get_train_dataloader()))
    captions, model = batch["captions"], model.eval()
    pieces = captions["input_ids"].split(captions["lengths"].tolist())
    scores = []
    for labels, image in zip(pieces, captions["image_index"].tolist(), strict=True):
        loss = model(pixel_values=batch["images"]["pixel_values"][image][None], labels=labels[None]).loss
        scores.append(-loss.item() * len(labels))
    losses = []
    for own, first, second in torch.tensor(scores).view(-1, 3).tolist():
        sigmas = [1 / (1 + math.exp(-0.5 * (own - other))) for other in (first, second)]
        losses.append(-sum(map(math.log, sigmas)) / 2)
    assert len(losses) == 8
    assert run.compute_loss(run.model, batch).item() == pytest.approx(sum(losses) / 8, rel=1e-4)


def test_gradient_by_finite_differences_through_the_model(tmp_path: Path) -> None:
    """Along the gradient, in float64, with both images' paths through the weights."""
    run = introspective(tmp_path, tiny.captioner_model().double(), mle_weight=0.3)
    batch = next(iter(run.get_train_dataloader()))
    loss = run.compute_loss(run.model, batch)
    weights = [weight for weight in run.model.parameters() if weight.requires_grad]
    gradients = torch.autograd.grad(loss, weights)
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    values = []
    for step in (1e-6, -1e-6):
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                weight += step * gradient / norm
            values.append(run.compute_loss(run.model, batch).item())
            for weight, gradient in zip(weights, gradients, strict=True):
                weight -= step * gradient / norm
    assert norm > 0.1
    assert (values[0] - values[1]) / 2e-6 == pytest.approx(norm.item(), rel=1e-5)


def test_the_model_is_called_once_a_step_and_there_is_no_reference(tmp_path: Path) -> None:
    model = tiny.captioner_model(dropout=0.3)
    run = introspective(tmp_path, model, max_steps=3)
    calls = []
    handle = model.register_forward_pre_hook(lambda *args: calls.append(torch.is_grad_enabled()))
    run.train()
    handle.remove()
    assert calls.count(True) == 3  # and two without gradients, which look for noise, before the first step
    assert calls.count(False) == 2
    assert run.reference is None and model.decoder.transformer.drop.p == 0.3
    with pytest.raises(ValueError, match="objective='introspective' has no reference; compare_captioners"):
        run.compare_with_reference()


def test_a_captioner_that_does_not_look_gets_the_constant(tmp_path: Path) -> None:
    model = tiny.captioner_model()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "crossattention.c_proj" in name:
                weight.zero_()
    metrics = introspective(tmp_path, model).evaluate()
    assert metrics["eval_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert metrics["eval_image_margin"] == pytest.approx(0.0, abs=1e-5)


def test_an_evaluation_is_over_rows_and_the_same_every_time(tmp_path: Path) -> None:
    found = [introspective(tmp_path, per_device_eval_batch_size=size).evaluate() for size in (1, 4, 4)]
    for name in ("loss", "image_margin", "own_image_first", "positive_log_prob", "distractor_log_prob"):
        assert found[1][f"eval_{name}"] == found[2][f"eval_{name}"]
        assert found[0][f"eval_{name}"] == pytest.approx(found[1][f"eval_{name}"], abs=1e-4)
    margin = found[0]["eval_positive_log_prob"] - found[0]["eval_distractor_log_prob"]
    assert found[0]["eval_image_margin"] == pytest.approx(margin, abs=1e-5)


def test_resuming_in_mid_epoch_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "mle_weight": 0.1, "logging_steps": 3}
    whole = introspective(tmp_path / "whole", **options)
    whole.train()
    resumed = introspective(tmp_path / "resumed", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    for name in ("loss", "log_ratio_loss", "image_margin"):
        assert logged(resumed, name) == logged(whole, name) and len(logged(whole, name)) == 2
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name


@pytest.mark.parametrize("options", [{"dataloader_num_workers": 2}, {"packing": "repeated"}])
def test_workers_and_layouts_make_no_difference(tmp_path: Path, options: dict[str, Any]) -> None:
    plain, other = introspective(tmp_path, max_steps=4), introspective(tmp_path, max_steps=4, **options)
    plain.train()
    other.train()
    assert logged(other, "loss") == pytest.approx(logged(plain, "loss"), rel=1e-4)


def test_states_of_a_frozen_encoder_can_be_read_from_disk(tmp_path: Path) -> None:
    frozen = {"freeze_vision_encoder": True, "max_steps": 4, "captions_per_image": 2}
    plain = introspective(tmp_path, **frozen)
    cached = introspective(tmp_path, cache_vision_states=True, precomputed_dir=str(tmp_path / "states"), **frozen)
    plain.train()
    cached.train()
    assert logged(cached, "loss") == pytest.approx(logged(plain, "loss"), rel=1e-5)
    assert "encoder_hidden_states" in next(iter(cached.get_train_dataloader()))["images"]
    assert cached.evaluate()["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"], rel=1e-5)


def test_an_adapter_trains_and_is_never_switched_off(tmp_path: Path) -> None:
    run = trainer(
        tmp_path,
        options={**OPTIONS, "max_steps": 20, "learning_rate": 1e-2, "per_device_train_batch_size": 16},
        peft_config=LoraConfig(r=4, target_modules=r".*(c_attn|q_attn)", fan_in_fan_out=False),
    )
    run.train()
    assert run.reference is None
    assert sum(logged(run, "loss")[-5:]) < 0.8 * sum(logged(run, "loss")[:5])


def test_streams_and_data_sets_of_another_kind_are_refused(tmp_path: Path) -> None:
    stream = tiny.caption_dataset(8).to_iterable_dataset()
    with pytest.raises(ValueError, match="needs a data set with a length: its distractor images are fixed in advance"):
        trainer(tmp_path, data=stream, options=OPTIONS)
    processor = captioner_for(tiny.captioner_model(), tiny.processing()).processor
    for distractors, objective in ((False, "introspective"), (True, "contrastive")):
        data: Any = ContrastiveCaptionDataset(tiny.caption_dataset(8), [processor], 2, distractors=distractors)
        with pytest.raises(ValueError, match=f"distractors={not distractors}"):
            trainer(tmp_path, data=data, options={**OPTIONS, "objective": objective})
    data = ContrastiveCaptionDataset(tiny.caption_dataset(8), [processor], 2, distractors=True)
    run = trainer(tmp_path, data=data, options={**OPTIONS, "max_steps": 1})
    run.train()
    assert len(logged(run, "image_margin")) == 1


MODELS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    **{family.name: (partial(family.model, 0.0), family.processing, dict(family.options)) for family in FAMILIES},
    **{kind: (partial(recurrent.captioner_model, kind), tiny.processing, {}) for kind in recurrent.KINDS},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_family_scores_captions_for_distractors(tmp_path: Path, name: str) -> None:
    """Own images with several captions and distractors with one each, against one plain forward per pair."""
    model, processing, options = MODELS[name]
    run = trainer(
        tmp_path,
        model(),
        tiny.caption_dataset(4, 2),
        {**options, **OPTIONS, "captions_per_image": "all", "per_device_train_batch_size": 2},
        processing_class=processing(),
    )
    batch = next(iter(run.get_train_dataloader()))
    with torch.no_grad(), evaluation_mode(run.model):
        tokens = run.captioner.reference_log_probs(batch["images"], batch["captions"])
        plain = sum_by_caption(tokens, batch["captions"]["lengths"]).view(-1, 3)
        found = run.compute_loss(run.model, batch)
    assert len(plain) == 4 and (plain[:, 0] - plain[:, 1]).abs().max() > 1e-3
    assert found.item() == pytest.approx(introspective_loss(plain[:, 0], plain[:, 1:]).item(), rel=1e-3, abs=1e-4)


def test_a_data_parallel_run_looks_for_no_unused_weights(tmp_path: Path) -> None:
    assert arguments(tmp_path, objective="introspective").ddp_find_unused_parameters is False
    assert arguments(tmp_path, objective="mle").ddp_find_unused_parameters is None


@pytest.mark.slow
def test_on_scenes_captions_come_to_fit_their_own_image_better_than_others(tmp_path: Path) -> None:
    """On held-out scenes, from one start: against that start, and against as many more steps of maximum likelihood."""
    data = scenes(num_train=1500, num_validation=300, num_test=1)
    data = data.map(lambda row: {"captions": [max(row["captions"], key=len)]})  # that says the most
    tokenizer = word_level_tokenizer(captions[0] for captions in data["train"]["captions"])
    sizes = {"width": 64, "mlp": 128, "encoder_layers": 2, "decoder_layers": 1}

    def run(model: Any, steps: int, **options: Any) -> ContrastiveCaptionTrainer:
        settings = {"max_steps": steps, "per_device_train_batch_size": 64, "logging_steps": 50, "num_negatives": 1}
        made = ContrastiveCaptionTrainer(
            model=model,
            args=arguments(tmp_path, **{**settings, **options}),
            train_dataset=data["train"],
            eval_dataset=data["validation"],
            processing_class=(tokenizer, small_image_processor(64)),
        )
        made.train()
        return made

    def evaluated(model: Any) -> dict[str, float]:
        return run(model, 1, objective="introspective", learning_rate=1e-12).evaluate()

    start = run(small_captioner(tokenizer, **sizes), 150, objective="mle", learning_rate=2e-3).model
    control = run(copy.deepcopy(start), 200, objective="mle").model
    before, beside = evaluated(copy.deepcopy(start)), evaluated(control)
    after = run(start, 200, objective="introspective", mle_weight=1.0).evaluate()
    assert after["eval_image_margin"] > before["eval_image_margin"] + 1
    assert after["eval_image_margin"] > 1.5 * beside["eval_image_margin"]
    assert after["eval_own_image_first"] > max(before["eval_own_image_first"], beside["eval_own_image_first"]) + 0.05
    assert after["eval_log_ratio_loss"] < min(before["eval_loss"], beside["eval_loss"]) - 0.05
