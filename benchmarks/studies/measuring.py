"""What is measured of the captioner of one unit, in the form in which it is stored."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PrinterCallback

from hf_contrastive_caption import ContrastiveCaptionConfig, ContrastiveCaptionTrainer, evaluate_captioner
from hf_contrastive_caption.captioners import Captioner
from hf_contrastive_caption.evaluation.images import EvaluationImages, evaluation_images
from hf_contrastive_caption.evaluation.metrics.meteor import meteor_available
from hf_contrastive_caption.evaluation.report import CaptionerReport
from hf_contrastive_caption.evaluation.retrieval.ranking import Ranks
from hf_contrastive_caption.evaluation.retrieval.self_retrieval import self_retrieval
from hf_contrastive_caption.loading import load_captioner
from studies.files import Place
from studies.plan import NUM_NEGATIVES, Unit, reference_row

PER_IMAGE = ("cider_d", "rouge_l", "invented")
"""Stored for each image, for intervals and paired comparisons, besides the ranks that all recalls are made of."""

CORPUS = ("bleu_4", "meteor", "distinct_captions", "distinct_share", "vocabulary", "mean_length", "cider_btw")
LEARNED = ("loss", "margin", "ranked_first", "ranked_first_by_log_prob", "positive_log_prob", "negative_log_prob")
DIGITS = 4


def measure(unit: Unit, place: Place, data: Mapping[str, Dataset]) -> dict[str, Any]:
    """Caption the images of the unit's split and measure both sides, and what was learned against the reference."""
    captioner = load_captioner(place.captioner(unit))
    own = unit.row.objective == "reference"
    reference = captioner if own else load_captioner(_reference(unit, place))
    images = evaluation_images(data[unit.split])
    cache = place.captioner(unit) / "_cache"
    report = evaluate_captioner(
        captioner,
        images,
        k=(1,),
        metrics=("cider_d", "bleu", "rouge_l", *(("meteor",) if meteor_available() is None else ())),
        batch_size=place.scale.eval_batch_size,
        cache_dir=cache,
        progress=False,
    )
    ranks = {"own": report.ranks}
    if not own:  # a captioner that shifts its own scores can find its images without saying more
        ranks["reference"] = _ranks_by(reference, images, report, cache)
    return {
        "images": len(images),
        "pool": report.images,
        "decoding": report.decoding,
        "learned": _learned(captioner, reference, own, unit, place, data[unit.split]),
        "corpus": {name: round(report[name], 6) for name in CORPUS if name in report.measures},
        "per_image": {
            name: _rounded(report.measures[name].per_image) for name in PER_IMAGE if name in report.measures
        },
        "ranks": {judge: _of_ranks(found) for judge, found in ranks.items() if found is not None},
    }


def _reference(unit: Unit, place: Place) -> Path:
    """What every row of a model is compared with: that model's own MLE reference, whatever it was tuned against."""
    return place.captioner(Unit(unit.data, reference_row(unit.row.model), unit.seed))


def _ranks_by(judge: Captioner, images: EvaluationImages, report: CaptionerReport, cache: Path) -> Ranks:
    return self_retrieval(judge, images.pool, report.captions, (1,), cache_dir=cache, progress=False).ranks


def _learned(
    captioner: Captioner, reference: Captioner, own: bool, unit: Unit, place: Place, rows: Dataset
) -> dict[str, float]:
    """Contrastive loss, margin and log-probabilities of right and wrong captions, on the same negatives for all."""
    args = ContrastiveCaptionConfig(
        output_dir=str(place.captioner(unit)),
        num_negatives=NUM_NEGATIVES,
        max_caption_tokens=place.scale.max_caption_tokens,
        per_device_eval_batch_size=place.scale.eval_batch_size,
        seed=0,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = ContrastiveCaptionTrainer(
        model=captioner.model,
        args=args,
        reference_model=None if own else reference.model,
        processing_class=captioner.processor,
    )
    trainer.remove_callback(PrinterCallback)
    found = trainer.evaluate(rows)
    return {name: round(found[f"eval_{name}"], 6) for name in LEARNED}


def _rounded(columns: tuple[np.ndarray, ...]) -> list[list[float]]:
    return [[float(f"{value:.{DIGITS}g}") for value in column] for column in columns]


def _of_ranks(ranks: Ranks) -> dict[str, list[int]]:
    """(better, equal) of each image; equal ones are few, and stand by their number."""
    equal = {str(number): int(count) for number, count in enumerate(ranks.equal) if count}
    return {"better": ranks.better.tolist(), "equal": equal}
