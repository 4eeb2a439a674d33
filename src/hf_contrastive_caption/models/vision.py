"""The image's features from any vision model of transformers."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoBackbone, AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput


class VisionFeatures(nn.Module):
    """An image's features from any vision model: its feature map, or the mean over it.

    Args:
        model: A vision model, as ``AutoModel`` or ``AutoBackbone`` makes it.
        pooled: Whether to take the mean over all positions, which is the global average pooling of CNNs.
    """

    def __init__(self, model: PreTrainedModel, *, pooled: bool) -> None:
        super().__init__()
        self.model = model
        self.pooled = pooled

    @property
    def config(self) -> dict[str, Any]:
        """All that the features depend on beside the weights."""
        settings = json.loads(self.model.config.to_json_string(use_diff=False))
        return {**settings, "features_of": type(self.model).__name__, "pooled": self.pooled}

    def forward(
        self,
        pixel_values: Tensor,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutput:
        """Features of images.

        Args:
            pixel_values: What the image processor gives, (n_images, channels, height, width).
            output_attentions: ``generate`` passes this and the next two to every encoder; only features are kept.
            output_hidden_states: As above.
            return_dict: As above.

        Returns:
            ``last_hidden_state``: (n_images, positions, width), the positions of a feature map row by row, or the one
            that is their mean.
        """
        weights = next(self.model.parameters())
        output = self.model(pixel_values.to(weights.dtype))  # some vision models do not cast their pixels
        states = output.feature_maps[-1] if "feature_maps" in output else output.last_hidden_state
        if states.ndim == 4:  # (n_images, width, rows, columns)
            states = states.flatten(2).transpose(1, 2)
        return BaseModelOutput(last_hidden_state=states.mean(1, keepdim=True) if self.pooled else states)


def vision_model(config: PreTrainedConfig, *, backbone: bool) -> PreTrainedModel:
    """A vision model with random weights, made by ``AutoBackbone`` or ``AutoModel``."""
    maker: Any = AutoBackbone if backbone else AutoModel
    model: PreTrainedModel = maker.from_config(config)
    return model


def pretrained_vision_model(name: str, *, backbone: bool) -> PreTrainedModel:
    """A vision model from a repository on the Hub or a folder."""
    if not backbone:
        model: PreTrainedModel = AutoModel.from_pretrained(name, dtype=torch.float32)  # as the new decoder
        return model
    # AutoBackbone.from_pretrained (5.23) takes no folders and does not work offline.
    config = AutoConfig.from_pretrained(name)
    with torch.device("meta"):  # only its class is wanted
        vision_class = type(vision_model(config, backbone=True))
    return vision_class.from_pretrained(name, config=config, dtype=torch.float32)


def vision_width(vision: PreTrainedModel, *, backbone: bool) -> int:
    """Channels of a vision model's features, (n_images, positions, channels).

    Raises:
        ValueError: If its config does not say.
    """
    if backbone:
        channels: list[int] = vision.channels  # type: ignore[assignment]
        return channels[-1]
    settings = vision.config.to_dict()
    width = settings.get("hidden_size") or settings.get("hidden_sizes")
    if width is None:
        raise ValueError(
            f"the config of {type(vision).__name__} has neither hidden_size nor hidden_sizes, so the width of its "
            "features is not known; set vision_hidden_size in the captioner's config"
        )
    return int(width[-1] if isinstance(width, (list, tuple)) else width)
