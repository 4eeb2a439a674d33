"""Images with right and wrong captions.

The way of the data: :mod:`.schema` finds the columns, :mod:`.table` tokenizes the captions once, :mod:`.negatives`
draws captions of other images, :mod:`.dataset` (or :mod:`.stream`) makes examples, :mod:`.sampler` says in which
order, and :mod:`.collator` makes the batch. Everything random is a pure function of (seed, epoch, row): see
:mod:`.keyed`. Nothing here knows a model.
"""

from .collator import CaptionCollator
from .dataset import ContrastiveCaptionDataset
from .examples import CaptionExample, Tokens
from .images import BadImageError, open_image, to_rgb
from .negatives import EVALUATION_EPOCH, ShuffledNegatives
from .sampler import EpochSampler, SampleKey
from .schema import CaptionColumns, captions_of, find_columns
from .stream import ContrastiveCaptionStream
from .table import CaptionIndex, TokenStore

__all__ = [
    "EVALUATION_EPOCH",
    "BadImageError",
    "CaptionCollator",
    "CaptionColumns",
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
