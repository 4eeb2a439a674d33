"""Every objective and loss: exact however a batch is split, and equal to its formula on plain forwards."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback

from hf_contrastive_caption import ContrastiveCaptionTrainer
from tests import tiny
from tests.training import logged, trainer

OBJECTIVES: dict[str, dict[str, Any]] = {
    "contrastive": {},
    "dpo": {"loss_type": "dpo"},
    "infonce": {"loss_type": "infonce"},
    "nca": {"loss_type": "nca"},
    "with likelihood": {"mle_weight": 2.0},
    "introspective": {"objective": "introspective"},
    "introspective with likelihood": {"objective": "introspective", "mle_weight": 2.0},
    "mle": {"objective": "mle"},
}
KINDS = [(name, torch.float64, 1e-12) for name in OBJECTIVES]
KINDS += [(name, torch.float32, 1e-6) for name in ("contrastive", "mle")]


class Gradients(TrainerCallback):
    """Keeps the gradients of every optimizer step."""

    def __init__(self) -> None:
        self.steps: list[Tensor] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        gradients = [weight.grad.flatten() for weight in model.parameters() if weight.grad is not None]
        self.steps.append(torch.cat(gradients).double())


def gradients_of(folder: Path, dtype: torch.dtype, **options: Any) -> tuple[list[Tensor], ContrastiveCaptionTrainer]:
    """The gradients of three steps of plain gradient descent with a rate of 0: every step sees the same weights."""
    kept = Gradients()
    settings = {
        "max_steps": 3,
        "learning_rate": 1e-12,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "captions_per_image": "all",
        **options,
    }
    run = trainer(
        folder,
        tiny.captioner_model().to(dtype),
        tiny.caption_dataset(10),
        settings,
        reference_model=None if "objective" in options else tiny.captioner_model(seed=1).to(dtype),
        callbacks=[kept],
    )
    run.train()
    return kept.steps, run


@pytest.mark.parametrize(("objective", "dtype", "tolerance"), KINDS)
def test_batch_size_times_accumulation_gives_the_same_gradient(
    tmp_path: Path, dtype: torch.dtype, tolerance: float, objective: str
) -> None:
    """Ten rows in steps of four: the last step of the epoch has two rows and padding."""
    found = {}
    for batch_size, accumulation in [(4, 1), (2, 2), (1, 4)]:
        split = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": accumulation}
        steps, run = gradients_of(tmp_path, dtype, **split, **OBJECTIVES[objective])
        found[batch_size] = (steps, logged(run, "loss"))
    for batch_size in (2, 1):
        for step in range(3):
            expected, got = found[4][0][step], found[batch_size][0][step]
            assert expected.norm() > 0.1
            assert (got - expected).norm() / expected.norm() <= tolerance
        assert found[batch_size][1] == pytest.approx(found[4][1], rel=1e-5)


@pytest.mark.parametrize("objective", [{}, {"loss_type": "nca"}, {"objective": "introspective"}])
def test_the_likelihood_is_added_as_maximum_likelihood_has_it(tmp_path: Path, objective: dict[str, Any]) -> None:
    """The gradient with it is the gradient without it plus so many times that of ``objective="mle"``."""
    alone, run = gradients_of(tmp_path, torch.float64, **objective)
    likelihood, mle = gradients_of(tmp_path, torch.float64, objective="mle")
    together, both = gradients_of(tmp_path, torch.float64, mle_weight=0.7, **objective)
    for one, other, added in zip(alone, likelihood, together, strict=True):
        assert (one + 0.7 * other - added).norm() / added.norm() <= 1e-9  # a step of 1e-12 moves the weights
    expected = [one + 0.7 * other for one, other in zip(logged(run, "loss"), logged(mle, "loss"), strict=True)]
    assert logged(both, "loss") == pytest.approx(expected, rel=1e-6)
    assert logged(both, "log_ratio_loss") == pytest.approx(logged(run, "loss"), rel=1e-6)
    assert not logged(run, "log_ratio_loss")


@pytest.mark.parametrize("objective", ["with likelihood", "introspective with likelihood"])
def test_an_evaluation_adds_the_terms_up_over_rows(tmp_path: Path, objective: str) -> None:
    found = []
    for batch_size in (1, 4, 7):
        options = {"per_device_eval_batch_size": batch_size, **OBJECTIVES[objective]}
        run = trainer(tmp_path, eval_dataset=tiny.caption_dataset(7), options=options)
        found.append(run.evaluate())
    tokens = sum(len(text.split()) + 1 for text in captions_of_an_evaluation(run))  # with the end token
    likelihood = -7 * found[0]["eval_positive_log_prob"] / tokens
    for metrics in found:
        assert metrics["eval_loss"] == pytest.approx(metrics["eval_log_ratio_loss"] + 2 * likelihood, rel=1e-5)
        assert metrics["eval_loss"] == pytest.approx(found[0]["eval_loss"], rel=1e-5)


def captions_of_an_evaluation(run: ContrastiveCaptionTrainer) -> list[str]:
    """The positives of the rows of the evaluation data."""
    data: Any = run.eval_dataset
    drawn, _ = data.draw(torch.arange(len(data)).numpy(), 0)
    return list(data.caption_texts(drawn[:, 0]))


@pytest.mark.parametrize(
    ("loss_type", "expected"), [("dpo", math.log(2)), ("infonce", math.log(4)), ("nca", 2 * math.log(2))]
)
def test_the_first_loss_of_the_relatives_is_known_too(tmp_path: Path, loss_type: str, expected: float) -> None:
    """With three negatives."""
    options = {"loss_type": loss_type, "max_steps": 1, "packing": "repeated"}
    run = trainer(tmp_path, eval_dataset=tiny.caption_dataset(6), options=options)
    metrics = run.evaluate()
    assert metrics["eval_loss"] == pytest.approx(expected, abs=1e-5)
    assert metrics["eval_ranked_first"] == pytest.approx(0.25) and metrics["eval_margin"] == pytest.approx(
        0.0, abs=1e-4
    )
    run.train()
    assert logged(run, "loss") == pytest.approx([expected], abs=1e-5)


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def naive(loss_type: str, ratios: list[float]) -> float:
    """A loss of the scaled log-ratios of a positive and three negatives; where there is a noise ratio it is 2."""
    if loss_type == "contrastive":
        h = [1 / (1 + 2.0 * math.exp(-ratio)) for ratio in ratios]
        return -math.log(h[0]) - sum(math.log(1 - value) for value in h[1:]) / 3
    if loss_type == "dpo":
        return -sum(math.log(sigma(ratios[0] - other)) for other in ratios[1:]) / 3
    if loss_type == "infonce":
        return -math.log(math.exp(ratios[0]) / sum(map(math.exp, ratios)))
    return -math.log(sigma(ratios[0])) - sum(math.log(sigma(-ratio)) for ratio in ratios) / 4


@pytest.mark.parametrize("loss_type", ["contrastive", "dpo", "infonce", "nca"])
def test_the_loss_is_the_mean_over_positives_of_the_naive_formula(tmp_path: Path, loss_type: str) -> None:
    model, other = tiny.captioner_model(), tiny.captioner_model(seed=1)
    naive_target, naive_reference = copy.deepcopy(model).eval(), copy.deepcopy(other).eval()
    options = {"beta": 0.5, "loss_type": loss_type, **({"noise_ratio": 2.0} if loss_type == "contrastive" else {})}
    run = trainer(tmp_path, model, reference_model=other, options=options)
    batch = next(iter(run.get_train_dataloader()))
    captions, total = batch["captions"], 0.0
    pieces = captions["input_ids"].split(captions["lengths"].tolist())

    def log_ratio(number: int) -> float:
        scores = []
        for scorer in (naive_target, naive_reference):
            image = batch["images"]["pixel_values"][captions["image_index"][number]][None]
            labels = pieces[number][None]
            scores.append(-scorer(pixel_values=image, labels=labels).loss.item() * labels.shape[1])
        return 0.5 * (scores[0] - scores[1])

    for positive in range(0, len(pieces), 4):
        total += naive(loss_type, [log_ratio(positive + k) for k in range(4)])
    assert run.compute_loss(run.model, batch).item() == pytest.approx(total / 4, rel=1e-4)
