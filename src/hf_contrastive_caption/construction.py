"""From what a user passes to the trainer to what it works with, checked."""

from __future__ import annotations

import dataclasses
import logging
import os
from functools import partial
from typing import Any

import datasets
import torch

from hf_contrastive_caption.captioners import Captioner, captioner_for
from hf_contrastive_caption.captioners.registry import prompt_or, takes_prompt
from hf_contrastive_caption.config import ContrastiveCaptionConfig
from hf_contrastive_caption.data import CaptionData, ContrastiveCaptionDataset, ContrastiveCaptionStream
from hf_contrastive_caption.data.dataset import warn_of_cut_captions
from hf_contrastive_caption.data.examples import Augmentation
from hf_contrastive_caption.data.stream import uneven_shards_message
from hf_contrastive_caption.evaluation.in_training import EvaluationPool
from hf_contrastive_caption.loading import load_parts
from hf_contrastive_caption.losses import RELATIVES, contrastive_caption_loss
from hf_contrastive_caption.objectives import (
    ContrastiveObjective,
    IntrospectiveObjective,
    LogRatioLoss,
    MLEObjective,
    Objective,
)
from hf_contrastive_caption.precision import warn_of_slow_autocast, without_autocast
from hf_contrastive_caption.processing import CaptionProcessor
from hf_contrastive_caption.reference import PrecomputedReference, Reference
from hf_contrastive_caption.sharding import check_trainable

logger = logging.getLogger(__name__)

_REFUSED_ARGUMENTS = {
    "compute_loss_func": "the objective is the loss; see ContrastiveCaptionConfig(objective=...)",
    "compute_metrics": "it takes logits, and none are kept; evaluate() reports loss, log-ratios and ranking by itself",
    "data_collator": "captions are ragged and need the library's own collator; augment images with augment=",
    "model_init": "the reference is a copy of the model as passed, so the model must be there from the start",
    "preprocess_logits_for_metrics": "no logits are kept",
}
"""Arguments of ``Trainer`` that cannot work here, and why."""


def refuse_arguments(arguments: dict[str, Any]) -> None:
    """Answer arguments of ``Trainer`` that cannot work with the reason, and unknown ones with a TypeError."""
    for name, value in arguments.items():
        if name not in _REFUSED_ARGUMENTS:
            raise TypeError(f"ContrastiveCaptionTrainer got an unexpected argument {name!r}")
        if value is not None:
            raise ValueError(f"{name} cannot be used with ContrastiveCaptionTrainer: {_REFUSED_ARGUMENTS[name]}")


def check_arguments(
    args: ContrastiveCaptionConfig, model: Any, reference_model: Any, reference_processing_class: Any
) -> None:
    """Check what can be checked before anything is loaded."""
    if not isinstance(args, ContrastiveCaptionConfig):
        raise TypeError(f"args must be a ContrastiveCaptionConfig, but is a {type(args).__name__}")
    if args.n_gpu > 1:
        raise ValueError(
            f"{args.n_gpu} GPUs are visible to one process, for which Trainer would use nn.DataParallel, and that "
            "cuts the ragged captions of a batch in the wrong places. Start one process per GPU with `accelerate "
            "launch` or `torchrun`, or make one GPU visible with CUDA_VISIBLE_DEVICES=0"
        )
    if reference_model is not None and reference_model is model and not isinstance(model, (str, os.PathLike)):
        raise ValueError(
            "model and reference_model are the same object: the reference would be trained along and every log-ratio "
            "would stay 0. Leave reference_model out to get a frozen copy"
        )
    if reference_model is None and args.reference_prompt is not None:
        raise ValueError(
            f"reference_prompt={args.reference_prompt!r} was given without a reference_model; a reference that is a "
            "copy of the model is asked what the model is asked, which prompt says"
        )
    if reference_model is None and reference_processing_class is not None:
        raise ValueError(
            "reference_processing_class was given without a reference_model; a reference that is a copy of the model "
            "reads captions and images as the model does"
        )
    if args.model_init_kwargs and not isinstance(model, (str, os.PathLike)):
        raise ValueError(
            f"model_init_kwargs={args.model_init_kwargs!r} say how a model is loaded by name, but model is an object; "
            "load it with them, or give its name"
        )
    warn_of_slow_autocast(args)


