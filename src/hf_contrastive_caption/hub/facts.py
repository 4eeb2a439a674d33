"""What a trainer knows of the model that it made, as plain values for the model card."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import try_to_load_from_cache
from peft import PeftModel
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG_NAME
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames
from transformers.utils import CONFIG_NAME

from hf_contrastive_caption.captioners import Captioner
from hf_contrastive_caption.config import ContrastiveCaptionConfig
from hf_contrastive_caption.generation import generate_arguments
from hf_contrastive_caption.loading import is_repository
from hf_contrastive_caption.prompting import PromptProcessor


class Origin(NamedTuple):
    """Where a model or a data set came from.

    Attributes:
        name: What it is called; of a local folder only the last part. ``None`` for one that was made in memory.
        repository: Its id on the Hub, if it came from there.
        revision: The commit, if it is known.
    """

    name: str | None
    repository: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class Usage:
    """How the model is used with transformers alone.

    Attributes:
        model_class: Class of the model.
        imports: A module that must be imported first, for models that transformers does not have.
        question: What a chat model is asked, as its template writes it; ``None`` for a family without prompts.
        special_tokens: Whether the tokenizer adds its own special tokens to the question.
        behind_prompt: Whether ``generate`` gives the caption behind the prompt.
        arguments: Arguments of ``generate``.
    """

    model_class: str
    imports: str | None
    question: str | None
    special_tokens: bool
    behind_prompt: bool
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class TrainingFacts:
    """What is known of a training.

    Attributes:
        captioner: The classes that the captioner consists of.
        adapter: The kind of PEFT adapter, if it is one.
        tuned: What was tuned.
        base: What an adapter is put on; of a whole model, what was tuned.
        reference: What it was tuned against; ``None`` for maximum likelihood.
        reference_description: How the reference was held.
        reference_digest: A hash of all that the reference computes with at the start, if a training has begun.
        reference_replaced: Whether the reference was replaced while training.
        objective: ``"contrastive"``, ``"introspective"`` or ``"mle"``.
        loss_type: Which loss of log-ratios, for the first of them.
        loss_in_words: What the loss is, in Markdown; ``None`` for maximum likelihood.
        loss: The settings of the loss, in words and values.
        settings: The other settings.
        steps: Steps that were taken.
        data: The training data.
        data_license: Its licence, if the data set knows it.
        prompt: What a chat model is asked.
        usage: How it is used.
        log_history: What was logged.
        versions: Of the libraries.
    """

    captioner: str
    adapter: str | None
    tuned: Origin
    base: Origin
    reference: Origin | None
    reference_description: str | None
    reference_digest: str | None
    reference_replaced: bool
    objective: str
    loss_type: str
    loss_in_words: str | None
    loss: Sequence[tuple[str, Any]]
    settings: Sequence[tuple[str, Any]]
    steps: int
    data: Origin
    data_license: str | None
    prompt: str | None
    usage: Usage
    log_history: Sequence[Mapping[str, Any]] = field(repr=False)
    versions: Sequence[tuple[str, str]]


def model_origin(captioner: Captioner, given: Any, model_init_kwargs: Any = None) -> Origin:
    """Where a captioner came from.

    Args:
        captioner: The captioner.
        given: What the user passed: a name or a model.
        model_init_kwargs: With what a name was loaded.
    """
    by_name = isinstance(given, (str, os.PathLike))
    name = os.fspath(given) if by_name else captioner.base_model.name_or_path
    if not name:
        return Origin(None)
    return _origin_of(name, model_init_kwargs if isinstance(model_init_kwargs, dict) else {}, by_name)


def base_origin(captioner: Captioner, tuned: Origin) -> Origin:
    """What a captioner's adapter is put on, as it says itself; what was tuned if it says nothing or there is none.

    Args:
        captioner: The captioner.
        tuned: What was tuned: an adapter itself, where the training of one went on.
    """
    if not isinstance(captioner.model, PeftModel):
        return tuned
    name = captioner.model.active_peft_config.base_model_name_or_path
    return _origin_of(name, {}, False) if name else tuned


def _origin_of(name: str, kwargs: dict[str, Any], knows_revision: bool) -> Origin:
    if is_repository(name) and not os.path.exists(name):
        # A folder that has moved looks like a repository; what came from the Hub is in its cache.
        where = {"cache_dir": kwargs.get("cache_dir"), "revision": kwargs.get("revision")}
        for file in (CONFIG_NAME, ADAPTER_CONFIG_NAME):
            cached = try_to_load_from_cache(name, file, **where)
            if isinstance(cached, str):
                # Of a model that was passed as an object nobody knows from which revision it was loaded.
                return Origin(name, name, Path(cached).parent.name if knows_revision else None)
    return Origin(os.path.basename(os.path.abspath(name)))


def data_origin(dataset: Any) -> tuple[Origin, str | None]:
    """Where a data set of the library datasets came from, and its licence."""
    info = getattr(dataset, "info", None)
    if info is None:
        return Origin(None), None
    for address in info.download_checksums or ():
        found = re.match(r"hf://datasets/([^@]+)@(\w+)/", address)
        if found:
            return Origin(found[1], found[1], found[2]), info.license or None
    return Origin(None), info.license or None


def usage_of(captioner: Captioner) -> Usage:
    """How a captioner is used with transformers alone."""
    base, processor = captioner.base_model, captioner.processor
    module = type(base).__module__
    text = base.config.get_text_config(decoder=True)
    prompted = processor if isinstance(processor, PromptProcessor) else None
    return Usage(
        model_class=type(base).__name__,
        imports=None if module.startswith("transformers.") else module.rpartition(".")[0] or module,
        question=None if prompted is None else prompted.question,
        special_tokens=prompted is not None and not prompted.starts_itself(),
        behind_prompt=prompted is not None and not getattr(text, "is_encoder_decoder", False),
        arguments=captioner.own_arguments(generate_arguments(captioner, {})),
    )


_LOSSES = {
    "contrastive": "The loss is the mean of −ln σ(βG − ln ν) over captions of the image and, weighted with ν, of "
    "−ln(1 − σ(βG − ln ν)) over K captions of other images, which are drawn anew all the time.",
    "dpo": "The loss is the mean of −ln σ(β(G − G′)) over captions of the image, each with K captions of other "
    "images, whose log-ratios G′ are and which are drawn anew all the time (direct preference optimisation, arXiv "
    "2305.18290).",
    "infonce": "The loss is the mean of −ln softmax(βG) over captions of the image, the softmax being over such a "
    "caption and K captions of other images, which are drawn anew all the time (InfoNCE, arXiv 1807.03748 and "
    "2402.05369).",
    "nca": "The loss is the mean of −ln σ(βG) over captions of the image, plus the mean of −ln σ(−βG) over such a "
    "caption and K captions of other images, which are drawn anew all the time (NCA, arXiv 2402.05369).",
}


def loss_in_words(args: ContrastiveCaptionConfig) -> str | None:
    """What the loss is, in Markdown; ``None`` for maximum likelihood."""
    if args.objective == "mle":
        return None
    if args.objective == "introspective":
        words = (
            "D is ln p(caption, given the image) less ln p(the same caption, given another image), both of the tuned "
            "model. The loss is the mean of −ln σ(βD) over captions, each with K other images, which are fixed in "
            "advance."
        )
    else:
        words = "G is the log-ratio ln p(caption, given the image) of the tuned model less that of the reference. "
        words += _LOSSES[args.loss_type]
    if args.mle_weight:
        words += " To it is added, weighted, the negative log-likelihood per token of captions of the image."
    return words


def loss_settings(args: ContrastiveCaptionConfig) -> list[tuple[str, Any]]:
    """The settings of the loss."""
    settings: list[tuple[str, Any]] = []
    if args.objective == "introspective":
        settings = [("other images for each caption, K", args.num_negatives), ("scale of the ratio, β", args.beta)]
    elif args.objective == "contrastive":
        settings = [("negatives for each caption, K", args.num_negatives), ("scale of the log-ratio, β", args.beta)]
        if args.loss_type == "contrastive":
            settings.append(("noise ratio, ν", args.noise_ratio))
            settings.append(("terms of the loss", args.loss_terms))
        if args.negatives != "shuffled":
            settings.append(("negatives of images that are near", _near_share(args)))
    if args.mle_weight:
        settings.append(("weight of the likelihood of captions", args.mle_weight))
    return settings


def _near_share(args: ContrastiveCaptionConfig) -> str:
    if args.negatives == "nearest":
        return "all"
    grows = ", growing to it" if args.hard_negative_schedule == "linear" else ""
    return f"{100 * args.hard_negative_share:g} %{grows}"


def _replacement(args: ContrastiveCaptionConfig) -> str | None:
    """When the reference is replaced, and how far."""
    if args.reference_refresh is None:
        return None
    when = args.reference_refresh if isinstance(args.reference_refresh, str) else f"{args.reference_refresh} steps"
    return (
        when
        if args.reference_mixup == 1
        else f"{when}, by {args.reference_mixup:g} of the model and the rest of itself"
    )


def training_settings(args: ContrastiveCaptionConfig, epochs: float | None) -> list[tuple[str, Any]]:
    """The settings of the training, apart from the loss."""
    accumulated, processes = args.gradient_accumulation_steps, args.world_size
    whole = args.per_device_train_batch_size * accumulated * processes
    named = {
        "images in a step": f"{whole} ({args.per_device_train_batch_size} × {accumulated} accumulation steps × "
        f"{processes} processes)",
        "captions of an image in an epoch": args.captions_per_image,
        "epochs": None if epochs is None else f"{epochs:.3g}",
        "learning rate": f"{args.learning_rate:g}, {SchedulerType(args.lr_scheduler_type).value}",
        "weight decay": args.weight_decay,
        "optimizer": OptimizerNames(args.optim).value,
        "precision": "bfloat16 autocast" if args.bf16 else "float16 autocast" if args.fp16 else "float32",
        "vision encoder": "frozen" if args.freeze_vision_encoder else None,
        "reference replaced every": _replacement(args),
        "seed": args.seed,
    }
    return [(name, value) for name, value in named.items() if value is not None]


def library_versions() -> list[tuple[str, str]]:
    """Versions of the libraries that a model was made with."""
    return [(name, version(name)) for name in ("hf-contrastive-caption", "transformers", "torch", "datasets", "peft")]


def adapter_kind(captioner: Captioner) -> str | None:
    """The kind of adapter that a captioner's model has, ``"LORA"`` for one."""
    if not isinstance(captioner.model, PeftModel):
        return None
    return str(captioner.model.active_peft_config.peft_type.value)
