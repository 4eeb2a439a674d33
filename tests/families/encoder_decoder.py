"""Tiny `VisionEncoderDecoderModel` captioners."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tests import tiny
from tests.families.common import Family, Inputs, with_start


def _encoder_decoder(name: tiny.DecoderName, layout: str) -> Family:
    def logits(model: Any, inputs: Inputs, ids: Tensor) -> Tensor:
        return model(**inputs, decoder_input_ids=with_start(ids)[:, :-1], use_cache=False).logits[0]

    def loss(model: Any, inputs: Inputs, ids: Tensor) -> Tensor:
        return model(**inputs, labels=ids[None]).loss

    return Family(
        name=f"vit-{name}",
        model=lambda dropout: tiny.captioner_model(name, dropout=dropout),
        processing=tiny.processing,
        logits=logits,
        loss=loss,
        layout=layout,
        tries=layout == "packed",
    )


ENCODER_DECODERS = (_encoder_decoder("gpt2", "packed"), _encoder_decoder("trocr", "repeated"))