def make_captioner(
    model: Any, processing_class: Any, args: ContrastiveCaptionConfig, argument: str, asked: str | None = None
) -> Captioner:
    """The captioner of a model given as an object or by name.

    Args:
        model: The model.
        processing_class: Its tokenizer and image processor; not needed for a name.
        args: The training arguments.
        argument: What the user gave it as, ``"model"`` or ``"reference_model"``.
        asked: What the target is asked, for a reference that has no prompt of its own.
    """
    trains = argument == "model"
    if isinstance(model, (str, os.PathLike)):
        arguments = args.model_init_kwargs if trains and isinstance(args.model_init_kwargs, dict) else {}
        model, processing_class = load_parts(model, processing_class=processing_class, trainable=trains, **arguments)
    if isinstance(model, torch.nn.Module):
        without_autocast(model)  # of a trainer that had it before
    if trains:
        check_trainable(model)
    if processing_class is None:
        raise ValueError(
            f"{argument} was given as an object, so its tokenizer and image processor must be given too: pass "
            "processing_class=(tokenizer, image_processor), or a processor that has both, or give the model by name"
        )
    captioner = captioner_for(
        model,
        processing_class,
        prompt=_prompt(model, processing_class, args, argument, asked),
        packing=args.packing,  # type: ignore[arg-type]  # checked by the config
        max_logits_bytes=args.max_logits_bytes,
    )
    limit, longest = captioner.processor.max_caption_tokens, args.max_caption_tokens
    if longest is not None and limit is not None and longest > limit and trains:
        logger.warning("max_caption_tokens=%d is more than the decoder's %d positions, which hold", longest, limit)
    if longest is not None and (limit is None or longest < limit):
        captioner.processor = dataclasses.replace(captioner.processor, max_caption_tokens=longest)
    return captioner


def _prompt(
    model: Any, processing_class: Any, args: ContrastiveCaptionConfig, argument: str, asked: str | None
) -> str | None:
    """The prompt of the target or the reference, as ``captioner_for`` takes it."""
    option = "prompt" if argument == "model" else "reference_prompt"
    given: str | None = getattr(args, option)
    if given is not None and not takes_prompt(model):
        raise ValueError(
            f"{option}={given!r} was given, but the {argument}, a {type(model).__name__}, writes captions without "
            f"being asked; leave {option} out (prompt is for the model, reference_prompt for the reference)"
        )
    return given if argument == "model" else prompt_or(given, model, processing_class, asked)


def distinct_processors(target: Captioner, reference: Reference | None) -> list[CaptionProcessor]:
    """The target's processor, and the reference's where it reads captions or images in another way."""
    own = target.processor
    if reference is None:
        return [own]
    if isinstance(reference, PrecomputedReference):
        return [own]  # its scores come with the data
    other = reference.processor
    return [own] if own.reads_like(other) else [own, other]


def make_objective(reference: Reference | None, args: ContrastiveCaptionConfig) -> Objective:
    """What is trained for, by ``objective`` and ``loss_type``."""
    if args.objective == "introspective":
        return IntrospectiveObjective(args.num_negatives, args.beta, args.mle_weight)
    if reference is None:
        return MLEObjective()
    loss: LogRatioLoss
    if args.loss_type == "contrastive":
        loss = partial(
            contrastive_caption_loss,
            noise_ratio=args.noise_ratio,
            beta=args.beta,
            terms=args.loss_terms,  # type: ignore[arg-type]  # checked by the config
        )
    else:
        loss = partial(RELATIVES[args.loss_type], beta=args.beta)
    return ContrastiveObjective(reference, args.num_negatives, loss, args.mle_weight)


