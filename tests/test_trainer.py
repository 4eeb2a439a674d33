"""The trainer: what it optimises, what it logs, what it saves."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    TrainerCallback,
    VisionEncoderDecoderModel,
)

from hf_contrastive_caption import (
    ContrastiveCaptionTrainer,
)
from hf_contrastive_caption.loading import restore_weights
from tests import tiny
from tests.training import arguments, logged, trainer


@pytest.mark.parametrize("noise_ratio", [1.0, 3.0])
def test_the_first_loss_is_that_of_equal_models(tmp_path: Path, noise_ratio: float) -> None:
    run = trainer(tmp_path, options={"noise_ratio": noise_ratio, "max_steps": 1})
    run.train()
    assert logged(run, "loss")[0] == pytest.approx(math.log(1 + noise_ratio) + math.log(1 + 1 / noise_ratio), abs=1e-5)
    first = run.state.log_history[0]
    assert first["margin"] == pytest.approx(0.0, abs=1e-4)
    assert first["positive_log_ratio"] == pytest.approx(0.0, abs=1e-4)


def test_training_lowers_the_loss_and_widens_the_margin(tmp_path: Path) -> None:
    run = trainer(tmp_path, options={"max_steps": 30, "learning_rate": 3e-3, "per_device_train_batch_size": 16})
    run.train()
    assert logged(run, "loss")[-1] < 0.8
    assert logged(run, "margin")[-1] > 2.0
    assert logged(run, "ranked_first")[-1] > 0.6


def test_evaluation_is_over_rows_and_does_not_count_padding(tmp_path: Path) -> None:
    data, other = tiny.caption_dataset(7), tiny.captioner_model(seed=1)
    results = []
    for batch_size in (1, 4):
        options = {"per_device_eval_batch_size": batch_size}
        run = trainer(tmp_path, eval_dataset=data, reference_model=copy.deepcopy(other), options=options)
        results.append(run.evaluate())
    for name in ("eval_loss", "eval_margin", "eval_ranked_first", "eval_positive_log_prob", "eval_negative_log_prob"):
        assert results[0][name] == pytest.approx(results[1][name], abs=1e-4)
    assert results[0]["eval_margin"] == pytest.approx(
        results[0]["eval_positive_log_ratio"] - results[0]["eval_negative_log_ratio"], abs=1e-6
    )


def test_a_reference_against_itself_ranks_by_chance(tmp_path: Path) -> None:
    run = trainer(tmp_path, eval_dataset=tiny.caption_dataset(8), options={"num_negatives": 3, "packing": "repeated"})
    metrics = run.evaluate()
    assert metrics["eval_loss"] == pytest.approx(2 * math.log(2), abs=1e-6)
    assert metrics["eval_ranked_first"] == pytest.approx(1 / 4)


def test_saving_brings_everything_back(tmp_path: Path) -> None:
    run = trainer(tmp_path, options={"max_steps": 1})
    run.train()
    run.save_model(str(tmp_path / "out"))
    assert (tmp_path / "out" / "model.safetensors").exists()
    model = VisionEncoderDecoderModel.from_pretrained(tmp_path / "out")
    tokenizer, processor = (kind.from_pretrained(tmp_path / "out") for kind in (AutoTokenizer, AutoImageProcessor))
    for name, weight in run.model.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], weight, rtol=0, atol=0)
    pixels = processor(images=tiny.images(2), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels, tiny.pixel_values(2)["pixel_values"])
    assert tokenizer("a red dog")["input_ids"] == tiny.tokenizer()("a red dog")["input_ids"]
    again = ContrastiveCaptionTrainer(
        model=str(tmp_path / "out"), args=arguments(tmp_path), train_dataset=tiny.caption_dataset()
    )
    again.train()
    assert logged(again, "loss")[0] == pytest.approx(2 * math.log(2), abs=1e-5)


def test_resuming_in_mid_epoch_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "captions_per_image": 2}
    whole = trainer(tmp_path / "whole", options=options)
    whole.train()
    resumed = trainer(tmp_path / "resumed", options=options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert logged(resumed, "loss")[-4:] == logged(whole, "loss")[-4:]
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name


def test_workers_make_no_difference(tmp_path: Path) -> None:
    losses = []
    for workers, persistent in [(0, False), (2, False), (2, True)]:
        options = {
            "dataloader_num_workers": workers,
            "dataloader_persistent_workers": persistent,
            "max_steps": 6,  # four steps are one epoch
        }
        run = trainer(tmp_path, options=options)
        run.train()
        losses.append(logged(run, "loss"))
    assert losses[0] == losses[1] == losses[2]


def test_dropout_makes_no_noise_and_the_reference_stays(tmp_path: Path) -> None:
    model = tiny.captioner_model("trocr", dropout=0.3)
    run = trainer(tmp_path, model, options={"max_steps": 3})
    before = {name: weight.clone() for name, weight in run.reference.captioner.model.state_dict().items()}
    run.train()
    assert logged(run, "loss")[0] == pytest.approx(2 * math.log(2), abs=1e-5)
    for name, weight in run.reference.captioner.model.state_dict().items():
        assert torch.equal(weight, before[name])
    assert not any(weight.requires_grad for weight in run.reference.captioner.model.parameters())
    assert model.config.decoder.dropout == 0.3


def test_mle_keeps_the_dropout_and_matches_the_models_own_loss(tmp_path: Path) -> None:
    model = tiny.captioner_model(dropout=0.3)
    run = trainer(tmp_path, model, options={"objective": "mle"}, eval_dataset=tiny.caption_dataset(6))
    assert model.decoder.transformer.drop.p == 0.3
    metrics = run.evaluate()
    batch = [run.eval_dataset[row] for row in range(6)]
    batch = run.data_collator(batch)
    pieces = batch["captions"]["input_ids"].split(batch["captions"]["lengths"].tolist())
    model.eval()
    losses = [
        model(pixel_values=image[None], labels=ids[None]).loss.item() * len(ids)
        for image, ids in zip(batch["images"]["pixel_values"], pieces, strict=True)
    ]
    assert metrics["eval_loss"] == pytest.approx(sum(losses) / sum(map(len, pieces)), rel=1e-5)
    assert run.reference is None


def test_gradient_checkpointing_gives_the_same_losses(tmp_path: Path) -> None:
    losses = []
    for checkpointing in (False, True):
        run = trainer(tmp_path, options={"gradient_checkpointing": checkpointing, "max_steps": 3})
        run.train()
        losses.append(logged(run, "loss"))
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_bf16_autocast_scores_in_float32(tmp_path: Path) -> None:
    run = trainer(tmp_path, options={"bf16": True, "max_steps": 4})
    run.train()
    assert logged(run, "loss")[0] == pytest.approx(2 * math.log(2), abs=1e-5)  # both sides round alike
    assert all(weight.dtype == torch.float32 for weight in run.model.parameters())


class NotANumber(TrainerCallback):
    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step == 1:
            model.decoder.transformer.ln_f.bias.data.fill_(math.nan)


def test_a_loss_that_is_not_finite_stops_and_names_the_batch(tmp_path: Path) -> None:
    run = trainer(tmp_path, callbacks=[NotANumber()])
    with pytest.raises(FloatingPointError, match=r"in step 2, rows \[\d+, \d+, \d+, \d+\]; captions without"):
        run.train()


def with_a_broken_image() -> Dataset:
    data = tiny.caption_dataset(8).cast_column("image", tiny.ImageFeature(decode=False))
    rows = [dict(row) for row in data]
    rows[3]["image"] = {"bytes": b"not an image", "path": None}
    return Dataset.from_list(rows, features=data.features).cast_column("image", tiny.ImageFeature())


def test_the_count_of_skipped_images_goes_on_after_a_resume(tmp_path: Path) -> None:
    options = {"on_bad_image": "skip", "max_steps": 8, "logging_steps": 3, "save_strategy": "steps", "save_steps": 1}
    whole = trainer(tmp_path, data=with_a_broken_image(), options=options)
    whole.train()
    assert logged(whole, "skipped_images") == [2, 3]  # a broken image in every second step
    for step in (2, 3, 5):
        again = trainer(tmp_path, data=with_a_broken_image(), options=options)
        again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert logged(again, "skipped_images") == [2, 3]


def test_skipped_images_are_counted(tmp_path: Path) -> None:
    broken = with_a_broken_image()
    run = trainer(tmp_path, data=broken, options={"on_bad_image": "skip", "max_steps": 4})
    run.train()
    assert logged(run, "skipped_images")[-1] == 2  # two epochs of eight rows
    with pytest.raises(Exception, match="Row 3"):
        trainer(tmp_path, data=broken, options={"max_steps": 4}).train()


def test_a_stream_trains_and_evaluates(tmp_path: Path) -> None:
    stream = tiny.caption_dataset(12).to_iterable_dataset(num_shards=2)
    run = trainer(
        tmp_path,
        data=stream,
        eval_dataset={"streamed": stream, "stored": tiny.caption_dataset(6)},
        options={"max_steps": 5, "reservoir_size": 20},  # three steps are one pass
    )
    run.train()
    assert len(logged(run, "loss")) == 5
    assert logged(run, "loss")[0] == pytest.approx(2 * math.log(2), abs=1e-5)
    metrics = run.evaluate()
    assert 0 < metrics["eval_streamed_loss"] < 5 and 0 < metrics["eval_stored_loss"] < 5
    with pytest.raises(ValueError, match="max_steps"):
        trainer(tmp_path, data=stream, options={"max_steps": -1})


def test_the_best_model_is_brought_back(tmp_path: Path) -> None:
    run = trainer(
        tmp_path,
        eval_dataset=tiny.caption_dataset(6),
        options={
            "max_steps": 4,
            "eval_strategy": "steps",
            "eval_steps": 1,
            "save_strategy": "best",
            "load_best_model_at_end": True,
            "metric_for_best_model": "eval_margin",
            "greater_is_better": True,
            "learning_rate": 3e-3,
        },
    )
    run.train()
    assert run.state.best_metric == pytest.approx(max(logged(run, "eval_margin")))
    assert run.evaluate()["eval_margin"] == pytest.approx(run.state.best_metric, abs=1e-4)


def test_augmentation_is_for_training_only_and_keyed(tmp_path: Path) -> None:
    seen: list[float] = []

    def augment(image: Any) -> Any:
        seen.append(torch.rand(()).item())
        return image.transpose(0)

    losses = []
    for _ in range(2):
        run = trainer(tmp_path, eval_dataset=tiny.caption_dataset(4), augment=augment, options={"max_steps": 1})
        run.train()
        losses.append(logged(run, "positive_log_prob"))
        before = len(seen)
        run.evaluate()
        assert len(seen) == before
    half = len(seen) // 2  # a batch more than was used: the loader reads ahead
    assert losses[0] == losses[1] and half >= 4 and seen[:half] == seen[half:]
    plain = trainer(tmp_path, options={"max_steps": 1})
    plain.train()
    assert logged(plain, "positive_log_prob") != losses[0]


def test_dropout_comes_back_after_training(tmp_path: Path) -> None:
    model = tiny.captioner_model(dropout=0.3)
    run = trainer(tmp_path, model, options={"max_steps": 1})
    assert model.decoder.transformer.drop.p == 0.3  # a trainer that was only made changes nothing
    run.train()
    assert model.decoder.transformer.drop.p == 0.3


def test_a_swin_encoder_in_bfloat16_passes_the_noise_check(tmp_path: Path) -> None:
    run = trainer(tmp_path, tiny.captioner_model(encoder="swin").bfloat16(), options={"max_steps": 1})
    run.train()
    assert len(logged(run, "loss")) == 1


class Noisy(torch.nn.Module):
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values + 0.1 * torch.randn_like(values) if self.training else values


def test_noise_that_no_rate_switches_off_is_an_error(tmp_path: Path) -> None:
    model = tiny.captioner_model()
    model.decoder.transformer.drop = Noisy()
    with pytest.raises(ValueError, match=r"differ by \d.*still draws random numbers"):
        trainer(tmp_path, model).train()


def test_a_damaged_checkpoint_is_an_error(tmp_path: Path) -> None:
    model = tiny.captioner_model()
    model.save_pretrained(tmp_path / "whole")
    file = tmp_path / "whole" / "model.safetensors"
    tensors = load_file(file)
    tensors.pop(next(name for name in tensors if name.endswith("mlp.c_fc.weight")))
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing keys: decoder\.transformer\.h\.0\.mlp\.c_fc\.weight"):
        restore_weights(model, str(tmp_path / "whole"))
    with pytest.raises(ValueError, match="no checkpoint folder"):
        trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "nowhere"))


def test_an_evaluation_of_nothing_is_an_error(tmp_path: Path) -> None:
    data = tiny.caption_dataset(3).cast_column("image", tiny.ImageFeature(decode=False))
    rows = [{**row, "image": {"bytes": b"no image %d" % place, "path": None}} for place, row in enumerate(data)]
    broken = Dataset.from_list(rows, features=data.features).cast_column("image", tiny.ImageFeature())
    run = trainer(tmp_path, options={"on_bad_image": "skip"})
    with pytest.raises(ValueError, match="none of its images opens"):
        run.evaluate(broken)
    assert run.evaluate(tiny.caption_dataset(3))["eval_skipped_images"] == 0


@pytest.mark.parametrize("workers", [0, 1])
def test_each_data_set_that_is_evaluated_is_itself(tmp_path: Path, workers: int) -> None:
    first, second = tiny.caption_dataset(8, seed=1), tiny.caption_dataset(8, seed=2)
    options = {"dataloader_num_workers": workers, "dataloader_persistent_workers": bool(workers)}
    run = trainer(tmp_path, options=options, eval_dataset=first)
    found = [run.evaluate(data)["eval_positive_log_prob"] for data in (None, second, None, first)]
    assert found[0] == found[2] == found[3]
    assert abs(found[1] - found[0]) > 1
    by_name = run.evaluate({"one": first, "two": second})
    assert [by_name[f"eval_{name}_positive_log_prob"] for name in ("one", "two")] == found[:2]


def test_arguments_of_an_evaluation_are_those_of_its_captions(tmp_path: Path) -> None:
    options = {"eval_captions": 6, "eval_retrieval_pool": 0}
    run = trainer(tmp_path, options=options, eval_dataset=tiny.caption_dataset(8, seed=1))
    seen = []
    pool = run._evaluation_pool(run.eval_dataset)
    evaluate = type(pool).evaluate

    def noted(self: Any, *args: Any, **arguments: Any) -> Any:
        seen.append(arguments)
        return evaluate(self, *args, **arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(pool), "evaluate", noted)
        short = run.evaluate(num_beams=1, max_new_tokens=2)
        long = run.evaluate(max_length=7)
        run.args.generation_max_length = 3
        run.evaluate()
    assert seen == [{"num_beams": 1, "max_new_tokens": 2}, {"max_length": 7}, {"max_new_tokens": 3}]
    assert short["eval_distinct_share"] <= 1 and long["eval_distinct_share"] <= 1


def test_deepspeed_does_not_round_what_is_no_image(tmp_path: Path) -> None:
    options = {"precompute_reference": True, "precomputed_dir": str(tmp_path / "ahead")}
    run = trainer(tmp_path / "run", options=options)
    run.prepare_start(None)
    batch = next(iter(run.get_train_dataloader()))
    run.is_deepspeed_enabled = True
    placed = run._prepare_inputs(batch)
    for name in ("reference_log_probs", "weights"):
        assert placed[name].dtype == torch.float32 and torch.equal(placed[name], batch[name])


def test_a_training_after_a_resumed_one_does_not_expect_equal_models(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"save_strategy": "steps", "save_steps": 1, "learning_rate": 1e-2}
    trainer(tmp_path, options=options).train()
    run = trainer(tmp_path, options=options)
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    run.train()
    assert "should be equal" not in caplog.text and not logged(run, "start_log_ratio")
