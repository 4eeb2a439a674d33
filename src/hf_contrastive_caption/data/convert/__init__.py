"""From the files that captioning data sets come in to parquet files with images, captions and image ids.

Annotations are read by :mod:`annotations`, their images found and read by :mod:`pictures`, the files written by
:mod:`shards`; :func:`convert_captions` does all of it.
"""

from hf_contrastive_caption.data.convert.conversion import Conversion, convert_captions

__all__ = ["Conversion", "convert_captions"]