def make_data(
    dataset: Any,
    processors: list[CaptionProcessor],
    num_negatives: int,
    args: ContrastiveCaptionConfig,
    augment: Augmentation | None,
    *,
    evaluation: bool,
) -> CaptionData | None:
    """Turn a data set with images and captions into one with positives and negatives."""
    if dataset is None:
        return None
    if isinstance(dataset, (ContrastiveCaptionDataset, ContrastiveCaptionStream)):
        _check_data(dataset, processors, num_negatives, args)
        _check_options_of(dataset, args, augment, evaluation=evaluation)
        if isinstance(dataset, ContrastiveCaptionStream):
            _check_stream(dataset, args, evaluation=evaluation)
        # Without what another trainer has attached to it.
        return dataset.detached() if isinstance(dataset, ContrastiveCaptionDataset) else dataset
    options: dict[str, Any] = {
        "num_negatives": num_negatives,
        "seed": args.draw_seed,
        "captions_per_image": 1 if evaluation else args.captions_per_image,
        "image_column": args.image_column,
        "caption_columns": args.caption_columns,
        "image_id_column": args.image_id_column,
        "augment": augment,
        "on_bad_image": args.on_bad_image,
        "evaluation": evaluation,
    }
    if args.objective == "introspective":
        options["distractors"] = True
        _refuse_streams(dataset)
    if isinstance(dataset, datasets.IterableDataset):
        reading = {"pad_to": args.eval_batch_size * args.world_size} if evaluation else _stream_reading(dataset, args)
        return ContrastiveCaptionStream(dataset, processors, reservoir_size=args.reservoir_size, **reading, **options)
    with args.main_process_first(desc="tokenizing captions"):
        data = ContrastiveCaptionDataset(dataset, processors, num_proc=args.dataset_num_proc, **options)
    warn_of_cut_captions(*data.n_cut)
    return data


def _stream_reading(dataset: datasets.IterableDataset, args: ContrastiveCaptionConfig) -> dict[str, Any]:
    """How a process reads a stream in training: all of it, or its own shards; round and round in either case."""
    _check_order_of_stream(args)
    if args.world_size == 1 or args.stream_sharding == "replicate":
        return {"repeat": True}
    if dataset.num_shards % args.world_size == 0:
        return {"repeat": True, "process_index": args.process_index, "num_processes": args.world_size}
    message = uneven_shards_message(dataset.num_shards, args.world_size)
    if args.stream_sharding == "shards":
        raise ValueError(f"stream_sharding='shards' is not possible: {message} Or set stream_sharding='auto'.")
    if args.process_index == 0:
        logger.warning("every process reads the whole training stream and keeps its share of it. %s", message)
    return {"repeat": True}


def _check_order_of_stream(args: ContrastiveCaptionConfig) -> None:
    if args.train_sampling_strategy != "random":
        raise ValueError(
            f"train_sampling_strategy={args.train_sampling_strategy!r} needs a data set with a length, and a stream "
            "is read as it comes; leave it out"
        )


def _check_data(
    data: CaptionData, processors: list[CaptionProcessor], num_negatives: int, args: ContrastiveCaptionConfig
) -> None:
    """Whether a data set made by the user fits the trainer."""
    introspective = args.objective == "introspective"
    if introspective:
        _refuse_streams(data)
    if isinstance(data, ContrastiveCaptionDataset) and data.distractors != introspective:
        raise ValueError(
            f"objective={args.objective!r} takes a data set {'with' if introspective else 'without'} distractor "
            f"images; make it with ContrastiveCaptionDataset(..., distractors={introspective})"
        )
    if data.num_negatives != num_negatives:
        raise ValueError(
            f"the data set draws {data.num_negatives} negatives for each positive, but objective="
            f"{args.objective!r} with num_negatives={args.num_negatives} takes {num_negatives}; make both the same"
        )
    texts = [processor.text_fingerprint() for processor in data.processors]
    if texts != [processor.text_fingerprint() for processor in processors]:
        raise ValueError(
            "the data set was made with another tokenizer, end token or longest caption than the trainer's; make "
            "it with captioner_for(model, processing_class).processor (and the reference's, if it has its own)"
        )


