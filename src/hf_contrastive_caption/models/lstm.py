"""An LSTM for processors with and without fused layers of lower precision."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

_ASKED = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}


class ProcessorLSTM(nn.LSTM):
    """``nn.LSTM`` that autocast leaves in the precision of its weights on processors without a lower one.

    Under autocast torch asks oneDNN for a fused layer of bfloat16 or float16 whatever the processor has, and where it
    has none (without AVX-512, for example) dense batches raise "could not create a primitive descriptor".
    """

    def forward(  # type: ignore[override]
        self, values: Tensor | PackedSequence, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor | PackedSequence, tuple[Tensor, Tensor]]:
        """See ``nn.LSTM``."""
        weights = next(self.parameters())
        lower = weights.device.type == "cpu" and torch.is_autocast_enabled("cpu")
        if not lower or has_fused_layers(torch.get_autocast_dtype("cpu")):
            return super().forward(values, state)
        with torch.autocast("cpu", enabled=False):
            states = state and (state[0].to(weights.dtype), state[1].to(weights.dtype))
            return super().forward(values.to(weights.dtype), states)


def has_fused_layers(dtype: torch.dtype) -> bool:
    """Whether this processor can do what torch asks of oneDNN for an LSTM of a type, if it asks."""
    if dtype not in _ASKED or not torch.backends.mkldnn.is_available():
        return True
    return bool(getattr(torch.ops.mkldnn, _ASKED[dtype])())
