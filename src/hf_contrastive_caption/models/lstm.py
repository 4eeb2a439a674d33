"""An LSTM for processors with and without fused layers of lower precision."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from hf_contrastive_caption.precision import processor_computes_in


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
        if not lower or processor_computes_in(torch.get_autocast_dtype("cpu")):
            return super().forward(values, state)
        with torch.autocast("cpu", enabled=False):
            states = state and (state[0].to(weights.dtype), state[1].to(weights.dtype))
            return super().forward(values.to(weights.dtype), states)
