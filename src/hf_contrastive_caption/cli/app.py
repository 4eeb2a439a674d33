"""``contrastive-caption app``: the page of two captioners, until Ctrl-C."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
from transformers.utils import logging as transformers_logging

from hf_contrastive_caption.app.limits import AppLimits
from hf_contrastive_caption.app.serving import LOOPBACK, check_gradio, free_port, serve_app
from hf_contrastive_caption.cli.app_command import AppOptions, Switch
from hf_contrastive_caption.cli.captioners import load_named
from hf_contrastive_caption.cli.errors import INTERRUPTED
from hf_contrastive_caption.evaluation.evaluator import prompt_of
from hf_contrastive_caption.report.comparison import names_of

GRACE_SECONDS = 15.0
"""How long the server may take to end."""


def show_app(options: AppOptions) -> None:
    """Serve the page until Ctrl-C or SIGTERM.

    Raises:
        SystemExit: When it was stopped, with the exit code of that.
    """
    check_gradio()
    free_port(options.host, options.port)  # before the captioners are loaded, which takes long
    transformers_logging.disable_progress_bar()
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    target = load_named(options.target, prompt=options.prompt, device=None)
    asked = prompt_of(target)
    reference = load_named(options.reference, prompt=options.reference_prompt, otherwise=asked, device=None)
    for captioner in (reference, target):
        captioner.model.to(device)
    limits = AppLimits(
        max_images=options.max_images,
        max_upload_mb=options.max_upload_mb,
        max_megapixels=options.max_megapixels,
        max_beams=options.max_beams,
        max_queue=options.max_queue,
    )
    share = options.share is Switch.ON
    try:
        with (
            _ending_on(signal.SIGTERM, signal.SIGINT),
            serve_app(
                reference,
                target,
                host=options.host,
                port=options.port,
                share=share,
                limits=limits,
                names=names_of(options.reference, options.target),
            ) as address,
        ):
            print(f"The page is {address} (Ctrl-C ends it)", flush=True)
            if share or options.host not in (LOOPBACK, "localhost", "::1"):
                print("Everybody who can reach this address can use it.", file=sys.stderr, flush=True)
            threading.Event().wait()
    except KeyboardInterrupt:
        print("\nThe page has ended.", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None


@contextmanager
def _ending_on(*signals: signal.Signals) -> Iterator[None]:
    """End by a signal, also where a shell started the command in the background, with SIGINT ignored.

    The server's threads that wait for a browser are no daemons, and could keep the process: they get some seconds.
    """

    def end(number: int, frame: FrameType | None) -> None:
        last = threading.Timer(GRACE_SECONDS, os._exit, [128 + number])
        last.daemon = True
        last.start()
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
