"""``contrastive-caption caption``: captions of images, line by line."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from typing import Any, TextIO

import torch
from PIL import Image
from tqdm.auto import tqdm
from transformers import set_seed

from hf_contrastive_caption.cli.caption_command import CaptionOptions
from hf_contrastive_caption.cli.captioners import load_named
from hf_contrastive_caption.cli.errors import WrongUseError
from hf_contrastive_caption.cli.image_files import check_named, images_of
from hf_contrastive_caption.data.images import BadImageError, open_image
from hf_contrastive_caption.generation import stream_captions
from hf_contrastive_caption.processing import refused_images

Captioned = tuple[str, float | None]
"""A caption, and its log-probability in nats if that was asked for."""


def caption(options: CaptionOptions, out: TextIO | None = None) -> int:
    """Caption images and print the captions while they come, holding one batch of images.

    Args:
        options: What was asked for.
        out: Where to print; standard output if not given.

    Returns:
        How many images were captioned.

    Raises:
        WrongUseError: If there are no such images.
        BadImageError: If an image does not open, unless these are skipped, or if all of them were skipped.
    """
    if out is None:
        out = sys.stdout
        if isinstance(out, io.TextIOWrapper) and out.errors == "strict":
            out.reconfigure(errors="surrogateescape")  # names of files may be any bytes, and are printed as they are
    check_named(options.images)
    captions_of = load_captions_of(options)
    visible = sys.stderr.isatty()
    total = sum(1 for _ in _paths(options)) if visible else None  # another walk, instead of a list
    done, bad = 0, 0
    with tqdm(total=total, desc="captions", unit="image", disable=not visible, file=sys.stderr) as bar:
        for paths in _batches(_paths(options), options.batch_size):
            opened, kept = [], []
            for path in paths:
                try:
                    opened.append(open_image(path))
                    kept.append(path)
                except BadImageError as error:
                    _pass_over(error, options)
            before = done
            for path, found in zip(kept, captions_of(opened) if opened else [], strict=True):
                if isinstance(found, str):
                    _pass_over(BadImageError(f"{path}: {found}"), options)
                    continue
                print(_line(path, found, options), file=out, flush=True)
                done += 1
            bad += len(paths) - (done - before)
            bar.update(len(paths))
    if bad:
        print(f"{bad} of {done + bad} images do not open and were skipped", file=sys.stderr)
    if not done:
        raise BadImageError("none of the images opens")
    return done


def _pass_over(error: BadImageError, options: CaptionOptions) -> None:
    if not options.skip_bad:
        raise BadImageError(f"{error}\nPass over such images with --skip-bad") from error
    tqdm.write(f"skipped: {error}", file=sys.stderr)


def load_captions_of(options: CaptionOptions) -> Callable[[list[Image.Image]], Sequence[Captioned | str]]:
    """Load the captioner; what is returned captions a batch of images, or says why one of them has no caption."""
    device = _device(options.device)
    captioner = load_named(options.model, prompt=options.prompt, max_new_tokens=options.max_new_tokens, device=None)
    try:
        captioner.model.to(device)
    except (RuntimeError, AssertionError) as error:  # the second where PyTorch was built without it
        raise ValueError(f"the captioner cannot be put on the device {str(device)!r} of --device: {error}") from error
    set_seed(options.seed)
    arguments = _generation(options)

    def captions_of(images: list[Image.Image]) -> list[Captioned | str]:
        scored = options.log_probs
        found = stream_captions(captioner, images, batch_size=len(images), return_log_probs=scored, **arguments)
        try:
            return [(one.caption, one.log_prob) for one in found]
        except BadImageError:  # they are open, so the image processor does not take one of them
            refused = refused_images(captioner.processor.process_images, images)
        taken = [image for number, image in enumerate(images) if number not in refused]
        others = iter(captions_of(taken) if taken else [])
        return [refused[number] if number in refused else next(others) for number in range(len(images))]

    return captions_of


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise WrongUseError(f"--device {name} names no device; give one such as cpu, cuda or cuda:1") from error


def _generation(options: CaptionOptions) -> dict[str, Any]:
    given = {
        "num_beams": 1 if options.sample and options.num_beams is None else options.num_beams,
        "max_new_tokens": options.max_new_tokens,
        "do_sample": options.sample or None,
        "temperature": options.temperature,
        "top_p": options.top_p,
    }
    return {name: value for name, value in given.items() if value is not None}


def _paths(options: CaptionOptions) -> Iterator[str]:
    return chain.from_iterable(map(images_of, options.images))


def _batches(items: Iterator[str], size: int) -> Iterator[list[str]]:
    while batch := list(islice(items, size)):
        yield batch


def _line(path: str, found: Captioned, options: CaptionOptions) -> str:
    caption, score = found
    if options.as_json:
        content: dict[str, Any] = {"image": path, "caption": caption}
        escaped = re.search("[\ud800-\udfff]", path) is not None  # bytes that are no UTF-8, as Python holds them
        return json.dumps(content if score is None else {**content, "log_prob": score}, ensure_ascii=escaped)
    words = " ".join(caption.split())  # a line is an image
    return f"{path}\t{words}" if score is None else f"{path}\t{words}\t{score:.3f}"
