"""The trainer: transformers' own loop around an objective. It wires, and holds no arithmetic of its own."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import datasets
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from transformers import PreTrainedModel, Seq2SeqTrainer, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from hf_contrastive_caption.captioners import Captioner
from hf_contrastive_caption.captioners.determinism import largest_difference
from hf_contrastive_caption.config import ContrastiveCaptionConfig
from hf_contrastive_caption.construction import (
    CaptionData,
    check_arguments,
    distinct_processors,
    generation_arguments,
    make_captioner,
    make_data,
    make_evaluation_pool,
    make_reference,
    refuse_arguments,
)
from hf_contrastive_caption.data import (
    CaptionCollator,
    CaptionColumns,
    ContrastiveCaptionDataset,
    ContrastiveCaptionStream,
)
from hf_contrastive_caption.data.sampler import EpochSampler
from hf_contrastive_caption.evaluation.in_training import EvaluationPool, warn_of_collapse
from hf_contrastive_caption.loading import restore_weights
from hf_contrastive_caption.objectives import Batch, ContrastiveObjective, MLEObjective, Objective, ObjectiveOutput
from hf_contrastive_caption.reference import FrozenReference
from hf_contrastive_caption.statistics import RunningMeans
from hf_contrastive_caption.trackers import SHOWN_IMAGES, log_caption_table

logger = logging.getLogger(__name__)

KEPT_POOLS = 8
"""Data sets of evaluations whose images to caption are remembered."""


class ContrastiveCaptionTrainer(Seq2SeqTrainer):
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
        reference_model: The reference. ``None`` is a frozen copy of ``model`` as passed; else any captioner or its
            name, also of another kind with a tokenizer of its own. An object is not copied but frozen in place, and
            its dropout is switched off.
        processing_class: Tokenizer and image processor of the target: a pair, or a processor that has both. Not needed
            for a model given by name.
        reference_processing_class: The same for the reference; not needed if it shares the target's or is given by
            name.
        augment: A callable on PIL images, applied to training images; its randomness is keyed by (seed, epoch, row).
        callbacks: As in ``Trainer``.
        optimizers: As in ``Trainer``.
        **refused: No further arguments are taken; those of ``Trainer`` that cannot work are answered with the reason.

    Attributes:
        captioner: The target's :class:`Captioner`.
        reference: The frozen side, or ``None`` with ``objective="mle"``.

    Raises:
        ValueError: For data, models or options that cannot work together; the message says what would.
    """

    args: ContrastiveCaptionConfig
    captioner: Captioner
    reference: FrozenReference | None
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
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        **refused: Any,
    ) -> None:
        refuse_arguments(refused)
        args = ContrastiveCaptionConfig(output_dir="contrastive-caption") if args is None else args
        check_arguments(args, model, reference_model, reference_processing_class)
        self.augment = augment
        self.captioner = make_captioner(model, processing_class, args, "model")
        self.reference = make_reference(self.captioner, reference_model, reference_processing_class, args)
        self.objective = self._objective(args)
        self._processors = distinct_processors(self.captioner, self.reference)
        self._train_means, self._eval_means = RunningMeans(), RunningMeans()
        self._skipped_images, self._newly_skipped = 0, torch.zeros((), dtype=torch.long)
        self._eval_skipped = torch.zeros((), dtype=torch.long)
        self._checked_noise = False
        self._pools: dict[tuple[int, CaptionColumns], EvaluationPool] = {}
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
        self._prepare_models()
        self._prepare_evaluation()

    # Construction ------------------------------------------------------------------------------------------------

    def _objective(self, args: ContrastiveCaptionConfig) -> Objective:
        if self.reference is None:
            return MLEObjective()
        return ContrastiveObjective(
            self.reference,
            args.num_negatives,
            args.noise_ratio,
            args.beta,
            args.loss_terms,  # type: ignore[arg-type]  # checked by the config
        )

    def _num_negatives(self, args: ContrastiveCaptionConfig) -> int:
        return 0 if self.reference is None else args.num_negatives

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
            self.reference.captioner.model.to(self.args.device)
            self.reference.captioner.verify()
        self.captioner.verify()
        if self.args.eval_captions:
            _ = self.captioner.tries  # before Accelerate puts autocast into the model's forward
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

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """See ``Trainer``. With a reference, all dropout is off until the training ends."""
        self._train_means.clear()
        self._skipped_images, self._newly_skipped = 0, torch.zeros((), dtype=torch.long)
        quiet: AbstractContextManager[dict[str, float]] = self.captioner.deterministic()
        with nullcontext({}) if self.reference is None else quiet as rates:
            if rates:
                logger.info(
                    "dropout is off while the log-ratio to the reference is trained (%d rates set to 0, the largest "
                    "%g, those of adapters included)",
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
        pad_to = batch_size * self.args.world_size
        return EpochSampler(data, seed=self.args.draw_seed, shuffle=shuffle, pad_to=pad_to)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """See ``Trainer``; a plain ``datasets.Dataset`` gets its negatives here."""
        if eval_dataset is not None and not isinstance(eval_dataset, str):
            eval_dataset = self._caption_data(eval_dataset, self.args, evaluation=True)
        return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader[Any]:
        """See ``Trainer``; a plain ``datasets.Dataset`` gets its negatives here."""
        return super().get_test_dataloader(self._caption_data(test_dataset, self.args, evaluation=True))

    # Loss ----------------------------------------------------------------------------------------------------------

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: torch.device) -> Tensor | None:
        """Number of items of the objective in all accumulation steps of all processes."""
        if not batch_samples:
            return None
        items = torch.stack([self.objective.count(batch).to(device) for batch in batch_samples]).sum()
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
            num_items_in_batch: Items in all accumulation steps of all processes; those of this batch if not given.

        Returns:
            A scalar, and the output if asked for.

        Raises:
            FloatingPointError: If the loss is not finite; says in which step, for which rows and captions.
        """
        with self.accelerator.autocast():
            output = self.objective(self.captioner, model, inputs)
            if model.training and not self._checked_noise:
                self._check_noise(model, inputs)
        if not torch.isfinite(output.loss):
            raise FloatingPointError(self._describe(inputs, output))
        # DDP averages gradients over processes, and the sum over items is what is wanted.
        items = output.items if num_items_in_batch is None else num_items_in_batch / self.accelerator.num_processes
        loss = output.loss / torch.as_tensor(items, device=output.loss.device).clamp_min(1.0 / self.args.world_size)
        if model.training:
            self._train_means.add(output.statistics)
            self._newly_skipped = self._newly_skipped + inputs["skipped"].sum()
        return (loss, output) if return_outputs else loss

    def _check_noise(self, model: nn.Module, inputs: Batch) -> None:
        """Two forwards of one batch in training mode must agree.

        Both without gradients: in bfloat16 some encoders (Swin) choose other kernels when there are gradients.
        """
        self._checked_noise = True
        if self.reference is None:
            return
        with torch.no_grad():
            first, again = (self.captioner.log_probs(model, inputs["images"], inputs["captions"]) for _ in range(2))
        noise = largest_difference(again, first)
        if noise > 1e-3 + 1e-5 * float(first.abs().max()):
            raise ValueError(
                f"two forwards of {self.captioner.name} with the same input in training mode "
                f"differ by {noise:.2g} nats: something in the model still draws random numbers or uses statistics of "
                "the batch (dropout rates and batch norms were switched off already), which would be noise in the "
                "log-ratio; switch it off in the model's config"
            )

    def _describe(self, inputs: Batch, output: ObjectiveOutput) -> str:
        """What there is to know about a batch whose loss is not finite."""
        captions = inputs["captions"]
        pieces = captions["input_ids"].split(captions["lengths"].tolist())
        wrong = (~torch.isfinite(output.log_probs.detach())).nonzero()[:5, 0].tolist()
        texts = self.captioner.processor.decode([pieces[number] for number in wrong or range(min(5, len(pieces)))])
        shown = "captions without a finite score" if wrong else "all target scores are finite; first captions"
        return (
            f"the loss is {output.loss.item()} in step {self.state.global_step + 1}, rows {inputs['rows'].tolist()}; "
            f"{shown}: {texts}. Training stops here, before the weights take it: lower the learning rate, or use bf16 "
            "instead of fp16"
        )

    def floating_point_ops(self, inputs: Batch) -> int:
        """Not counted: the estimate of ``Trainer`` is for one sequence per row, and would be wrong here."""
        return 0

    # Checkpoints -------------------------------------------------------------------------------------------------

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        whole = self._whole_model()
        if whole is not None:
            restore_weights(whole, resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        whole, folder = self._whole_model(), self.state.best_model_checkpoint
        if whole is not None and folder is not None:
            restore_weights(whole, folder)
        else:
            super()._load_best_model()

    def _whole_model(self) -> PreTrainedModel | None:
        """The model, if it has no adapters and every process has all of its weights."""
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        return self.model if isinstance(self.model, PreTrainedModel) and not sharded else None

    # Logging and evaluation ------------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """See ``Trainer``; adds the means of the objective since the last log of the training loss."""
        if "loss" in logs:
            means = self._train_means.pop(self.accelerator)
            means.pop("loss", None)
            logs.update(means)
            if self.args.on_bad_image == "skip":
                logs["skipped_images"] = self._count_skipped()
        super().log(logs, start_time)

    def _count_skipped(self) -> int:
        """Images skipped so far in all processes, every epoch counted."""
        before = self._skipped_images
        newly = torch.as_tensor(self._newly_skipped, device=self.args.device)
        self._skipped_images += int(self.accelerator.reduce(newly, reduction="sum"))
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
        if self.args.on_bad_image == "skip":
            skipped = self._eval_skipped.to(self.args.device)
            means["skipped_images"] = int(self.accelerator.reduce(skipped, reduction="sum"))
        means |= self._caption_metrics(dataloader, metric_key_prefix)
        metrics = {**(result.metrics or {}), **{f"{metric_key_prefix}_{name}": mean for name, mean in means.items()}}
        return result._replace(metrics=metrics)

    def _evaluation_pool(self, data: ContrastiveCaptionDataset) -> EvaluationPool:
        """The images of a data set that are captioned; made once, and kept for the last few data sets."""
        key = (id(data.source), data.columns)
        if key not in self._pools:
            self._pools[key] = make_evaluation_pool(data, self.captioner, self.args)  # it holds the data set
            while len(self._pools) > KEPT_POOLS:
                del self._pools[next(iter(self._pools))]
        return self._pools[key]

    def _prepare_evaluation(self) -> None:
        """What captions at evaluations need, before a training begins."""
        if not self.args.eval_captions:
            return
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                "eval_captions does not work under FSDP or DeepSpeed: processes caption different numbers of images, "
                "and there each forward waits for all of them. Evaluate the saved model with evaluate_captioner"
            )
        sets = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"eval": self.eval_dataset}
        for data in sets.values():
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
        found = pool.evaluate(self.captioner, self.args.per_device_eval_batch_size, **generation_arguments(self.args))
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

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Not available: there are no logits to return.

        Raises:
            NotImplementedError: Always; says what to call instead.
        """
        raise NotImplementedError(
            "predict() returns logits, and none are kept. For the metrics of a test split call evaluate(split, "
            'metric_key_prefix="test"); for captions call caption_images(model, processor, images)'
        )
