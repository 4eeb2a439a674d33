"""The page on a port of this machine, with all that it writes in a folder that goes when it ends."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_contrastive_caption.app.limits import AppLimits

if TYPE_CHECKING:
    from torch import nn

    from hf_contrastive_caption.captioners import Captioner

LOOPBACK = "127.0.0.1"
FIRST_PORT = 7860
_PORTS = 100
"""How many ports are tried from the first one on, where none is given."""


@contextmanager
def serve_app(
    reference: Captioner | nn.Module | str | PathLike[str],
    target: Captioner | nn.Module | str | PathLike[str],
    *,
    host: str = LOOPBACK,
    port: int | None = None,
    share: bool = False,
    limits: AppLimits | None = None,
    **options: Any,
) -> Iterator[str]:
    """Serve the page while the context lasts.

    Args:
        reference: A captioner, a model, or the name or folder of one.
        target: The other.
        host: Address to listen at. The default is reached from this machine alone.
        port: Port to listen at; the first free one from 7860 on if not given.
        share: Let Gradio make a public address for it, through its own servers.
        limits: What one visitor may ask.
        **options: Other arguments of :func:`build_app`: ``processing_class``, ``prompt``, ``names`` and the like.

    Yields:
        The address of the page, the public one with ``share``.

    Raises:
        ModuleNotFoundError: If Gradio is not installed.
        OSError: If the port is taken, the host is no address of this machine, or there is no public address.
        ValueError: As for :func:`build_app`.
        TypeError: As for :func:`build_app`.
    """
    check_gradio()
    port = free_port(host, port)
    limits = AppLimits() if limits is None else limits
    with tempfile.TemporaryDirectory(prefix="contrastive-caption-") as folder:
        with _environment(_settings(folder)):
            from starlette.middleware import Middleware

            from hf_contrastive_caption.app.examples import draw_examples
            from hf_contrastive_caption.app.gate import Gate
            from hf_contrastive_caption.app.layout import build_app, theme

            page = build_app(
                reference, target, limits=limits, examples=draw_examples(Path(folder), limits.max_images), **options
            )
            gate = Middleware(Gate, limits=limits, local=not share)
            try:
                _, address, public = page.launch(
                    server_name=host,
                    server_port=port,
                    share=share,
                    max_file_size=limits.max_upload_bytes,
                    app_kwargs={"middleware": [gate], "docs_url": None, "redoc_url": None},
                    theme=theme(),
                    state_session_capacity=100,
                    footer_links=[],
                    run_history=False,
                    enable_monitoring=False,
                    ssr_mode=False,
                    pwa=False,
                    mcp_server=False,
                    num_workers=0,
                    quiet=True,
                    prevent_thread_lock=True,
                    inline=False,
                )
                if share and public is None:
                    raise OSError(
                        "Gradio could not make a public address for the page, which needs its servers; without share "
                        "(--share off) it is served on this machine."
                    )
                yield public or address
            finally:
                page.close(verbose=False)


def check_gradio() -> None:
    """Say how Gradio is installed, if it is not.

    Raises:
        ModuleNotFoundError: If it is not.
    """
    from importlib.util import find_spec

    if find_spec("gradio") is None:
        raise ModuleNotFoundError(
            "the page needs Gradio, which is not installed: pip install 'hf-contrastive-caption[app]'"
        )


def free_port(host: str, port: int | None) -> int:
    """The port to listen at.

    Args:
        host: The address.
        port: The port that is wanted; the first free one from 7860 on if not given.

    Raises:
        OSError: If it is taken, or the host is no address of this machine.
    """
    wanted = range(FIRST_PORT, FIRST_PORT + _PORTS) if port is None else [port]
    problem: OSError | None = None
    for number in wanted:
        try:
            family = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)[0][0]
            with socket.socket(family) as listener:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
                listener.bind((host, number))
                return number
        except OSError as error:
            problem = error
    which = f"port {port}" if port is not None else f"no port from {wanted[0]} to {wanted[-1]}"
    free = "is not free" if port is not None else "is free"
    raise OSError(f"{which} of {host} {free}: {problem}. Give another one with --port, or another --host.")


def _settings(folder: str) -> dict[str, str]:
    """What Gradio reads of the environment, so that nothing of the user's own changes what the page may do."""
    return {
        "GRADIO_TEMP_DIR": folder,
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_ALLOWED_PATHS": "",
        "GRADIO_ROOT_PATH": "",
        "GRADIO_DEBUG": "0",
        "MPLCONFIGDIR": folder,  # Gradio imports matplotlib where it is installed, which writes a list of fonts
    }


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
