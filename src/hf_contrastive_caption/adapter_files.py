"""The adapter of a PEFT model in a folder: the one that trains lies in the folder itself, whatever it is called.

PEFT puts only an adapter that is called ``default`` there, and others into folders of their names, where neither its
own ``from_pretrained`` nor ``Trainer`` nor an upload of a checkpoint looks for them.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from peft.utils.save_and_load import load_peft_weights
from torch import nn

logger = logging.getLogger(__name__)

_IN_THE_FOLDER = "default"
"""The name of the adapter that PEFT writes into the folder itself."""


def arrange_adapter(model: nn.Module, folder: str | os.PathLike[str]) -> None:
    """Leave in a folder, into which a model was just saved, the adapter that trains, or no adapter but a whole model.

    The adapter that trains goes where ``default`` would: one of that name that does not train belongs, as the base
    model does, to what the training began with. Further adapters stay where PEFT puts them. An adapter beside a
    whole model is of an earlier training, and would be loaded in place of the model.

    Args:
        model: The model that was saved. If several of its adapters are active, all stay as PEFT wrote them.
        folder: The folder.
    """
    if not isinstance(model, PeftModel):
        _put_aside_adapter(Path(folder))
        return
    if len(model.active_adapters) != 1 or model.active_adapters[0] == _IN_THE_FOLDER:
        return
    own = Path(folder) / model.active_adapters[0]
    for file in (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME):
        os.replace(own / file, Path(folder) / file)
    if not os.listdir(own):
        own.rmdir()


def _put_aside_adapter(folder: Path) -> None:
    """Without its config an adapter is none, and its weights are not lost."""
    config = folder / CONFIG_NAME
    if config.is_file():
        aside = config.with_name(f"{CONFIG_NAME}.before")
        logger.warning(
            "an adapter was in %s, and would be loaded in place of the model: its config is now %s", folder, aside
        )
        os.replace(config, aside)


def restore_adapter(model: PeftModel, folder: str | os.PathLike[str]) -> None:
    """Put the adapter of a checkpoint into the one that is active, and let every weight train, or not, as it did.

    ``Trainer`` loads it by methods of PEFT that let all of its weights train, also those that were frozen since no
    gradient reaches them, and an optimizer that was saved without these no longer fits.

    Args:
        model: Changed in place, bit for bit to what was saved.
        folder: A folder that :func:`arrange_adapter` left.

    Raises:
        ValueError: If there is no adapter, or a weight is missing, unknown, or has another shape.
    """
    if not os.path.isfile(os.path.join(folder, SAFETENSORS_WEIGHTS_NAME)):
        raise ValueError(f"{os.fspath(folder)!r} holds no adapter: {SAFETENSORS_WEIGHTS_NAME} is not in it")
    (name,) = model.active_adapters  # the trainer takes no model with several
    saved = load_peft_weights(os.fspath(folder), device="cpu")
    own = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    _refuse(folder, "missing", [key for key in own if key not in saved])
    _refuse(folder, "of another shape", [key for key in own if own[key].shape != saved[key].shape])
    loaded: Any = set_peft_model_state_dict(model, saved, adapter_name=name)
    _refuse(folder, "unknown", loaded.unexpected_keys)


def _refuse(folder: str | os.PathLike[str], what: str, keys: list[str]) -> None:
    if keys:
        raise ValueError(
            f"the adapter in {os.fspath(folder)} is not that of this model: {len(keys)} weights are {what} "
            f"({', '.join(sorted(keys)[:3])}); resume with the adapter configuration of the run"
        )
