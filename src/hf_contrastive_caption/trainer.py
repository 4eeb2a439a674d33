"""The trainer: transformers' own loop around an objective. It wires, and holds no arithmetic of its own."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import PeftConfig
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from transformers import PreTrainedModel, TrainerCallback
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.trainer_utils import TrainOutput

from hf_contrastive_caption.adapting import check_adapters, with_adapter
from hf_contrastive_caption.captioners import Captioner
from hf_contrastive_caption.checks import check_equal_models, check_no_noise, describe_not_finite
from hf_contrastive_caption.config import ContrastiveCaptionConfig
from hf_contrastive_caption.construction import (
    check_arguments,
    distinct_processors,
    make_captioner,
    make_data,
    make_objective,
    refuse_arguments,
)
from hf_contrastive_caption.data import (
    CaptionCollator,
    CaptionData,
    ContrastiveCaptionStream,
)
from hf_contrastive_caption.data.bucketing import LengthBucketSampler
from hf_contrastive_caption.data.collator import Batch
from hf_contrastive_caption.data.loader import own_part_loader
from hf_contrastive_caption.data.sampler import EpochSampler
from hf_contrastive_caption.evaluation.retrieval.retrievers import DualEncoderRetriever
from hf_contrastive_caption.hub.publishing import HubPublishing
from hf_contrastive_caption.neighbours import make_neighbours
from hf_contrastive_caption.objectives import LOG_RATIO_LOSS, ContrastiveObjective, Objective, ObjectiveOutput
from hf_contrastive_caption.precision import without_autocast
from hf_contrastive_caption.precomputed import ComputedAhead, training_epochs
from hf_contrastive_caption.reference import Reference
from hf_contrastive_caption.reference.replacement import ReferenceRefresh
from hf_contrastive_caption.reference.selection import freeze_vision, make_reference, warn_of_frozen_vision
from hf_contrastive_caption.reference.versions import ReferenceVersions
from hf_contrastive_caption.reporting import Reporting
from hf_contrastive_caption.sharding import adapt_fsdp_plugin

logger = logging.getLogger(__name__)

_BY_LOG_RATIOS = {"loss", LOG_RATIO_LOSS, "margin", "ranked_first", "positive_log_ratio", "negative_log_ratio"}
"""Metrics of an evaluation that depend on the reference."""


class ContrastiveCaptionTrainer(HubPublishing, Reporting):
    """Trains a captioner to say what is true of *this* image: contrastive captioning, Dai and Lin (NIPS 2017).

    Each caption of an image is scored by the model that is trained, the *target*, and by a frozen *reference*; the
    loss asks that the target likes it better than the reference does, and that it likes captions of other images,
    drawn anew all the time, less than the reference does.

    Args:
        model: The target: a captioning model, or the name or folder of one, which is loaded in float32.
        args: The training arguments.
        train_dataset: A ``datasets.Dataset`` or ``IterableDataset`` with an image column and captions (a string
            column, a list of strings, or several columns), or a data set made of one by the library.
        eval_dataset: The same, or a dict of them.
        reference_model: The reference. ``None`` is ``model`` as passed: a frozen copy of it, or for a PEFT model the
            model itself with its adapters off (if they are trained already, as they are now). Else any captioner or
            its name, also of another kind with a tokenizer of its own. An object is not copied but frozen in place,
            and its dropout is switched off.
        processing_class: Tokenizer and image processor of the target: a pair, or a processor that has both. Not needed
            for a model given by name.
        reference_processing_class: The same for the reference; not needed if it shares the target's or is given by
            name.
        peft_config: An adapter to train instead of the whole model, such as ``LoraConfig``. The reference is then the
            model with its adapter off.
        hard_negative_encoder: An image-text dual encoder (:class:`DualEncoderRetriever`) that tells which images are
            near, for ``negatives="nearest"`` and ``"mixed"``; one by name is an option of ``args``.
        augment: A callable on PIL images, applied to training images; its randomness is keyed by (seed, epoch, row).
        callbacks: As in ``Trainer``.
        optimizers: As in ``Trainer``.
        **refused: No further arguments are taken; those of ``Trainer`` that cannot work are answered with the reason.

    Attributes:
        captioner: The target's :class:`Captioner`.
        reference: The frozen side; ``None`` with ``objective="mle"`` and ``"introspective"``.

    Raises:
        ValueError: For data, models or options that cannot work together; the message says what would.
    """

    args: ContrastiveCaptionConfig
    captioner: Captioner
    reference: Reference | None
    objective: Objective
    loss_is_scaled_for_ga = True  # the loss is normalised over all accumulation steps by num_items_in_batch

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | str,
        args: ContrastiveCaptionConfig | None = None,
        train_dataset: datasets.Dataset | datasets.IterableDataset | CaptionData | None = None,
        eval_dataset: datasets.Dataset | datasets.IterableDataset | CaptionData | dict[str, Any] | None = None,
        reference_model: PreTrainedModel | nn.Module | str | None = None,
        processing_class: Any = None,
        reference_processing_class: Any = None,
        augment: Callable[[Image.Image], Image.Image] | None = None,
        peft_config: PeftConfig | None = None,
        hard_negative_encoder: DualEncoderRetriever | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        **refused: Any,
    ) -> None:
        refuse_arguments(refused)
        args = ContrastiveCaptionConfig(output_dir="contrastive-caption") if args is None else args
        check_arguments(args, model, reference_model, reference_processing_class)
        self.augment = augment
        self.captioner = make_captioner(model, processing_class, args, "model")
        if peft_config is not None:
            self.captioner = with_adapter(self.captioner, peft_config, args)
        check_adapters(self.captioner.model)
        if args.freeze_vision_encoder:
            freeze_vision(self.captioner)
        elif train_dataset is not None:
            warn_of_frozen_vision(self.captioner)
        self.reference = make_reference(
            self.captioner, reference_model, reference_processing_class, args, make_captioner
        )
        self.objective = make_objective(self.reference, args)
        self._processors = distinct_processors(self.captioner, self.reference)
        self._begin_reports()
        self._checked_noise, self._equal_expected = False, False
        self._versions: ReferenceVersions | None = None
        super().__init__(
            model=self.captioner.model,
            args=args,
            data_collator=CaptionCollator(self._processors, self._num_negatives(args)),
            train_dataset=self._caption_data(train_dataset, args, evaluation=False),
            eval_dataset=self._evaluation_data(eval_dataset, args),
            processing_class=self.captioner.processor,  # type: ignore[arg-type]  # saves tokenizer and image processor
            callbacks=callbacks,
            optimizers=optimizers,
        )
        if self.is_fsdp_enabled:
            adapt_fsdp_plugin(self.accelerator.state.fsdp_plugin, self.captioner.model)
        self._note_origins(model, reference_model)
        self._refresh = self._replace_reference()
        neighbours = make_neighbours(self.reference, hard_negative_encoder, args, self.accelerator)
        self._ahead = ComputedAhead(self.captioner, self.reference, args, self.accelerator, neighbours)
        for data in [self.train_dataset, *self._evaluation_sets()]:
            if data is not None:
                self._ahead.check(data, evaluation=data is not self.train_dataset)
        self._prepare_models()
        self._prepare_evaluation()

    # Construction ------------------------------------------------------------------------------------------------

    def _num_negatives(self, args: ContrastiveCaptionConfig) -> int:
        return 0 if args.objective == "mle" else args.num_negatives

    def _caption_data(self, dataset: Any, args: ContrastiveCaptionConfig, *, evaluation: bool) -> Any:
        """Turn a data set with images and captions into one with positives and negatives."""
        augment = None if evaluation else self.augment
        return make_data(dataset, self._processors, self._num_negatives(args), args, augment, evaluation=evaluation)

    def _evaluation_data(self, dataset: Any, args: ContrastiveCaptionConfig) -> Any:
        if isinstance(dataset, dict):
            return {name: self._caption_data(split, args, evaluation=True) for name, split in dataset.items()}
        return self._caption_data(dataset, args, evaluation=True)

    def _prepare_models(self) -> None:
        """Put the reference in its place, find out how to score, and take all noise out of the log-ratio."""
        if self.reference is not None:
            self.reference.place(self.args.device)
            if self.reference.captioner is not self.captioner:
                self.reference.captioner.verify()
        self.captioner.verify()
        if isinstance(self.objective, ContrastiveObjective) and self.reference is not None:
            shared = self.args.freeze_vision_encoder and self.reference.shares_vision
            self.objective.encode_once = shared and not self._is_sharded()
        unused = self.captioner.freeze_unused()
        if unused:
            logger.info("frozen because no gradient ever reaches them: %s", ", ".join(unused))
        if self.train_dataset is not None and not any(
            weight.requires_grad for weight in self.captioner.model.parameters()
        ):
            raise ValueError(
                "no weight of the model takes a gradient, so there is nothing to train; call requires_grad_(True) on "
                "what shall be trained, or load an adapter with is_trainable=True"
            )

    def _replace_reference(self) -> ReferenceRefresh | None:
        """Have the reference replaced while training, if that is asked for."""
        every = self.args.reference_refresh
        if every is None or self.reference is None:
            return None
        if every == "epoch" and isinstance(self.train_dataset, ContrastiveCaptionStream):
            raise ValueError("reference_refresh='epoch', but a stream has no epochs; give a number of steps")
        if is_deepspeed_zero3_enabled():
            raise ValueError(
                "reference_refresh does not work under DeepSpeed's ZeRO-3, which takes the weights apart that the "
                "reference would become; use zero2, ddp or fsdp2, or leave it out"
            )

        def replaced(version: int) -> None:
            self._equal_expected = reference.equals_target
            self.log({"reference_version": version})

        reference = self.reference
        reference.check_refresh(self.captioner)
        metric = (self.args.metric_for_best_model or "").removeprefix("eval_")
        sets: Any = self.eval_dataset if isinstance(self.eval_dataset, dict) else {}
        chosen_by = {metric, *(metric.removeprefix(f"{name}_") for name in sets)}
        if self.args.load_best_model_at_end and chosen_by & _BY_LOG_RATIOS:
            logger.warning(
                "metric_for_best_model=%r is measured against the reference, and begins again with each replacement "
                "(reference_refresh), so the best of it is that of no one reference; take score (eval_score), "
                "recall_at_1 or cider_d of eval_captions",
                metric,
            )
        refresh = ReferenceRefresh(reference, self.captioner, every, self.args.reference_mixup, replaced)
        self.add_callback(refresh)
        return refresh

    def prepare_start(self, checkpoint: str | None) -> None:
        """See :class:`AtomicCheckpoints`; computes ahead what is to be, and brings the reference to the checkpoint."""
        self._synchronize()
        if checkpoint is None and self._refresh is not None:
            self._refresh.step = 0  # of an earlier training with this trainer
        data: Any = self.train_dataset
        if data is not None:
            self.train_dataset = self._ahead.attach(data, training_epochs(data, self.args))
        self._attach_evaluation_data()
        if self.reference is None:
            return
        self._ahead.release_reference()
        self._versions = self._versions or ReferenceVersions(self.reference, self._refresh, str(self.args.output_dir))
        if checkpoint is not None:
            self._versions.restore(checkpoint)
            self.reference.equals_target = False
        self._equal_expected = self.reference.equals_target

    def _synchronize(self) -> None:
        """Let every process start from the first one's weights, as DDP does, and from its reference."""
        if self.args.world_size == 1 or self._is_sharded():
            return
        own = {} if self.reference is None else self.reference.weights()
        tensors = [*self.captioner.model.parameters(), *self.captioner.model.buffers(), *own.values()]
        with torch.no_grad():
            for tensor in tensors:
                first = tensor.contiguous()  # mostly itself
                torch.distributed.broadcast(first, src=0)
                tensor.copy_(first)

    def save_extra(self, folder: Path) -> None:
        """See :class:`AtomicCheckpoints`; notes which reference the checkpoint belongs to."""
        if self._versions is not None and self.args.should_save:
            self._versions.save(folder)

    def _load_best_model(self) -> None:
        """See ``Trainer``; a reference that is replaced while training goes back to that checkpoint as well."""
        super()._load_best_model()
        best = self.state.best_model_checkpoint
        if self._versions is not None and self._refresh is not None and best is not None:
            self._versions.restore(best)

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """See ``Trainer``. Except for maximum likelihood, all dropout is off until the training ends.

        Raises:
            ValueError: If there is no such checkpoint, or it was trained against another reference.
        """
        self._train_means.clear()
        self._start_log_ratio = None  # of an earlier training that ended before its first log
        self._forget_skipped()
        quiet: AbstractContextManager[dict[str, float]] = self.captioner.deterministic()
        with quiet if self.objective.noise_free else nullcontext({}) as rates:
            if rates:
                logger.info(
                    "dropout is off while log-ratios are trained (%d rates set to 0, the largest %g, those of "
                    "adapters included)",
                    len(rates),
                    max(rates.values()),
                )
            return super().train(*args, **kwargs)

    # Data ----------------------------------------------------------------------------------------------------------

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[Any] | None:
        data = self.train_dataset if train_dataset is None else train_dataset
        return self._sampler(data, self._train_batch_size, shuffle=True)

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler[Any] | None:
        return self._sampler(eval_dataset, self.args.eval_batch_size, shuffle=False)

    def _sampler(self, data: Any, batch_size: int, *, shuffle: bool) -> Sampler[Any] | None:
        if isinstance(data, ContrastiveCaptionStream):
            return None
        seed, pad_to = self.args.draw_seed, batch_size * self.args.world_size
        strategy = self.args.train_sampling_strategy if shuffle else "sequential"
        if strategy == "group_by_length":
            packed, accumulated = self.captioner.layout == "packed", self.args.gradient_accumulation_steps
            return LengthBucketSampler(data, seed, pad_to, step_size=pad_to * accumulated, packed=packed)
        return EpochSampler(data, seed, shuffle=strategy == "random", pad_to=pad_to)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """See ``Trainer``; a stream of which this process reads its own shards is not divided again."""
        loader, data = super().get_train_dataloader(), self.train_dataset
        if isinstance(data, ContrastiveCaptionStream) and data.num_processes > 1:
            return own_part_loader(loader, data, self.accelerator.device)
        return loader

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """See ``Trainer``; a plain ``datasets.Dataset`` gets its negatives here."""
        if eval_dataset is None or isinstance(eval_dataset, str):
            self._attach_evaluation_data()
            return super().get_eval_dataloader(eval_dataset)
        data = self._ahead.attach(self._caption_data(eval_dataset, self.args, evaluation=True))
        persistent = self.args.dataloader_persistent_workers
        self.args.dataloader_persistent_workers = False  # Trainer keeps one loader for all data sets without a name
        try:
            return super().get_eval_dataloader(data)
        finally:
            self.args.dataloader_persistent_workers = persistent

    def _attach_evaluation_data(self) -> None:
        """Let the evaluation data read what was computed ahead."""
        data: Any = self.eval_dataset
        if isinstance(data, dict):
            self.eval_dataset = {name: self._ahead.attach(split) for name, split in data.items()}
        elif data is not None:
            self.eval_dataset = self._ahead.attach(data)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader[Any]:
        """See ``Trainer``; a plain ``datasets.Dataset`` gets its negatives here."""
        data = self._caption_data(test_dataset, self.args, evaluation=True)
        return super().get_test_dataloader(self._ahead.attach(data))

    def _prepare_input(self, data: Any) -> Any:
        """See ``Trainer``; it casts all floats to the model's dtype under DeepSpeed, weights and scores, too."""
        return data.to(self.args.device) if isinstance(data, Tensor) else super()._prepare_input(data)

    # Loss ----------------------------------------------------------------------------------------------------------

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: torch.device) -> Tensor | None:
        """Items of each term of the objective in all accumulation steps of all processes, (n_terms,)."""
        if not batch_samples:
            return None
        items = torch.stack([self.objective.count(batch).to(device) for batch in batch_samples]).sum(dim=0)
        total: Tensor = self.accelerator.reduce(items, reduction="sum")
        return total

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The objective's loss, normalised by the items of all accumulation steps and processes.

        Args:
            model: The target as Accelerate wrapped it.
            inputs: A batch of the collator's.
            return_outputs: Whether to return the :class:`ObjectiveOutput` as well.
            num_items_in_batch: Items of each term of the loss in all accumulation steps of all processes, (n_terms,);
                those of this batch if not given.

        Returns:
            A scalar, and the output if asked for.

        Raises:
            FloatingPointError: If the loss is not finite; says in which step, for which rows and captions.
        """
        without_autocast(self.captioner.model)  # which would stay in force after the training, and for this side alone
        with self.accelerator.autocast():
            output = self.objective(self.captioner, model, inputs)
            if model.training:
                self._check_batch(model, inputs, output)
        if not torch.isfinite(output.loss).all():
            step = self.state.global_step + 1 if model.training else None
            raise FloatingPointError(describe_not_finite(self.captioner, inputs, output, step))
        # DDP averages gradients over processes, and the sum over items is what is wanted.
        items = output.items if num_items_in_batch is None else num_items_in_batch / self.accelerator.num_processes
        items = torch.as_tensor(items, device=output.loss.device).clamp_min(1.0 / self.args.world_size)  # (n_terms,)
        loss = (output.loss / items).sum()
        if model.training:
            self._train_means.add(output.statistics)
            self._newly_skipped = self._newly_skipped + inputs["skipped"].sum()
        return (loss, output) if return_outputs else loss

    def _check_batch(self, model: nn.Module, inputs: Batch, output: ObjectiveOutput) -> None:
        """What is checked once in a training, and the equality of the models after each replacement as well."""
        if self._equal_expected and self.reference is not None:
            self._equal_expected = False
            self.reference.equals_target = False  # the step that follows changes the target
            self._start_log_ratio = check_equal_models(self.captioner, self.reference, inputs, output)
        if self.objective.noise_free and not self._checked_noise:
            self._checked_noise = True
            check_no_noise(self.captioner, model, inputs)

    def floating_point_ops(self, inputs: Batch) -> int:
        """Not counted: the estimate of ``Trainer`` is for one sequence per row, and would be wrong here."""
        return 0
