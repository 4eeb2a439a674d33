"""From ragged captions to rows of decoder input, and from per-token values back to captions.

Two layouts, one function. *Packed*: the captions of an image stand one behind the other in one row, so that the
decoder projects the image's cross-attention keys and values once for all of them and computes hardly any padding.
*Repeated*: one row per caption. Both hold the same tokens; only the row of a caption differs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hf_contrastive_caption.captioners.batch import CaptionBatch


class DecoderRows(NamedTuple):
    """Decoder input of a set of captions.

    Attributes:
        input_ids: Start token and all but the last token of each caption, (rows, width).
        position_ids: Position of each token within its own caption, (rows, width); 0 in padding.
        caption_ids: Number of the caption that a token belongs to, -1 in padding, (rows, width).
        source: For each caption token, in the flat order of the :class:`CaptionBatch`, the place in the flattened rows
            whose output predicts it, (n_tokens,).
        packed: Whether the captions of an image share a row.
    """

    input_ids: Tensor
    position_ids: Tensor
    caption_ids: Tensor
    source: Tensor
    packed: bool


def decoder_rows(
    captions: CaptionBatch, num_images: int, start_token_id: int, pad_token_id: int, *, packed: bool
) -> DecoderRows:
    """Lay captions out in rows: those of an image behind each other in its row, or each in a row of its own.

    The captions of an image need not be neighbours in the batch.

    Args:
        captions: The captions.
        num_images: Number of images, which is the number of packed rows.
        start_token_id: The token from which the first token of a caption is predicted.
        pad_token_id: Fills the rows up; it is masked and never read as a token.
        packed: Whether the captions of an image share a row.
    """
    lengths, tokens = captions["lengths"], captions["input_ids"]
    device, num_captions = tokens.device, lengths.shape[0]
    row = captions["image_index"] if packed else torch.arange(num_captions, device=device)
    num_rows = num_images if packed else num_captions
    start = lengths.cumsum(0) - lengths  # (n_captions,) where a caption begins in the flat tokens
    order = torch.argsort(row, stable=True)
    ends = lengths[order].cumsum(0)  # (n_captions,) in order of rows
    row_length = torch.zeros(num_rows, dtype=torch.long, device=device).index_add_(0, row, lengths)  # (rows,)
    row_start = row_length.cumsum(0) - row_length  # (rows,)
    column = torch.empty_like(lengths)
    column[order] = ends - lengths[order] - row_start[row[order]]  # (n_captions,) where a caption begins in its row

    caption = torch.repeat_interleave(torch.arange(num_captions, device=device), lengths, output_size=tokens.shape[0])
    position = torch.arange(tokens.shape[0], device=device) - start[caption]  # (n_tokens,)
    width = int(row_length.max())
    source = row[caption] * width + column[caption] + position  # (n_tokens,)
    previous = torch.where(position == 0, start_token_id, tokens.roll(1))  # (n_tokens,)

    def rows(values: Tensor, fill: int) -> Tensor:
        flat = torch.full((num_rows * width,), fill, dtype=torch.long, device=device)
        return flat.index_copy_(0, source, values).view(num_rows, width)

    return DecoderRows(rows(previous, pad_token_id), rows(position, 0), rows(caption, -1), source, packed)


def block_causal_mask(caption_ids: Tensor, dtype: torch.dtype) -> Tensor:
    """The additive attention mask of packed rows: a token sees the earlier tokens of its own caption and itself.

    Additive and not boolean, because eager attention adds it, and BLIP's decoder gives wrong numbers with a boolean
    one. Padding sees padding, so no row of the softmax is empty.

    Args:
        caption_ids: Caption number of each token, (rows, width).
        dtype: A floating dtype.

    Returns:
        0 where attention is allowed and the dtype's lowest number elsewhere, (rows, 1, width, width).
    """
    width = caption_ids.shape[1]
    same = caption_ids[:, :, None] == caption_ids[:, None, :]  # (rows, width, width)
    causal = torch.ones(width, width, dtype=torch.bool, device=caption_ids.device).tril()
    mask = torch.zeros(same.shape, dtype=dtype, device=caption_ids.device)
    return mask.masked_fill_(~(same & causal), torch.finfo(dtype).min)[:, None]


def sum_by_caption(values: Tensor, lengths: Tensor) -> Tensor:
    """Sum per-token values over the tokens of each caption.

    Args:
        values: (n_tokens,), float32 or float64.
        lengths: (n_captions,).

    Returns:
        (n_captions,)
    """
    caption = torch.repeat_interleave(
        torch.arange(lengths.shape[0], device=values.device), lengths, output_size=values.shape[0]
    )
    return values.new_zeros(lengths.shape[0]).index_add(0, caption, values)
