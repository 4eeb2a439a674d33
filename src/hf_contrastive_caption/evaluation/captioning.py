"""The captions that an evaluation is about: given, written by the captioner, or kept from an interrupted run."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from transformers import GenerationConfig

from hf_contrastive_caption.captioners import Captioner
from hf_contrastive_caption.evaluation.pool import ImagePool
from hf_contrastive_caption.evaluation.retrieval.retrievers import CaptionerRetriever
from hf_contrastive_caption.fingerprints import json_digest
from hf_contrastive_caption.generation import describe_decoding, stream_captions
from hf_contrastive_caption.writing import write_whole

logger = logging.getLogger(__name__)

GIVEN = "captions were given"


class Captions(NamedTuple):
    """One caption for each image.

    Attributes:
        texts: The captions, (n_images,).
        decoding: How they were generated, or that they were given.
    """

    texts: tuple[str, ...]
    decoding: str


def captions_for(
    captioner: Captioner | None,
    pool: ImagePool,
    given: Sequence[str] | None = None,
    *,
    batch_size: int = 32,
    cache_dir: str | PathLike[str] | None = None,
    progress: bool = False,
    **generate_kwargs: Any,
) -> Captions:
    """The captions of some images: those that are given, or else what the captioner writes.

    Under Accelerate the images are dealt out to the processes, and every process gets all captions.

    Args:
        captioner: Writes the captions.
        pool: The images.
        given: One caption for each image, in their order.
        batch_size: Images that are captioned at once.
        cache_dir: Folder that keeps what was written, sampled captions too, whatever the seed. Nothing is kept or
            taken where an argument of ``generate`` is a function or an object, as two of these cannot be told apart.
        progress: Whether to show a progress bar.
        **generate_kwargs: Arguments of ``model.generate``, see :func:`caption_images`.

    Raises:
        ValueError: If there are not as many captions as images, a caption is no string, or ``cache_dir`` cannot be
            written to.
        TypeError: If captions are given together with arguments of ``generate``, or neither they nor a captioner.
    """
    if cache_dir is not None:
        _make_folder(Path(cache_dir))
    if given is not None:
        _check(given, pool)
        if generate_kwargs:
            raise TypeError(f"Captions were given, so nothing is generated; leave out {', '.join(generate_kwargs)}.")
        return Captions(tuple(given), GIVEN)
    if captioner is None:
        raise TypeError("Without a captioner, captions must be given.")
    decoding = describe_decoding(captioner.processor, generate_kwargs)
    file, texts = None, None
    arguments = None if cache_dir is None else _as_text(generate_kwargs)
    if cache_dir is not None and arguments is None:
        logger.warning("captions are not kept in %s, as an argument of generate is an object or a function", cache_dir)
    elif cache_dir is not None:
        own = str(captioner.base_model.generation_config)
        parts = [CaptionerRetriever(captioner).fingerprint(), pool.fingerprint, arguments, own]
        file = Path(cache_dir) / f"captions-{json_digest([*parts, decoding])}.json"
        kept = [json.loads(file.read_text(encoding="utf-8")) if file.exists() else None]
        # Folders may differ between machines, and all processes must go the same way.
        texts = broadcast_object_list(kept)[0]
        if texts is not None:
            return Captions(tuple(texts), decoding)
    texts = _written(captioner, pool, batch_size, progress, generate_kwargs)
    if file is not None and PartialState().is_main_process:
        write_whole(file, json.dumps(texts, ensure_ascii=False))
    return Captions(tuple(texts), decoding)


def _make_folder(folder: Path) -> None:
    """Make the folder now: that it cannot be written to is to be said before anything is put into it."""
    if folder.is_file():
        raise ValueError(f"cache_dir {folder} is a file; give a folder.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cache_dir {folder} cannot be made: {error}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"cache_dir {folder} may not be written to; give another folder.")


def _as_text(arguments: dict[str, Any]) -> str | None:
    """Arguments of ``generate`` as JSON; ``None`` if that cannot hold one: functions differ by their address."""
    try:
        return json.dumps(arguments, sort_keys=True, default=_settings)
    except (TypeError, ValueError):
        return None


def _settings(value: Any) -> dict[str, Any]:
    if not isinstance(value, GenerationConfig):
        raise TypeError(value)
    return value.to_dict()


def _written(
    captioner: Captioner, pool: ImagePool, batch_size: int, progress: bool, generate_kwargs: dict[str, Any]
) -> list[str]:
    state = PartialState()
    mine = range(state.process_index, len(pool), state.num_processes)
    written: list[str] = []
    if mine:  # there may be fewer images than processes
        shown = progress and state.is_main_process
        found = stream_captions(captioner, pool.select(mine), batch_size=batch_size, progress=shown, **generate_kwargs)
        written = [one.caption for one in found]
    pairs = list(zip(mine, written, strict=True))
    if state.num_processes > 1:
        pairs = gather_object(pairs)
    return [caption for _, caption in sorted(pairs)]


def _check(captions: Sequence[str], pool: ImagePool) -> None:
    if isinstance(captions, str):
        raise TypeError(f"captions is one text, {captions!r}; give a list with a caption for each image.")
    if not isinstance(captions, Sequence):
        raise TypeError(f"captions is a {type(captions).__name__}; give a list with a caption for each image.")
    if len(captions) != len(pool):
        raise ValueError(
            f"Got {len(captions)} captions for {len(pool)} images; give one caption for each image, in their order."
        )
    wrong = next((number for number, caption in enumerate(captions) if not isinstance(caption, str)), None)
    if wrong is not None:
        raise ValueError(f"Caption {wrong} is a {type(captions[wrong]).__name__}; captions are strings.")
