"""A site on localhost, with the headers that let WebAssembly use threads."""

from __future__ import annotations

import errno
import functools
import re
import socketserver
import threading
from collections.abc import Callable
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from mobilevitv2.errors import ConfigurationError
from mobilevitv2.export.web.site import is_site

HOST, FIRST_PORT, PORTS = "127.0.0.1", 8000, 20
NAMES = ("localhost", HOST, "[::1]")
"""Under which the server is asked. Another name that leads here is of a page elsewhere, which had it changed after it was loaded
to read what only this machine may (DNS rebinding)."""
HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".wasm": "application/wasm",
    ".onnx": "application/octet-stream",
    ".svg": "image/svg+xml",
    ".jpg": "image/jpeg",
    ".txt": "text/plain; charset=utf-8",
}
"""The system's own list may lack the newer ones, and a browser starts no module of another type."""


class SiteHandler(SimpleHTTPRequestHandler):
    """Files of the site; nothing is listed, and nothing is written to the terminal."""

    extensions_map = {"": "application/octet-stream", **TYPES}  # noqa: RUF012 - the base class has it so

    def end_headers(self) -> None:
        """Every answer has the headers of isolation."""
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def send_head(self) -> Any:
        """Of GET and HEAD: what is asked for under another name is refused."""
        asked = [re.sub(r":\d*$", "", name.strip()).lower() for name in self.headers.get_all("Host", [])]
        if len(asked) != 1 or asked[0] not in NAMES:
            self.send_error(403, "Ask for localhost")
            return None
        return super().send_head()

    def list_directory(self, path: Any) -> None:
        """Folders without a page are not shown."""
        self.send_error(404, "File not found")

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: the terminal shows the address alone."""


class SiteServer(ThreadingHTTPServer):
    """A browser that goes away in the middle of a file is no error."""

    daemon_threads = True
    allow_reuse_address = False  # or a second server could share the port

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Silent on connections that were cut."""
        import sys

        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def server_bind(self) -> None:
        """Without looking up the name of the host, which may take seconds."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = HOST, int(self.server_address[1])


def open_server(folder: Path, *, port: int | None = None) -> SiteServer:
    """A server for the folder, listening on localhost alone.

    Args:
        folder: a site.
        port: 0 for any that is free; where None the first free one from 8000 on.

    Raises:
        ConfigurationError: no site there, or a port that is taken or out of range.
    """
    if not is_site(folder):
        raise ConfigurationError(
            f"{folder} is no site; write one with `mobilevitv2 export MODEL {folder} --format web`, or serve a model by its name."
        )
    check_port(port)
    handler = functools.partial(SiteHandler, directory=str(folder))
    for candidate in [port] if port is not None else range(FIRST_PORT, FIRST_PORT + PORTS):
        try:
            return SiteServer((HOST, candidate), handler)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
    taken = f"port {port} is" if port is not None else f"the ports {FIRST_PORT} to {FIRST_PORT + PORTS - 1} are"
    raise ConfigurationError(f"{taken} taken or not allowed; choose another with --port, or 0 for any that is free.")


def check_port(port: int | None) -> None:
    """Refuse numbers that no port has."""
    if port is not None and not 0 <= port <= 65535:
        raise ConfigurationError(f"port={port} is no port; use 1 to 65535, or 0 for any that is free.")


def address_of(server: SiteServer) -> str:
    """Where a browser finds it."""
    return f"http://localhost:{server.server_port}/"


def serve_site(folder: Path, *, port: int | None = None, ready: Callable[[str], None] | None = None) -> None:
    """Serve until KeyboardInterrupt, which ends it quietly; `ready` is told the address.

    Raises:
        ConfigurationError: as `open_server`.
    """
    with open_server(folder, port=port) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            if ready is not None:
                ready(address_of(server))
            thread.join()
        except KeyboardInterrupt:
            pass
        finally:
            server.shutdown()
