"""Loading a captioner and both sides of its processing by name."""

from __future__ import annotations

import os
from typing import Any

import torch
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    BaseImageProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

import hf_contrastive_caption.models  # noqa: F401  # registers the paper's models with the Auto classes

_WHERE_FROM = ("revision", "cache_dir", "token", "local_files_only", "force_download", "trust_remote_code")
"""Arguments of ``from_pretrained`` that hold for the files beside the weights as well."""


def load_model(name: str, **model_init_kwargs: Any) -> PreTrainedModel:
    """Load a captioning model, in float32 unless told otherwise.

    transformers 5 loads weights in the dtype that they were saved in, and training bfloat16 weights at a learning rate
    of 1e-5 loses most updates to rounding.

    Args:
        name: Repository on the Hub or folder.
        **model_init_kwargs: Arguments of ``from_pretrained``.

    Raises:
        ValueError: If it is no image captioner that transformers knows.
    """
    arguments = {"dtype": torch.float32, **model_init_kwargs}
    try:
        model: PreTrainedModel = AutoModelForImageTextToText.from_pretrained(name, **arguments)
    except ValueError as error:
        if "Unrecognized configuration class" not in str(error):  # nothing but its text tells it from others
            raise
        raise ValueError(
            f"{name} is no model that AutoModelForImageTextToText loads, so it writes no captions of images; give the "
            "name of an image captioner, or the model as an object if it is one of your own"
        ) from error
    return model


def load_processing(
    name: str, *, whole: bool = False, **model_init_kwargs: Any
) -> tuple[PreTrainedTokenizerBase, BaseImageProcessor] | ProcessorMixin:
    """Load the tokenizer and the image processor of a captioner, or the processor that has both.

    The common captioner repositories have no processor class, and ``AutoProcessor`` gives only their tokenizer.

    Args:
        name: Repository on the Hub or folder.
        whole: Load the one processor of a chat model, which also knows how a prompt is written.
        **model_init_kwargs: As for :func:`load_model`; those that say where files come from are used.
    """
    where = {key: value for key, value in model_init_kwargs.items() if key in _WHERE_FROM}
    if whole:
        processor: ProcessorMixin = AutoProcessor.from_pretrained(name, **where)
        return processor
    return AutoTokenizer.from_pretrained(name, **where), AutoImageProcessor.from_pretrained(name, **where)


def restore_weights(model: PreTrainedModel, folder: str) -> None:
    """Put the weights of a checkpoint into a model that is there already.

    ``Trainer`` reads a checkpoint's tensors by their names in the file and ignores names that do not fit. Since
    transformers 5 ``save_pretrained`` writes many models (every ViT, for one) under the names of earlier releases,
    so that a resume would silently go on with the encoder it started from. ``from_pretrained`` translates the names.

    Args:
        model: Changed in place, bit for bit to what was saved.
        folder: A folder written by ``save_pretrained``.

    Raises:
        ValueError: If there is no such folder, or a weight is missing, unknown, or has another shape.
    """
    if not os.path.isdir(folder):
        raise ValueError(f"there is no checkpoint folder {folder!r}; a run writes them as OUTPUT_DIR/checkpoint-STEP")
    loaded: Any = type(model).from_pretrained(folder, dtype=model.dtype, output_loading_info=True)
    saved, found = loaded
    wrong = {kind: sorted(map(str, found[kind])) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    if any(wrong.values()):  # from_pretrained fills what is missing with random numbers
        told = "; ".join(f"{kind.replace('_', ' ')}: {', '.join(keys[:5])}" for kind, keys in wrong.items() if keys)
        raise ValueError(f"the weights in {folder} are not those of this {type(model).__name__}: {told}")
    model.load_state_dict(saved.state_dict(), strict=True)
