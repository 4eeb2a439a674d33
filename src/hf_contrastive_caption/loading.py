"""Loading a captioner and both sides of its processing by name."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft import PeftConfig, PeftModel
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    BaseImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.trainer_utils import sort_checkpoints
from transformers.utils import CONFIG_NAME
from transformers.utils.hub import has_file

import hf_contrastive_caption.models  # noqa: F401  # registers the paper's models with the Auto classes
from hf_contrastive_caption.captioners.base import Captioner
from hf_contrastive_caption.captioners.registry import (
    captioner_for,
    check_architecture,
    has_captioner,
    holds_captioner,
    prompt_or,
    takes_prompt,
    unknown_captioner,
)
from hf_contrastive_caption.precision import common_dtype

_WHERE_FROM = ("revision", "cache_dir", "token", "local_files_only", "force_download", "trust_remote_code")
"""Arguments of ``from_pretrained`` that hold for the files beside the weights as well."""

_ADAPTER = "adapter_config.json"
_OWN_PROCESSING = ("preprocessor_config.json", "processor_config.json")
"""Files of which a folder with an image processor, or with a whole processor, has one."""


def is_captioner(name: str | os.PathLike[str]) -> bool:
    """Whether a folder or a repository holds a captioner of a known family, or an adapter, which can be one's.

    Raises:
        ValueError: If there is no such folder.
        OSError: If there is no such repository, or it may not be read.
    """
    name = os.fspath(name)
    check_name(name)
    return _has_file(name, _ADAPTER, {}) or holds_captioner(_config(name, {}))


def load_captioner(
    name: str | os.PathLike[str],
    *,
    processing_class: Any = None,
    prompt: str | None = None,
    otherwise: str | None = None,
    device: torch.device | str | None = "auto",
    **model_init_kwargs: Any,
) -> Captioner:
    """The captioner in a folder or a repository: model, adapter if it is one, tokenizer and image processor.

    Args:
        name: Repository on the Hub or folder; one with an ``adapter_config.json`` is loaded through PEFT onto the
            base model that this names, with the base's processing if it has none of its own.
        processing_class: Tokenizer and image processor in place of those that lie beside the weights.
        prompt: What a chat model is asked; the prompt that was saved with it if not given.
        otherwise: What it is asked if there is neither.
        device: Where the model is put; ``"auto"`` for this process's GPU if there is one, ``None`` to leave it where
            ``from_pretrained`` puts it.
        **model_init_kwargs: Arguments of ``from_pretrained``, see :func:`load_model`.

    Raises:
        ValueError: If there is no such folder, or no model in it.
        OSError: If there is no such repository, or it may not be read.
        TypeError: If it is no captioner of a known family.
    """
    model, processing_class = load_parts(name, processing_class=processing_class, **model_init_kwargs)
    if device is not None and "device_map" not in model_init_kwargs:
        model.to(PartialState().device if device == "auto" else device)
    asked = prompt_or(prompt, model, processing_class, otherwise)
    return captioner_for(model.eval(), processing_class, prompt=asked)


def load_parts(
    name: str | os.PathLike[str], *, processing_class: Any = None, trainable: bool = False, **model_init_kwargs: Any
) -> tuple[Any, Any]:
    """What :func:`load_captioner` makes a captioner of: the model, and its tokenizer and image processor.

    Args:
        name: See there, and for the errors.
        processing_class: See there.
        trainable: Let the weights of an adapter train, as they do not when PEFT loads it to be used.
        **model_init_kwargs: See there.
    """
    name = os.fspath(name)
    check_name(name)
    where = _where_from(model_init_kwargs)
    adapter = _has_file(name, _ADAPTER, where)
    source, base_kwargs = name, model_init_kwargs
    if adapter:
        source, base_kwargs = _base_of(name, where, model_init_kwargs)
    elif os.path.isdir(name) and not os.path.isfile(os.path.join(name, CONFIG_NAME)):
        raise ValueError(_no_model(name))
    config = _config(source, base_kwargs)
    if not has_captioner(config):
        raise TypeError(unknown_captioner(config, source))
    check_architecture(config, source)
    model: Any = load_model(source, **base_kwargs)
    if adapter:
        model = PeftModel.from_pretrained(model, name, is_trainable=trainable, **where)
    if processing_class is None:
        own = not adapter or any(_has_file(name, file, where) for file in _OWN_PROCESSING)
        beside, kwargs = (name, model_init_kwargs) if own else (source, base_kwargs)
        processing_class = load_processing(beside, whole=takes_prompt(model), **kwargs)
    return model, processing_class


def _config(name: str, kwargs: dict[str, Any]) -> PreTrainedConfig:
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(name, **_where_from(kwargs))
    except OSError as error:  # without a connection it does not say of what
        raise OSError(f"{name} cannot be loaded. {error}") from error
    return config


def _base_of(name: str, where: dict[str, Any], given: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The base model that an adapter names, and the arguments with which it is loaded."""
    config = PeftConfig.from_pretrained(name, **where)
    base = config.base_model_name_or_path
    if not base:
        raise ValueError(
            f"{name} is an adapter that does not say to which model it belongs; load the model yourself and pass "
            "captioner_for(PeftModel.from_pretrained(model, folder), processing_class)"
        )
    if not os.path.exists(base) and not is_repository(base):
        raise ValueError(
            f"{name} is an adapter of the model in the folder {base}, which is not here; set "
            f"base_model_name_or_path in its {_ADAPTER} to where the model is"
        )
    kwargs = {key: value for key, value in given.items() if key not in ("revision", "force_download")}
    return base, {**kwargs, **({} if config.revision is None else {"revision": config.revision})}


