"""Adaptive attention: an LSTM that looks at the image's positions, or at what it knows already, before each word.

Jiasen Lu, Caiming Xiong, Devi Parikh and Richard Socher, "Knowing When to Look: Adaptive Attention via a Visual
Sentinel for Image Captioning", CVPR 2017, arXiv 1612.01887, section 2. Written from the equations of the paper.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText

from hf_contrastive_caption.models.ragged import read_ragged
from hf_contrastive_caption.models.recurrent import (
    DecoderOutput,
    RecurrentCaptionerConfig,
    RecurrentCaptionerModel,
    RecurrentDecoder,
)
from hf_contrastive_caption.models.state import RecurrentState

_GATES = 5
"""Those of the LSTM (input, forget, content, output) and that of the sentinel, which reads the same."""


class AdaptiveAttentionConfig(RecurrentCaptionerConfig):
    """Config of :class:`AdaptiveAttention`: that of :class:`RecurrentCaptionerConfig`, with one layer, and one more.

    Attributes:
        attention_size: Width of the attention's hidden layer, which is as large as the number of positions, 49, in
            the paper.
    """

    model_type = "adaptive-attention"

    attention_size: int = 49

    def __post_init__(self, **kwargs: Any) -> None:
        """Refuse sizes that make no model."""
        super().__post_init__(**kwargs)
        if self.attention_size < 1:
            raise ValueError(f"attention_size is {self.attention_size}, but must be at least 1")
        if self.num_hidden_layers != 1:
            raise ValueError(
                f"num_hidden_layers is {self.num_hidden_layers}, but the LSTM with a visual sentinel has 1; "
                "set hidden_size for a larger one"
            )


class AdaptiveAttentionDecoder(RecurrentDecoder):
    """The equations of section 2.

    Attention reads the LSTM's output and never enters its next step, so the LSTM runs over all captions first, each
    step over those that are not at their end, and attention is one computation for all tokens.
    """

    def __init__(self, config: RecurrentCaptionerConfig, vision_width: int) -> None:
        super().__init__(config, vision_width)
        assert isinstance(config, AdaptiveAttentionConfig)
        size, attention = config.hidden_size, config.attention_size
        self.image = nn.Linear(vision_width, size)  # W_a
        self.image_mean = nn.Linear(vision_width, size)  # W_b
        # x_t = [w_t; v^g], each with its part of the weights: that of v^g is computed once for an image.
        self.word_gates = nn.Linear(config.embedding_size, _GATES * size)
        self.image_gates = nn.Linear(size, _GATES * size, bias=False)
        self.recurrent_gates = nn.Linear(size, _GATES * size, bias=False)
        self.attend_image = nn.Linear(size, attention, bias=False)  # W_v
        self.attend_hidden = nn.Linear(size, attention, bias=False)  # W_g
        self.attend_sentinel = nn.Linear(size, attention, bias=False)  # W_s
        self.attend = nn.Linear(attention, 1, bias=False)  # w_h

    def see(self, features: Tensor) -> tuple[Tensor, ...]:
        """See :meth:`RecurrentDecoder.see`.

        Returns:
            V, (n_images, positions, hidden_size), W_v V, (n_images, positions, attention_size), and the part of v^g in
            the gates, (n_images, 5 * hidden_size).
        """
        regions = self.image(features).relu()
        whole = self.image_mean(features.mean(1)).relu()  # v^g, (n_images, hidden_size)
        return regions, self.attend_image(regions), self.image_gates(whole)

    def forget_gates(self) -> Iterator[tuple[Tensor, int]]:
        """See :meth:`RecurrentDecoder.forget_gates`; gates come in the order of :data:`_GATES`."""
        yield self.word_gates.bias, self.recurrent_gates.in_features

    def start(self, seen: tuple[Tensor, ...]) -> RecurrentState:
        """See :meth:`RecurrentDecoder.start`: zeros, as the image enters with every word."""
        nothing = self.word_gates.weight.new_zeros(1, seen[0].shape[0], self.recurrent_gates.in_features)
        return RecurrentState(nothing, nothing)

    def bytes_per_token(self, features: Tensor) -> int:
        """See :meth:`RecurrentDecoder.bytes_per_token`; attention over the positions is the larger part."""
        attention = features.shape[1] * (2 * self.attend.in_features + 3) * features.element_size()
        return super().bytes_per_token(features) + attention

    def forward(
        self,
        seen: tuple[Tensor, ...],
        input_ids: Tensor,
        lengths: list[int],
        image_index: Tensor,
        state: RecurrentState,
    ) -> DecoderOutput:
        """See :meth:`RecurrentDecoder.forward`."""
        regions, keys, of_image = seen
        repeats = torch.tensor(lengths, device=input_ids.device)
        token_image = image_index.repeat_interleave(repeats, output_size=input_ids.shape[0])  # (n_tokens,)
        words = self.dropout(self.embedding(input_ids))  # (n_tokens, embedding_size)
        gates = self.word_gates(words) + of_image.index_select(0, token_image)  # (n_tokens, 5 * hidden_size)
        outputs, after = read_ragged(gates, lengths, state, self._recur)
        hidden, sentinel = outputs.chunk(2, dim=1)  # (n_tokens, hidden_size) each
        read, attention = self._look(regions, keys, hidden, sentinel, token_image)
        return DecoderOutput(self.dropout(read + hidden), after, attention)

    def _recur(self, gates: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        """The LSTM, and the visual sentinel s_t = sigmoid(W_x x_t + W_h h_(t-1)) * tanh(m_t).

        Args:
            gates: What the inputs give to the gates, (n_captions, steps, 5 * hidden_size).
            state: Before the first token.

        Returns:
            h_t and s_t side by side, (n_captions, steps, 2 * hidden_size), and the state behind the last token.
        """
        hidden, cell = state.hidden[0], state.cell[0]  # (n_captions, hidden_size)
        outputs = []
        for step in gates.unbind(1):
            enter, forget, content, leave, look = (step + self.recurrent_gates(hidden)).chunk(_GATES, dim=1)
            cell = forget.sigmoid() * cell + enter.sigmoid() * content.tanh()
            squashed = cell.tanh()
            hidden = leave.sigmoid() * squashed
            outputs.append(torch.cat([hidden, look.sigmoid() * squashed], dim=1))
        return torch.stack(outputs, dim=1), RecurrentState(hidden[None], cell[None])

    def _look(
        self, regions: Tensor, keys: Tensor, hidden: Tensor, sentinel: Tensor, token_image: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What is seen before each word: the image's positions and the sentinel, weighted.

        With the weights a over positions and sentinel (equation 12), beta = a_(k+1), the adaptive context
        beta * s + (1 - beta) * c is the sum of all weighted by a, as c's own weights are a_i / (1 - beta).

        Args:
            regions: V, (n_images, positions, hidden_size).
            keys: W_v V, (n_images, positions, attention_size).
            hidden: h_t, (n_tokens, hidden_size).
            sentinel: s_t, (n_tokens, hidden_size).
            token_image: The image of each token, (n_tokens,).

        Returns:
            The adaptive context, (n_tokens, hidden_size), and the weights, (n_tokens, positions + 1).
        """
        num_images, positions, size = regions.shape
        place, width = _places(token_image, num_images)

        def by_image(values: Tensor) -> Tensor:  # (n_tokens, n) to (n_images, width, n): nothing of V is copied
            rows = values.new_zeros(num_images * width, values.shape[1]).index_copy(0, place, values)
            return rows.view(num_images, width, -1)

        query = self.attend_hidden(hidden)  # (n_tokens, attention_size)
        compared = keys[:, None] + by_image(query)[:, :, None]
        scores = self.attend(compared.tanh()).flatten(2)  # z, (n_images, width, positions)
        own = self.attend((self.attend_sentinel(sentinel) + query).tanh())  # (n_tokens, 1)
        scores = scores.view(-1, positions).index_select(0, place)
        weights = torch.cat([scores, own], dim=1).softmax(dim=1)  # (n_tokens, positions + 1)
        context = by_image(weights[:, :-1]) @ regions  # (n_images, width, hidden_size)
        return context.view(-1, size).index_select(0, place) + weights[:, -1:] * sentinel, weights


def _places(token_image: Tensor, num_images: int) -> tuple[Tensor, int]:
    """Rows of tokens by image: the place of each token in (n_images, width) flattened, (n_tokens,), and the width."""
    counts = torch.bincount(token_image, minlength=num_images)  # (n_images,)
    width = int(counts.max())
    order = token_image.argsort(stable=True)
    number = torch.arange(token_image.shape[0], device=token_image.device)
    column = torch.empty_like(token_image)
    column[order] = number - (counts.cumsum(0) - counts)[token_image[order]]
    return token_image * width + column, width


class AdaptiveAttention(RecurrentCaptionerModel):
    """Captions images with an LSTM that attends to the feature map, or to its visual sentinel where words need none.

    With ``output_attentions=True`` it returns where it looked, and how much it relied on the sentinel.
    """

    config_class = AdaptiveAttentionConfig
    decoder_class = AdaptiveAttentionDecoder
    pooled = False


AutoConfig.register(AdaptiveAttentionConfig.model_type, AdaptiveAttentionConfig)
AutoModelForImageTextToText.register(AdaptiveAttentionConfig, AdaptiveAttention)
