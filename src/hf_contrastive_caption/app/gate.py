"""What stands before Gradio's server: the ways that the page needs are open, and of no more than fits the limits."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hf_contrastive_caption.app.limits import AppLimits

_API = "/gradio_api"
_UPLOAD = f"{_API}/upload"
_READ = frozenset(
    {"/", "/config", "/theme.css", "/favicon.ico"}
    | {f"{_API}/{way}" for way in ("theme.css", "startup-events", "queue/data", "upload_progress", "app_id")}
)
_READ_BELOW = ("/assets/", "/static/", "/svelte/", f"{_API}/file=", f"{_API}/heartbeat/")
_WRITE = frozenset({_UPLOAD, *(f"{_API}/{way}" for way in ("queue/join", "run/predict", "cancel", "reset"))})
_MESSAGE_BYTES = 1_000_000
"""Largest request that is no upload: names of images, a caption and the settings."""

_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; font-src 'self' data:; "
    "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; worker-src 'self' blob:; connect-src 'self' blob: data:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'"
)
"""The browser itself keeps the page from asking any other host. Gradio's scripts stand in its page and use eval."""


class Gate:
    """Refuses what the page does not use, and requests that are too large.

    Args:
        app: The server behind it.
        limits: What one visitor may upload.
        local: Whether the page asks this server alone; Gradio's public pages get their scripts from its own.
    """

    def __init__(self, app: ASGIApp, limits: AppLimits, local: bool) -> None:
        self.app = app
        self.local = local
        # Every file with room for its part of the request.
        self.upload_bytes = limits.max_images * (limits.max_upload_bytes + 10_000)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is None and scope["method"] == "POST" and scope["path"] != _UPLOAD:
            body = await _whole_body(receive)
            receive = _replayed(body, receive)
            if _names_address(body):
                refusal = PlainTextResponse("files are uploaded, and not named by their address", 400)
        if refusal is not None:
            await refusal(scope, receive, send)
            return

        async def with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "no-referrer"
                if self.local:
                    headers["Content-Security-Policy"] = _POLICY
            await send(message)

        await self.app(scope, receive, with_policy)

    def _refusal(self, scope: Scope) -> PlainTextResponse | None:
        """Why a request goes no further, by its way, its origin and its length."""
        method, path = scope["method"], scope["path"]
        if method in ("GET", "HEAD"):
            known = path in _READ or path.startswith(_READ_BELOW)
            return None if known else PlainTextResponse("not found", 404)
        if method != "POST" or path not in _WRITE:
            return PlainTextResponse("not found", 404)
        headers = Headers(scope=scope)
        if self.local and not _same_origin(headers):
            return PlainTextResponse("this page is used from its own address", 403)
        size = headers.get("content-length", "")
        if not size.isdecimal():
            return PlainTextResponse("a request must say its length", 411)
        most = self.upload_bytes if path == _UPLOAD else _MESSAGE_BYTES
        if int(size) > most:
            return PlainTextResponse(f"{int(size)} bytes are too many; at most {most} are taken", 413)
        return None


def _same_origin(headers: Headers) -> bool:
    """Whether a request comes from this page, as far as a browser says it, and not from one of another site."""
    origin = headers.get("origin")
    return origin is None or urlsplit(origin).netloc in (headers.get("host"), headers.get("x-forwarded-host"))


async def _whole_body(receive: Receive) -> bytes:
    body = b""
    while True:
        message = await receive()
        part: bytes = message.get("body", b"")
        body += part
        if message["type"] != "http.request" or not message.get("more_body", False):
            return body


def _replayed(body: bytes, receive: Receive) -> Receive:
    """What receives a request whose body was read already, and then whatever comes behind it."""
    read = False

    async def again() -> Message:
        nonlocal read
        if read:
            return await receive()
        read = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _names_address(body: bytes) -> bool:
    """Whether a message names a file by an address on a network, which Gradio would download for a visitor."""
    try:
        waiting: list[Any] = [json.loads(body)]
    except ValueError:
        return False  # the server refuses it
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if "://" in str(value.get("path", "")):  # its "url" is where the browser shows it, and is not asked
                return True
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return False