def check_name(name: str) -> None:
    """Refuse what cannot be the name of a model.

    Raises:
        ValueError: If it is neither a folder nor a possible name of a repository.
    """
    if os.path.isfile(name):
        raise ValueError(f"{name} is a file; give the folder in which a model was saved, or the name of a repository")
    if not os.path.isdir(name) and not is_repository(name):
        raise ValueError(f"{name} is neither a folder nor the name of a repository on the Hub, such as 'me/my-model'")


def is_repository(name: str) -> bool:
    """Whether a name that is no folder could be one on the Hub."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def short_name(name: str | os.PathLike[str]) -> str:
    """A model's name as people are shown it: of a folder the last part alone; what is no folder as it is."""
    name = os.fspath(name)
    return os.path.basename(os.path.abspath(name)) if os.path.exists(name) or os.path.isabs(name) else name


def _no_model(folder: str) -> str:
    found = sort_checkpoints(folder)
    adapters = sorted(str(file.parent) for file in Path(folder).glob(f"*/{_ADAPTER}"))
    hint = f"; its newest checkpoint is {found[-1]}" if found else ""
    if adapters and not found:
        hint = f"; give the folder of one adapter that lies in it ({', '.join(adapters)})"
    return (
        f"the folder {folder} holds no model: neither {CONFIG_NAME} nor {_ADAPTER} is in it. A trainer writes "
        f"them with save_model(){hint}"
    )


def _where_from(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in kwargs.items() if key in _WHERE_FROM}


def _has_file(name: str, file: str, where: dict[str, Any]) -> bool:
    known = ("revision", "token", "local_files_only", "cache_dir")
    return bool(has_file(name, file, **{key: value for key, value in where.items() if key in known}))


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
    where = _where_from(model_init_kwargs)
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
    # In a dtype that rounds none of them: model.dtype is that of the first weight, and others may be wider.
    dtype = common_dtype(model.state_dict().values())
    loaded: Any = type(model).from_pretrained(folder, dtype=dtype, output_loading_info=True)
    saved, found = loaded
    told = wrong_keys(found, ("missing_keys", "unexpected_keys", "mismatched_keys"))
    if told:  # from_pretrained fills what is missing with random numbers
        raise ValueError(f"the weights in {folder} are not those of this {type(model).__name__}: {told}")
    model.load_state_dict(saved.state_dict(), strict=True)


def wrong_keys(found: Mapping[str, Any], kinds: Sequence[str]) -> str:
    """What ``from_pretrained`` says of the weights that it did not find as they should be, the first of each kind.

    Args:
        found: Its ``output_loading_info``.
        kinds: What counts, such as ``"missing_keys"``.

    Returns:
        Nothing if there are none.
    """
    wrong = {kind: sorted(map(str, found[kind])) for kind in kinds}
    return "; ".join(f"{kind.replace('_', ' ')}: {', '.join(keys[:5])}" for kind, keys in wrong.items() if keys)
