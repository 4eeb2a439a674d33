"""What a training reports: means over items, captions of some images at evaluations, and how often images failed."""

from __future__ import annotations

import logging
import math
from contextlib import nullcontext
from os import PathLike
from typing import Any

import datasets
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import Seq2SeqTrainer
from transformers.trainer_utils import EvalLoopOutput

from hf_contrastive_caption.captioners import Captioner
from hf_contrastive_caption.config import ContrastiveCaptionConfig
from hf_contrastive_caption.construction import generation_arguments, make_evaluation_pool
from hf_contrastive_caption.data import CaptionColumns, ContrastiveCaptionDataset, ContrastiveCaptionStream
from hf_contrastive_caption.data.collator import Batch
from hf_contrastive_caption.evaluation.images import EvaluationImages, evaluation_images
from hf_contrastive_caption.evaluation.in_training import EvaluationPool, warn_of_collapse
from hf_contrastive_caption.metric_names import SKIPPED, check_best_metric, metric_names
from hf_contrastive_caption.objectives import Objective
from hf_contrastive_caption.processing import ReadsImages
from hf_contrastive_caption.reference import Reference
from hf_contrastive_caption.report.comparison import SHOWN, CaptionerComparison, compare_in_place
from hf_contrastive_caption.sharding import is_sharded
from hf_contrastive_caption.statistics import RunningMeans
from hf_contrastive_caption.trackers import SHOWN_IMAGES, log_caption_table

logger = logging.getLogger(__name__)

KEPT_POOLS = 8
"""Data sets whose images to caption are remembered, if the trainer does not have more to evaluate on."""


