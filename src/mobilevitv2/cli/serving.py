"""The verb `serve`."""

from __future__ import annotations

import signal
import sys
import tempfile
import threading
from pathlib import Path
from types import FrameType
from typing import Annotated

from mobilevitv2.cli.arguments import Argument
from mobilevitv2.cli.output import note, say


def serve(
    source: Annotated[
        str,
        Argument("folder that `export --format web` wrote, or a model: name, folder, weights, .onnx", metavar="DIR|MODEL"),
    ],
    *,
    port: Annotated[int | None, Argument("0 for any free one; without it the first free one from 8000 on", metavar="PORT")] = None,
    ort_web: Annotated[
        str | None,
        Argument("onnxruntime-web's folder or npm archive; without it from the npm registry", metavar="PATH"),
    ] = None,
    open: Annotated[bool, Argument("open it in the browser")] = False,
) -> int:
    """Show a model's web page on this machine, until Ctrl-C.

    The page is served to this machine alone, with the headers that let WebAssembly use several threads. A model's page is made in
    a temporary folder; to keep one, `mobilevitv2 export MODEL DIR --format web`.

    exit codes: 0 stopped; 1 the page could not be made; 2 bad usage.

    examples:
      mobilevitv2 serve site
      mobilevitv2 serve mobilevitv2-0.75-objects112 --open
    """
    from mobilevitv2.export.web.site import is_site

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):  # or a temporary folder would stay; a shell's background job ignores SIGINT
            signal.signal(number, _interrupt)
    if is_site(Path(source)):
        return _serve(Path(source), port, open)
    with tempfile.TemporaryDirectory(prefix="mobilevitv2-site-") as scratch:
        from mobilevitv2.cli.quiet import quiet_libraries
        from mobilevitv2.export.web.site import export_site

        quiet_libraries()
        note(f"making the page of {source}")
        export_site([source], Path(scratch, "site"), ort_web=ort_web)
        return _serve(Path(scratch, "site"), port, open)


def _serve(folder: Path, port: int | None, open_browser: bool) -> int:
    from mobilevitv2.export.web.serving import serve_site

    def ready(address: str) -> None:
        note("Ctrl-C stops it")
        say(address)  # last: a program that started this waits for it
        sys.stdout.flush()
        if open_browser:
            import webbrowser

            webbrowser.open(address)

    serve_site(folder, port=port, ready=ready)
    return 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
