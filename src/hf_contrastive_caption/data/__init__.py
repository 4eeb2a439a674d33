"""Images with right and wrong captions.

The way of the data: :mod:`.schema` finds the columns, :mod:`.table` tokenizes the captions once, :mod:`.negatives`
draws captions of other images, :mod:`.dataset` (or :mod:`.stream`) makes examples, :mod:`.sampler` says in which
order, and :mod:`.collator` makes the batch. Everything random is a pure function of (seed, epoch, row): see
:mod:`.keyed`. Nothing here knows a model.
"""

from hf_contrastive_caption.data.collator import CaptionCollator
from hf_contrastive_caption.data.dataset import ContrastiveCaptionDataset
from hf_contrastive_caption.data.examples import CaptionExample, Tokens
from hf_contrastive_caption.data.images import BadImageError, open_image, to_rgb
from hf_contrastive_caption.data.negatives import EVALUATION_EPOCH, ShuffledNegatives
from hf_contrastive_caption.data.sampler import EpochSampler, SampleKey
from hf_contrastive_caption.data.schema import CaptionColumns, captions_of, find_columns
from hf_contrastive_caption.data.stream import ContrastiveCaptionStream
from hf_contrastive_caption.data.table import CaptionIndex, TokenStore

CaptionData = ContrastiveCaptionDataset | ContrastiveCaptionStream
"""What a trainer draws from."""

__all__ = [
    "EVALUATION_EPOCH",
    "BadImageError",
    "CaptionCollator",
    "CaptionColumns",
    "CaptionData",
    "CaptionExample",
    "CaptionIndex",
    "ContrastiveCaptionDataset",
    "ContrastiveCaptionStream",
    "EpochSampler",
    "SampleKey",
    "ShuffledNegatives",
    "TokenStore",
    "Tokens",
    "captions_of",
    "find_columns",
    "open_image",
    "to_rgb",
]