class Reporting(Seq2SeqTrainer):
    """For a trainer of an objective with statistics: what it logs, and how it evaluates.

    Attributes:
        captioner: The target's :class:`Captioner`.
        reference: The frozen side, or ``None``.
    """

    args: ContrastiveCaptionConfig
    captioner: Captioner
    reference: Reference | None
    objective: Objective
    _train_means: RunningMeans
    _start_log_ratio: float | None = None
    """The mean |log-ratio| of equal models, until it is logged."""

    def _begin_reports(self) -> None:
        """Have nothing counted yet; before ``Trainer`` is constructed."""
        self._train_means, self._eval_means = RunningMeans(), RunningMeans()
        self._eval_skipped = torch.zeros((), dtype=torch.long)
        self._gen_kwargs: dict[str, Any] = {}  # of evaluate(), which sets it
        self._pools: dict[tuple[int, CaptionColumns], EvaluationPool] = {}
        self._forget_skipped()

    def _forget_skipped(self) -> None:
        self._skipped_images, self._newly_skipped = 0, torch.zeros((), dtype=torch.long)

    def _evaluation_sets(self) -> list[Any]:
        """The data sets of evaluations."""
        data: Any = self.eval_dataset
        if data is None:
            return []
        return list(data.values()) if isinstance(data, dict) else [data]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """See ``Trainer``; adds the means of the objective since the last log of the training loss."""
        if "loss" in logs:
            means = self._train_means.pop(self.accelerator)
            means.pop("loss", None)
            logs.update(means)
            if self._start_log_ratio is not None:
                logs["start_log_ratio"], self._start_log_ratio = self._start_log_ratio, None
            if _skips(self.train_dataset):
                logs["skipped_images"] = self._count_skipped()
            logs.update(self._hard_negatives())
        super().log(logs, start_time)

    def _hard_negatives(self) -> dict[str, float]:
        """What share of the negatives is to be hard in this epoch, and of the near captions was refused for them."""
        data: Any = self.train_dataset
        hard = data.hard_negatives if isinstance(data, ContrastiveCaptionDataset) else None
        if hard is None:
            return {}
        epoch = max(0, math.ceil(self.state.epoch or 0) - 1)  # the log at the end of an epoch is its own
        return {"hard_negative_share": hard.share.at(epoch), "refused_negatives": hard.lists.refused}

    def _count_skipped(self) -> int:
        """Images skipped so far in all processes, every epoch counted."""
        logged = [entry["skipped_images"] for entry in self.state.log_history if "skipped_images" in entry]
        self._skipped_images = before = self._skipped_images or (int(logged[-1]) if logged else 0)  # after a resume
        newly = torch.as_tensor(self._newly_skipped, device=self.args.device)
        # In fractions where a resume has other processes than there were.
        self._skipped_images += round(float(self.accelerator.reduce(newly, reduction="sum")))
        self._newly_skipped = torch.zeros((), dtype=torch.long)
        if self._skipped_images and not before:  # once
            logger.warning("images that do not open are skipped; skipped_images in the log counts them")
        return self._skipped_images

    def prediction_step(
        self,
        model: nn.Module,
        inputs: Batch,
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
        **gen_kwargs: Any,
    ) -> tuple[Any, None, None]:
        """Score a batch and keep nothing of it but sums."""
        with torch.no_grad():
            loss, output = self.compute_loss(model, self._prepare_inputs(inputs), return_outputs=True)
        self._eval_means.add(output.statistics)
        self._eval_skipped = self._eval_skipped + inputs["skipped"].sum()
        return loss.detach(), None, None

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
        **gen_kwargs: Any,
    ) -> dict[str, float]:
        """See ``Seq2SeqTrainer``; of several data sets each is captioned as ``gen_kwargs`` say, too."""
        sets: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        if not isinstance(sets, dict):
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix, **gen_kwargs)
        metrics: dict[str, float] = {}
        for name, data in sets.items():
            one = name if eval_dataset is None else data
            metrics |= self.evaluate(one, ignore_keys, f"{metric_key_prefix}_{name}", **gen_kwargs)
        return metrics

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """See ``Trainer``; every mean is over items and not over batches, and rows of padding do not count."""
        self._eval_means.clear()
        self._eval_skipped = torch.zeros((), dtype=torch.long)
        result = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix=metric_key_prefix
        )
        means = self._eval_means.pop(self.accelerator)
        if "loss" not in means:
            raise ValueError("nothing was evaluated: the data set has no rows, or none of its images opens")
        data: Any = dataloader.dataset
        if _skips(getattr(data, "dataset", data)):  # Accelerate wraps a stream that several processes read
            skipped = self._eval_skipped.to(self.args.device)
            means[SKIPPED] = int(self.accelerator.reduce(skipped, reduction="sum"))
        means |= self._caption_metrics(dataloader, metric_key_prefix)
        metrics = {**(result.metrics or {}), **{f"{metric_key_prefix}_{name}": mean for name, mean in means.items()}}
        return result._replace(metrics=metrics)

    def _evaluation_pool(self, data: ContrastiveCaptionDataset) -> EvaluationPool:
        """The images of a data set that are captioned; made once, and kept for the last few data sets."""
        key = (id(data.source), data.columns)
        if key not in self._pools:
            self._pools[key] = make_evaluation_pool(data, self.captioner, self.args)  # it holds the data set
            while len(self._pools) > max(KEPT_POOLS, len(self._evaluation_sets())):
                del self._pools[next(iter(self._pools))]
        return self._pools[key]

    def _prepare_evaluation(self) -> None:
        """What captions at evaluations need, before a training begins, and the metric that chooses the best model."""
        self._prepare_captions()
        metric: str | None = self.args.metric_for_best_model
        if metric is not None and self.args.eval_strategy != "no" and self.eval_dataset is not None:
            data: Any = self.eval_dataset
            sets = data if isinstance(data, dict) else {"": data}
            names = {name: self._metric_names(split) for name, split in sets.items()}
            asked = ("objective", "mle_weight", "on_bad_image", "eval_captions", "eval_retrieval_pool", "eval_score")
            options = ", ".join(f"{option}={getattr(self.args, option)!r}" for option in asked)
            check_best_metric(metric, names, options + (f" and {len(sets)} data sets" if len(sets) > 1 else ""))

    def _metric_names(self, data: Any) -> list[str]:
        """The metrics of one data set of an evaluation."""
        captioned = self.args.eval_captions > 0 and isinstance(data, ContrastiveCaptionDataset)
        return metric_names(self.objective, self._evaluation_pool(data) if captioned else None, skips=_skips(data))

    def _prepare_captions(self) -> None:
        """What captions at evaluations need, before a training begins."""
        if not self.args.eval_captions:
            return
        if self.is_fsdp_enabled or self.is_deepspeed_enabled or is_sharded(self.captioner.model):
            raise ValueError(
                "eval_captions does not work under FSDP or DeepSpeed: processes caption different numbers of images, "
                "and there each forward waits for all of them. Evaluate the saved model with evaluate_captioner"
            )
        for data in self._evaluation_sets():
            if isinstance(data, ContrastiveCaptionStream):
                raise ValueError(
                    "eval_captions needs an evaluation data set with a length: every caption is compared with every "
                    "image, and a stream has no end. Take some: datasets.Dataset.from_list(list(stream.take(1000)))"
                )
            if isinstance(data, ContrastiveCaptionDataset):
                self._evaluation_pool(data)

    def _caption_metrics(self, dataloader: DataLoader[Any], prefix: str) -> dict[str, float]:
        """Caption some of the images and measure the captions; they are also shown in the trackers."""
        data = dataloader.dataset
        if not self.args.eval_captions or not isinstance(data, ContrastiveCaptionDataset):
            return {}
        pool = self._evaluation_pool(data)
        arguments = self._generation_arguments()
        found = pool.evaluate(self.captioner, self.args.per_device_eval_batch_size, **arguments)
        key = f"{prefix}_distinct_share"
        warn_of_collapse(found.metrics["distinct_share"], [log[key] for log in self.state.log_history if key in log])
        if self.is_world_process_zero():
            numbers = range(min(SHOWN_IMAGES, len(found.images)))
            log_caption_table(
                self.callback_handler.callbacks,
                self.state.global_step,
                f"{prefix}/captions",
                [found.images.pool[number] for number in numbers],
                found.captions[: len(numbers)],
                found.images.references[: len(numbers)],
            )
        return found.metrics

    def _generation_arguments(self) -> dict[str, Any]:
        """Those of ``evaluate()``, and of the config where it was given none."""
        given = {name: value for name, value in self._gen_kwargs.items() if value is not None}
        if given.get("max_length") == self.args.generation_max_length:
            given.pop("max_length", None)  # Trainer's name for it; here it is the number of new tokens
        defaults = generation_arguments(self.args)
        if "max_length" in given or "max_new_tokens" in given:
            defaults.pop("max_new_tokens", None)
        return {**defaults, **given}

    def compare_with_reference(
        self,
        dataset: datasets.Dataset | EvaluationImages | None = None,
        folder: str | PathLike[str] | None = None,
        *,
        shown: int = SHOWN,
        **options: Any,
    ) -> CaptionerComparison:
        """Compare the model as it is now with its reference: numbers, and images with both captions.

        A reference that was replaced while training is the last one, and is called so;
        :func:`compare_captioners` compares with the captioner that the training began from.

        Args:
            dataset: One split with images and captions, or what :func:`evaluation_images` made of it;
                ``eval_dataset`` if not given.
            folder: Where to write the page; nowhere if not given.
            shown: How many images the page shows at most.
            **options: Other arguments of :func:`evaluate_captioner`, such as ``k`` and ``metrics``.

        Raises:
            ValueError: If there is no reference (any more), no data to compare on, or the model is sharded.
        """
        reference = self.reference
        if reference is None:
            raise ValueError(
                f"objective={self.args.objective!r} has no reference; compare_captioners compares any two captioners"
            )
        if not reference.in_memory:
            raise ValueError(
                "the reference has left memory (precompute_reference=True); save the model and compare by name: "
                "compare_captioners(REFERENCE, FOLDER, dataset).save(...)"
            )
        if self.is_fsdp_enabled or self.is_deepspeed_enabled or is_sharded(self.captioner.model):
            raise ValueError("captions are not written under FSDP or DeepSpeed; save the model and compare by name")
        defaults = {"batch_size": self.args.per_device_eval_batch_size, "seed": self.args.draw_seed}
        comparison = compare_in_place(
            reference.in_place,
            lambda: nullcontext(self.captioner),
            self._images_to_compare(dataset),
            (f"reference, replaced {reference.version} times" if reference.version else "reference", "tuned"),
            shown,
            tuple(self.state.log_history),
            {**defaults, **generation_arguments(self.args), **options},
        )
        if folder is not None and self.is_world_process_zero():
            logger.info("the comparison with the reference is in %s", comparison.save(folder))
        return comparison

    def _images_to_compare(self, dataset: datasets.Dataset | EvaluationImages | None) -> EvaluationImages:
        if isinstance(dataset, EvaluationImages):
            return dataset
        if dataset is not None:
            args = self.args
            asked = (args.image_column, args.caption_columns, args.image_id_column)
            return self._opening(dataset, asked, args.on_bad_image)
        data = self._evaluation_sets()
        if len(data) != 1 or not isinstance(data[0], ContrastiveCaptionDataset):
            raise ValueError(
                f"the trainer has {len(data)} evaluation data sets, and captioners are compared on one that has a "
                "length; pass dataset="
            )
        columns = (data[0].columns.image, data[0].columns.captions, data[0].columns.image_id)
        return self._opening(data[0].source, columns, data[0].on_bad_image)

    def _opening(
        self, dataset: datasets.Dataset, columns: tuple[Any, Any, Any], on_bad_image: str
    ) -> EvaluationImages:
        images = evaluation_images(dataset, *columns, on_bad_image=on_bad_image)
        return images.that_open(*self.readers()) if on_bad_image == "skip" else images

    def readers(self) -> list[ReadsImages]:
        """What makes tensors of images: the target's processor, and that of a reference in memory."""
        read: list[ReadsImages] = [self.captioner.processor.process_images]
        if self.reference is not None and self.reference.in_memory:
            read.append(self.reference.processor.process_images)
        return read

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Not available: there are no logits to return.

        Raises:
            NotImplementedError: Always; says what to call instead.
        """
        raise NotImplementedError(
            "predict() returns logits, and none are kept. For the metrics of a test split call evaluate(split, "
            'metric_key_prefix="test"); for captions call caption_images(model, processor, images)'
        )


def _skips(data: Any) -> bool:
    """Whether images of a data set that do not open are skipped; its own word counts, where the user made it."""
    return isinstance(data, (ContrastiveCaptionDataset, ContrastiveCaptionStream)) and data.on_bad_image == "skip"