def _check_options_of(
    data: CaptionData, args: ContrastiveCaptionConfig, augment: Augmentation | None, *, evaluation: bool
) -> None:
    """Refuse options that a data set made by the user has answered otherwise, where they were given."""
    if augment is not None:
        raise ValueError("augment was given, and a data set that is made already; make it with augment= instead")
    if data.evaluation and not evaluation:
        raise ValueError(
            "train_dataset was made with evaluation=True, which draws the same captions and negatives in every epoch; "
            "make it without, and pass this one as eval_dataset"
        )
    answered: dict[str, Any] = {"on_bad_image": data.on_bad_image, "data_seed": data.seed}
    if not evaluation:
        answered["captions_per_image"] = data.captions_per_image
    defaults = {field.name: field.default for field in dataclasses.fields(args)}
    for name, made in answered.items():
        asked = getattr(args, name)
        if asked != defaults[name] and asked != made:
            raise ValueError(
                f"{name} is {asked!r}, but the data set was made with {made!r}, which counts; leave {name} out, or "
                f"make the data set with {name.removeprefix('data_')}={asked!r}"
            )


def _refuse_streams(dataset: Any) -> None:
    """A stream has captions to compare an image with, and no images to compare a caption with."""
    if isinstance(dataset, (datasets.IterableDataset, ContrastiveCaptionStream)):
        raise ValueError(
            "objective='introspective' needs a data set with a length: its distractor images are fixed in advance, "
            "and of a stream only captions are kept. Download the data (load_dataset without streaming=True), or use "
            "objective='contrastive'"
        )


def _check_stream(stream: ContrastiveCaptionStream, args: ContrastiveCaptionConfig, *, evaluation: bool) -> None:
    """Whether a stream made by the user is read as the trainer needs it."""
    if evaluation and stream.repeat:
        raise ValueError("the evaluation stream was made with repeat=True, so an evaluation would never end")
    if evaluation:
        whole = args.eval_batch_size * args.world_size
        if args.world_size > 1 and stream.pad_to % whole:
            raise ValueError(
                f"the evaluation stream was made with pad_to={stream.pad_to}, so that Accelerate would fill its last "
                f"batches up with rows that count twice; make it with pad_to={whole}, the rows of a batch of all "
                "processes"
            )
        return
    _check_order_of_stream(args)
    if not stream.repeat:
        raise ValueError(
            "the training stream ends after one pass, and a resume in a later one would not find its place; make it "
            "with ContrastiveCaptionStream(..., repeat=True)"
        )
    if stream.num_processes > 1 and (stream.process_index, stream.num_processes) != (
        args.process_index,
        args.world_size,
    ):
        raise ValueError(
            f"the stream was made for process {stream.process_index} of {stream.num_processes}, but this is process "
            f"{args.process_index} of {args.world_size}; make it with process_index=args.process_index and "
            "num_processes=args.world_size"
        )


def make_evaluation_pool(
    data: ContrastiveCaptionDataset, captioner: Captioner, args: ContrastiveCaptionConfig
) -> EvaluationPool:
    """The images of an evaluation data set that are captioned at every evaluation."""
    longest, limit = args.generation_max_length, captioner.processor.max_caption_tokens
    if longest is not None and limit is not None and not 0 < longest <= limit:
        raise ValueError(f"generation_max_length is {longest}, but captions have 1 to {limit} tokens here")
    columns = data.columns
    pool = args.eval_captions if args.eval_retrieval_pool is None else args.eval_retrieval_pool
    return EvaluationPool(
        data.source,
        (columns.image, columns.captions, columns.image_id),
        num_images=args.eval_captions,
        retrieval_pool=pool,
        seed=args.draw_seed,
        score=args.score_weights,
        on_bad_image=data.on_bad_image,
        processor=captioner.processor,
    )


def generation_arguments(args: ContrastiveCaptionConfig) -> dict[str, Any]:
    """How captions are generated at an evaluation."""
    given = {"num_beams": args.generation_num_beams, "max_new_tokens": args.generation_max_length}
    return {name: value for name, value in given.items() if value is not None}
