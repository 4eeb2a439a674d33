"""What is checked on the batches of a training: errors that would otherwise only make its results worse."""

from __future__ import annotations

import logging

import torch
from torch import nn

from hf_contrastive_caption.captioners import Captioner
from hf_contrastive_caption.captioners.determinism import largest_difference
from hf_contrastive_caption.captioners.verification import TOLERANCE_PER_TOKEN
from hf_contrastive_caption.data.collator import REFERENCE_LOG_PROBS, Batch
from hf_contrastive_caption.fingerprints import weights_digest
from hf_contrastive_caption.objectives import ObjectiveOutput
from hf_contrastive_caption.reference import Reference
from hf_contrastive_caption.sharding import is_sharded

logger = logging.getLogger(__name__)


def check_no_noise(captioner: Captioner, model: nn.Module, inputs: Batch) -> None:
    """Two forwards of one batch in training mode must agree.

    Both without gradients: in bfloat16 some encoders (Swin) choose other kernels when there are gradients.

    Raises:
        ValueError: If they do not.
    """
    with torch.no_grad():
        first, again = (captioner.log_probs(model, inputs["images"], inputs["captions"]) for _ in range(2))
    noise = largest_difference(again, first)
    if noise > 1e-3 + 1e-5 * float(first.abs().max()):
        raise ValueError(
            f"two forwards of {captioner.name} with the same input in training mode "
            f"differ by {noise:.2g} nats: something in the model still draws random numbers or uses statistics of "
            "the batch (dropout rates and batch norms were switched off already), which would be noise in the "
            "log-ratio; switch it off in the model's config"
        )


def check_equal_models(captioner: Captioner, reference: Reference, inputs: Batch, output: ObjectiveOutput) -> float:
    """Where the reference is the target as it is now, log-ratios must be 0 to rounding; warns if they are not.

    Args:
        captioner: The target.
        reference: The reference.
        inputs: A batch.
        output: What the objective gave for it before the target has changed.

    Returns:
        The mean |log-ratio| in nats.
    """
    assert output.reference_log_probs is not None
    mean = float((output.log_probs.detach() - output.reference_log_probs).abs().mean())
    length = float(inputs["captions"]["lengths"].float().mean())
    allowed = TOLERANCE_PER_TOKEN[_computing_dtype(captioner)] * length
    logger.info("mean |log-ratio| at the start: %.2g nats (%.2g would be rounding)", mean, allowed)
    if not mean <= allowed:
        logger.warning(
            "target and reference should be equal at the start, but the mean |log-ratio| of the first batch is %.3g "
            "nats, and rounding explains %.2g of it. %s",
            mean,
            allowed,
            _likely_cause(captioner, reference, inputs),
        )
    return mean


def _likely_cause(captioner: Captioner, reference: Reference, inputs: Batch) -> str:
    if REFERENCE_LOG_PROBS in inputs:
        return (
            "The reference's scores were computed ahead: the model, the precision or an image behind a path has "
            "changed since, or the folder of scores (precomputed_dir) was edited. Delete it to have them made again"
        )
    if reference.captioner is captioner:
        return (
            "The reference is the model itself without its adapter, or with the adapter as it was: the adapter was "
            "changed after the trainer was made, or it acts in a way that PEFT cannot switch off"
        )
    if not is_sharded(captioner.model):
        own, other = weights_digest(captioner.base_model), weights_digest(reference.captioner.base_model)
        if own != other:
            return (
                "Their weights differ: the model was changed after the trainer was made, for example by another "
                "training of it. Make the trainer with the model as it shall start"
            )
    return (
        "Their weights are the same, so they compute differently: look for a module that behaves differently in "
        "training mode, an autocast or a cast of one of the two, or a forward that was changed by hand"
    )


def _computing_dtype(captioner: Captioner) -> torch.dtype:
    device = captioner.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else captioner.dtype


def describe_not_finite(captioner: Captioner, inputs: Batch, output: ObjectiveOutput, step: int | None) -> str:
    """What there is to know about a batch whose loss is not finite, in a training step or, without one, elsewhere."""
    captions = inputs["captions"]
    pieces = captions["input_ids"].split(captions["lengths"].tolist())
    wrong = (~torch.isfinite(output.log_probs.detach())).nonzero()[:5, 0].tolist()
    texts = captioner.processor.decode([pieces[number] for number in wrong or range(min(5, len(pieces)))])
    shown = "captions without a finite score" if wrong else "all target scores are finite; first captions"
    where, way_out = "an evaluation", "Look whether all weights of the model, and of its reference, are finite"
    if step is not None:
        where = f"step {step}"
        way_out = (
            "Training stops here, before the weights take it: lower the learning rate, or use bf16 instead of fp16"
        )
    return (
        f"the loss is {output.loss.sum().item()} in {where}, rows {inputs['rows'].tolist()}; {shown}: {texts}. "
        f"{way_out}"
    )
