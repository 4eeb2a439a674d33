"""What is refused among the training arguments, and why: each error says a way out."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields
from numbers import Real
from typing import TYPE_CHECKING, Any, get_args

from hf_contrastive_caption.evaluation.score import LOWER_IS_BETTER, MEASURES, needs_retrieval, recall_number
from hf_contrastive_caption.losses import LossTerms, LossType

if TYPE_CHECKING:
    from hf_contrastive_caption.config import ContrastiveCaptionConfig

_NO_LOGITS = "logits are never kept here; `evaluate()` reports the loss, the log-ratios and the ranking by itself"
_NOISE = "it adds noise to the target's scores, and the log-ratio to the reference must be free of it"
_GENERATION = "with eval_captions=N every evaluation generates captions for N images and measures them"
_TOKENS = "a batch has no `input_ids` of its own; captions are ragged"
_ORDER = "the order of an epoch is a keyed permutation, so that a resume and any number of processes see the same rows"

REFUSED_OPTIONS: dict[str, str] = {
    "auto_find_batch_size": "the batch size decides how an epoch is padded, and the paper's balance of positives and "
    "negatives rests on it; lower per_device_train_batch_size and raise gradient_accumulation_steps instead",
    "average_tokens_across_devices": "the loss is always normalised over all processes",
    "batch_eval_metrics": _NO_LOGITS,
    "bf16_full_eval": "it would cast the target and not the reference; bf16=True runs both under autocast",
    "dataloader_drop_last": "every image counts once in an epoch, and the loss of a last, smaller step is divided by "
    "what is in it",
    "eval_accumulation_steps": "nothing is accumulated: " + _NO_LOGITS,
    "eval_do_concat_batches": _NO_LOGITS,
    "eval_use_gather_object": _NO_LOGITS,
    "fp16_full_eval": "it would cast the target and not the reference; fp16=True runs both under autocast",
    "generation_config": "captions of evaluations are written as generation_num_beams and generation_max_length say; "
    "evaluate(generation_config=...) takes one",
    "include_for_metrics": _NO_LOGITS,
    "include_num_input_tokens_seen": _TOKENS,
    "label_names": "captions are not labels: they come as a CaptionBatch",
    "label_smoothing_factor": "a smoothed loss is not a log-probability, so it has no log-ratio",
    "length_column_name": "what is drawn anew in every epoch has no column of lengths; they are looked up where they "
    "are needed",
    "liger_kernel_config": "see use_liger_kernel",
    "neftune_noise_alpha": _NOISE,
    "parallelism_config": "tensor, context and sequence parallelism split captions over processes, and the scores are "
    "summed on one; data parallelism (DDP) works",
    "predict_with_generate": _GENERATION,
    "prediction_loss_only": "evaluation never returns more than metrics",
    "remove_unused_columns": "the image and caption columns are found by the data pipeline, which drops the others",
    "sortish_sampler": _ORDER,
    "torch_compile": "hooks that are set during a call are not seen by compiled code, and scoring relies on them",
    "torch_compile_backend": "see torch_compile",
    "torch_compile_mode": "see torch_compile",
    "use_liger_kernel": "its fused loss replaces the model's forward; here the projection is fused with the "
    "log-probabilities already",
}
"""Inherited options that cannot work here, and why. Each is refused when it is set to anything but its default."""

_BETTER_WHEN_LOWER = ("negative_log_ratio", "negative_log_prob", "distractor_log_prob", "skipped_images", "runtime")
"""Metrics of an evaluation, of captions excepted, that are better when they are lower; also of one of several sets."""

_OFF: tuple[Any, ...] = (None, False, 0, "no", [])
"""What means "do not" where not doing it is the default; a command line parser may give another of them."""


def check_config(args: ContrastiveCaptionConfig) -> None:
    """Check all arguments before anything is loaded.

    Raises:
        ValueError: For an argument that is out of its range, cannot work here, or has no meaning beside the others.
    """
    _check_refused(args)
    _check_choices(args)
    _check_numbers(args)
    _check_objective(args)
    _check_negatives(args)
    _check_reference(args)
    _check_evaluation(args)


def greater_is_better(metric: str) -> bool | None:
    """Whether a higher value of ``metric_for_best_model`` is a better one; ``None`` where ``Trainer`` knows it."""
    name = _name_of(metric)
    measure = _measure_of(name)
    if measure is not None and measure != "score":
        return measure not in LOWER_IS_BETTER
    return False if name.endswith(_BETTER_WHEN_LOWER) else None  # Trainer's default for all but losses is True


def _check_refused(args: ContrastiveCaptionConfig) -> None:
    defaults = {f.name: f.default for f in fields(args)}
    defaults |= {f.name: f.default_factory() for f in fields(args) if f.default_factory is not MISSING}
    for name, reason in REFUSED_OPTIONS.items():
        value = getattr(args, name)
        off = any(value is nothing or value == nothing for nothing in _OFF)
        if name in defaults and value != defaults[name] and not (off and defaults[name] in _OFF):
            raise ValueError(f"{name}={getattr(args, name)!r} cannot be used for contrastive captioning: {reason}")


def _check_choices(args: ContrastiveCaptionConfig) -> None:
    choices = {
        "objective": ("contrastive", "introspective", "mle"),
        "loss_type": get_args(LossType),
        "loss_terms": get_args(LossTerms),
        "negatives": ("shuffled", "nearest", "mixed"),
        "hard_negative_schedule": ("constant", "linear"),
        "hard_negative_source": ("images", "captions"),
        "hard_negative_index": ("exact", "faiss"),
        "on_bad_image": ("raise", "skip"),
        "packing": ("auto", "packed", "repeated"),
        "stream_sharding": ("auto", "shards", "replicate"),
        "train_sampling_strategy": ("random", "sequential", "group_by_length"),
    }
    for name, allowed in choices.items():
        if getattr(args, name) not in allowed:
            raise ValueError(f"{name} is {getattr(args, name)!r}, but must be one of {', '.join(allowed)}")


def _check_numbers(args: ContrastiveCaptionConfig) -> None:
    per_image = args.captions_per_image
    if isinstance(per_image, str) and per_image != "all":
        raise ValueError(f"captions_per_image is {per_image!r}, but must be a whole number or 'all'")
    smallest = {
        "eval_captions": 0,
        "eval_retrieval_pool": 0,
        "num_negatives": 1,
        "hard_negative_pool": 1,
        "captions_per_image": 1,
        "reservoir_size": 2,
        "max_caption_tokens": 2,
        "max_logits_bytes": 1,
    }
    for name, least in smallest.items():
        value = getattr(args, name)
        if value is None or (name == "captions_per_image" and value == "all"):
            continue
        if type(value) is not int or value < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, but is {value!r}")
    of_negatives = ("hard_negative_share", "hard_negative_threshold")
    for name in ("noise_ratio", "beta", "mle_weight", *of_negatives, "reference_mixup"):
        value = getattr(args, name)
        if isinstance(value, bool) or not isinstance(value, Real):
            raise ValueError(f"{name} must be a number, but is {value!r}")
    for name in ("noise_ratio", "beta"):
        if not 0 < getattr(args, name) < float("inf"):
            raise ValueError(f"{name} must be above 0 and finite, but is {getattr(args, name)}; the paper uses 1.0")


def _check_objective(args: ContrastiveCaptionConfig) -> None:
    """Settings of the loss that mean something for another objective or loss only."""
    if not 0 <= args.mle_weight < float("inf"):
        raise ValueError(f"mle_weight must be at least 0 and finite, but is {args.mle_weight}; 0 leaves it out")
    if args.objective == "mle" and args.mle_weight:
        raise ValueError(
            f"mle_weight={args.mle_weight} adds the likelihood of the positives to another loss, and "
            "objective='mle' is that likelihood already; leave it out"
        )
    if args.objective != "contrastive" and args.loss_type != "contrastive":
        raise ValueError(
            f"loss_type={args.loss_type!r} is a loss of log-ratios to a reference, which "
            f"objective={args.objective!r} has not; leave it out, or use objective='contrastive'"
        )
    # Maximum likelihood takes them without a use for them: a control is the run beside it with another objective.
    other = args.loss_type if args.objective == "contrastive" else args.objective
    for name, unset in {"noise_ratio": 1.0, "loss_terms": "both"}.items():
        if other not in ("contrastive", "mle") and getattr(args, name) != unset:
            option = "loss_type" if args.objective == "contrastive" else "objective"
            raise ValueError(
                f"{name}={getattr(args, name)!r} belongs to loss_type='contrastive' and means nothing with "
                f"{option}={other!r}; leave it out"
            )


def _check_negatives(args: ContrastiveCaptionConfig) -> None:
    """Options of hard negatives, which have no meaning without them."""
    if not 0 < args.hard_negative_share <= 1:
        raise ValueError(f"hard_negative_share must be above 0 and at most 1, but is {args.hard_negative_share}")
    if not 0 <= args.hard_negative_threshold <= 10:
        raise ValueError(f"hard_negative_threshold is {args.hard_negative_threshold}, but CIDEr-D is between 0 and 10")
    for option in fields(args):
        needed = ("mixed",) if option.name == "hard_negative_share" else ("nearest", "mixed")
        if not option.name.startswith("hard_negative_") or getattr(args, option.name) == option.default:
            continue
        if args.negatives not in needed:
            raise ValueError(
                f"{option.name}={getattr(args, option.name)!r} has no meaning with negatives={args.negatives!r}; "
                f"set negatives to {' or '.join(map(repr, needed))}, or leave it out"
            )
    words = args.hard_negative_source == "captions" and args.hard_negative_encoder is None
    if words and args.hard_negative_index == "faiss":
        raise ValueError(
            "hard_negative_index='faiss' is for vectors of encoders, and hard_negative_source='captions' compares "
            "words; leave the index out, or name a dual encoder as hard_negative_encoder"
        )
    if args.negatives != "shuffled" and args.objective != "contrastive":
        raise ValueError(
            f"objective={args.objective!r} has no negatives, so negatives={args.negatives!r} means nothing; leave "
            "it out, or use objective='contrastive'"
        )


def _check_reference(args: ContrastiveCaptionConfig) -> None:
    """Ways to hold a reference that exclude each other."""
    refresh = args.reference_refresh
    if refresh is not None and refresh != "epoch" and (type(refresh) is not int or refresh < 1):
        raise ValueError(
            f"reference_refresh is {refresh!r}, but must be 'epoch', a number of steps of at least 1, or None"
        )
    if not 0 < args.reference_mixup <= 1:
        raise ValueError(f"reference_mixup must be above 0 and at most 1, but is {args.reference_mixup}")
    if refresh is None and args.reference_mixup != 1:
        raise ValueError(
            f"reference_mixup={args.reference_mixup} says how far a replacement of the reference goes, but there "
            "is none; set reference_refresh to 'epoch' or a number of steps"
        )
    if refresh is not None and args.precompute_reference:
        raise ValueError(
            "reference_refresh and precompute_reference exclude each other: a reference that follows the target "
            "has no scores before the training. Leave one of them out"
        )
    if args.cache_vision_states and not args.freeze_vision_encoder:
        raise ValueError(
            "cache_vision_states=True keeps the states of the vision encoder, which change as long as it trains; "
            "set freeze_vision_encoder=True as well"
        )
    ahead = args.precompute_reference or args.cache_vision_states or args.negatives != "shuffled"
    if args.precomputed_dir is not None and not ahead:
        raise ValueError(
            f"precomputed_dir={args.precomputed_dir!r} is where scores, image states and neighbours are kept, but "
            "neither precompute_reference nor cache_vision_states is set, and negatives are shuffled"
        )
    for name in ("precompute_reference", "reference_refresh"):
        if args.objective != "contrastive" and getattr(args, name):
            raise ValueError(f"objective={args.objective!r} has no reference, so {name} has no meaning; leave it out")


def _check_evaluation(args: ContrastiveCaptionConfig) -> None:
    """Captions must be generated for what is measured of them."""
    if args.eval_retrieval_pool is not None and args.eval_retrieval_pool > args.eval_captions:
        raise ValueError(
            f"eval_retrieval_pool={args.eval_retrieval_pool} images, but only eval_captions={args.eval_captions} "
            "are captioned; raise eval_captions, or leave eval_retrieval_pool out to use all of them"
        )
    if not args.eval_captions and (args.generation_num_beams or args.generation_max_length):
        raise ValueError(
            "generation_num_beams and generation_max_length say how captions are generated at an evaluation, but "
            "eval_captions is 0; set eval_captions=500, say, or leave them out"
        )
    if args.eval_captions == 1:
        raise ValueError("eval_captions=1: one image is always found; caption at least 2, better 500")
    _check_best_metric(args)
    for name in args.score_weights:
        _check_measure(args, "eval_score", name)


def _check_best_metric(args: ContrastiveCaptionConfig) -> None:
    given = _name_of(args.metric_for_best_model or "")
    if re.search(r"[+*@]| - ", given):
        raise ValueError(
            f"metric_for_best_model is {args.metric_for_best_model!r}; give the sum as eval_score={given!r} and "
            "set metric_for_best_model='score' (recall is called recall_at_1)"
        )
    best = _measure_of(given)
    if best == "score":
        if args.eval_score is None:
            raise ValueError("metric_for_best_model='score' needs eval_score, such as 'cider_d + 2 * recall_at_1'")
    elif best is not None:
        _check_measure(args, "metric_for_best_model", best)


def _check_measure(args: ContrastiveCaptionConfig, option: str, name: str) -> None:
    if not args.eval_captions:
        raise ValueError(f"{option} takes {name}, which needs eval_captions, such as eval_captions=500")
    pool = args.eval_captions if args.eval_retrieval_pool is None else args.eval_retrieval_pool
    if needs_retrieval(name) and pool <= (recall_number(name) or 1):
        raise ValueError(
            f"{option} takes {name}, but eval_retrieval_pool={pool}: it must be above the number of images that "
            "count as found"
        )


def _name_of(metric: str) -> str:
    return metric.removeprefix("eval_")


def _measure_of(metric: str) -> str | None:
    """The measure of captions that a metric is, also of one of several data sets: ``birds_median_rank``."""
    found = re.search(rf"(?:^|_)({'|'.join(MEASURES)}|recall_at_[1-9]\d*|score)$", metric)
    return found[1] if found else None
