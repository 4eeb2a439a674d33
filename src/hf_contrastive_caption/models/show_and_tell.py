"""Show and Tell: a CNN's image vector is the first word that an LSTM reads.

Oriol Vinyals, Alexander Toshev, Samy Bengio and Dumitru Erhan, "Show and Tell: A Neural Image Caption Generator", CVPR
2015, arXiv 1411.4555, section 3; the model that NeuralTalk2 trains. Written from the equations of the paper.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText

from hf_contrastive_caption.models.lstm import ProcessorLSTM
from hf_contrastive_caption.models.ragged import read_ragged
from hf_contrastive_caption.models.recurrent import (
    DecoderOutput,
    RecurrentCaptionerConfig,
    RecurrentCaptionerModel,
    RecurrentDecoder,
)
from hf_contrastive_caption.models.state import RecurrentState


class ShowAndTellConfig(RecurrentCaptionerConfig):
    """Config of :class:`ShowAndTell`: that of :class:`RecurrentCaptionerConfig`, and one more setting.

    Attributes:
        normalize_image: Whether image vectors get mean 0 and variance 1 over their channels (a layer normalization
            without weights). Not in the paper, whose CNN was trained to classify: the means over the feature map of
            a CNN that was trained for captions, or not at all, have most of their length in common.
    """

    model_type = "show-and-tell"

    normalize_image: bool = False


class ShowAndTellDecoder(RecurrentDecoder):
    """Equations 10 to 12 of the paper: x_(-1) = W_i CNN(I), x_t = W_e S_t, p_(t+1) = softmax(W LSTM(x_t))."""

    def __init__(self, config: RecurrentCaptionerConfig, vision_width: int) -> None:
        super().__init__(config, vision_width)
        assert isinstance(config, ShowAndTellConfig)
        self.normalize_image = config.normalize_image
        self.image = nn.Linear(vision_width, config.embedding_size)
        sizes = (config.embedding_size, config.hidden_size, config.num_hidden_layers)
        self.lstm = ProcessorLSTM(*sizes, batch_first=True)

    def forget_gates(self) -> Iterator[tuple[Tensor, int]]:
        """See :meth:`RecurrentDecoder.forget_gates`; gates come in the order input, forget, cell, output."""
        for layer in range(self.lstm.num_layers):
            yield self.lstm.get_parameter(f"bias_ih_l{layer}"), self.lstm.hidden_size

    def start(self, seen: tuple[Tensor, ...]) -> RecurrentState:
        """See :meth:`RecurrentDecoder.start`: the state behind the image, (n_images, 1, width), and before a word."""
        vectors = seen[0]  # (n_images, 1, vision_width)
        if self.normalize_image:
            vectors = F.layer_norm(vectors, vectors.shape[-1:])
        _, (hidden, cell) = self.lstm(self.image(vectors))
        return RecurrentState(hidden, cell)

    def forward(
        self,
        seen: tuple[Tensor, ...],
        input_ids: Tensor,
        lengths: list[int],
        image_index: Tensor,
        state: RecurrentState,
    ) -> DecoderOutput:
        """See :meth:`RecurrentDecoder.forward`."""
        words = self.dropout(self.embedding(input_ids))  # (n_tokens, embedding_size)
        hidden, after = read_ragged(words, lengths, state, self._recur)
        return DecoderOutput(self.dropout(hidden), after)

    def _recur(self, words: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        """The LSTM over captions of one length, (n_captions, length, embedding_size)."""
        outputs, (hidden, cell) = self.lstm(words, (state.hidden, state.cell))
        return outputs, RecurrentState(hidden, cell)


class ShowAndTell(RecurrentCaptionerModel):
    """Captions images with an LSTM that is told the image once, as its first input.

    The image is the mean over the positions of the vision model's last feature map.
    """

    config_class = ShowAndTellConfig
    decoder_class = ShowAndTellDecoder
    pooled = True


AutoConfig.register(ShowAndTellConfig.model_type, ShowAndTellConfig)
AutoModelForImageTextToText.register(ShowAndTellConfig, ShowAndTell)
