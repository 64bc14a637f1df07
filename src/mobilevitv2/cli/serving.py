"""The verb `serve`."""

from __future__ import annotations

import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from mobilevitv2.cli.arguments import Argument
from mobilevitv2.cli.ending import ended_in_order
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

    The page is served to this machine alone, under the names localhost, 127.0.0.1 and [::1], with the headers that let WebAssembly
    use several threads. A model's page is made in a temporary folder; to keep one, `mobilevitv2 export MODEL DIR --format web`.

    exit codes: 0 stopped; 1 the page could not be made; 2 bad usage; 130 interrupted, 143 terminated while the page was made.

    examples:
      mobilevitv2 serve site
      mobilevitv2 serve mobilevitv2-0.75-objects112 --open
    """
    from mobilevitv2.export.web.serving import check_port
    from mobilevitv2.export.web.site import check_site, export_site, is_site

    check_port(port)
    with ended_in_order():  # or a temporary folder would stay
        if is_site(Path(source)):
            return _serve(Path(source), port, open)
        with tempfile.TemporaryDirectory(prefix="mobilevitv2-site-") as scratch:
            site = Path(scratch, "site")
            check_site([source], site)  # first: quiet_libraries imports transformers
            from mobilevitv2.cli.quiet import quiet_libraries

            quiet_libraries()
            note(f"making the page of {source}")
            export_site([source], site, ort_web=ort_web)
            return _serve(site, port, open)


def _serve(folder: Path, port: int | None, open_browser: bool) -> int:
    from mobilevitv2.export.web.serving import serve_site

    def ready(address: str) -> None:
        note("Ctrl-C stops it")
        say(address)  # last: a program that started this waits for it
        sys.stdout.flush()
        if open_browser:
            import webbrowser

            webbrowser.open(address)

    with suppress(SystemExit):  # a server is stopped by SIGTERM, or with its terminal, as rightly as by Ctrl-C
        serve_site(folder, port=port, ready=ready)
    return 0
