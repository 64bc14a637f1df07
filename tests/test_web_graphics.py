"""The exported page where the browser offers WebGPU: one that calculates wrongly, or not at all, gives way to WebAssembly.

No machine of the tests has a graphics unit. The adapter is a stand-in, and so is ONNX Runtime's half for WebGPU: it calculates with
the other half, and departs as told.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import Chromium
from test_web_page import (  # fixtures among them
    EXAMPLES,
    LISTEN,
    browser,
    errors,
    model_of,
    ort_archive,
    own_site,
    pytestmark,
    site,
)

from mobilevitv2.export.web.serving import address_of, open_server

CAT = next(each for each in EXAMPLES if each.name == "cat.jpg")
"""The first sample, which the page answers for when it opens."""
__all__ = ["browser", "ort_archive", "own_site", "pytestmark", "site"]

ADAPTER = """Object.defineProperty(navigator, "gpu", { value: {
  requestAdapter: async () => ({ info: { isFallbackAdapter: %s } }) } });\n"""
RUNTIME = """import * as real from "./ort.wasm.bundle.min.mjs";
export const env = real.env, Tensor = real.Tensor;
const departed = (value) => %s;
export const InferenceSession = { async create(content, options) {
  if (options.executionProviders[0] !== "webgpu") throw new Error("WebGPU was not asked for");
  if (%s) throw new Error("no device");
  const session = await real.InferenceSession.create(content, { ...options, executionProviders: ["wasm"] });
  return { release: () => session.release(), run: async (feeds) => {
    const outputs = await session.run(feeds);
    for (const { data } of Object.values(outputs)) data.forEach((value, place) => { data[place] = departed(value); });
    return outputs; } }; } };\n"""


def with_graphics(folder: Path, *, answer: str = "value", fails: bool = False, fallback: bool = False) -> None:
    """The site for a browser with WebGPU that answers so."""
    worker = folder / "worker.js"
    worker.write_text(ADAPTER % json.dumps(fallback) + worker.read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "ort" / "ort.webgpu.bundle.min.mjs").write_text(RUNTIME % (answer, json.dumps(fails)), encoding="utf-8")


@pytest.fixture
def served(own_site: Path) -> Iterator[str]:
    """The copy's address; its files are read as they are asked for."""
    with open_server(own_site, port=0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield address_of(server)
        server.shutdown()


def opened(browser: Chromium, address: str) -> str:
    """What the page says of how it calculates, once it has answered for the first sample."""
    browser.call("Page.addScriptToEvaluateOnNewDocument", source=LISTEN)
    browser.open(address)
    browser.wait("document.getElementById('answers')?.children.length")
    return str(browser.evaluate("document.getElementById('backend-told').textContent"))


def answers_as_python(browser: Chromium, folder: Path) -> bool:
    (name,) = (model["name"] for model in json.loads((folder / "site.json").read_text())["models"])
    expected = model_of(folder, name).predict(CAT).labels[0]
    found = browser.evaluate("[...window.heard.at(-1).probabilities]")
    return bool(abs(found[expected.index] - expected.probability) < 1e-3)


def test_webgpu_that_answers_rightly_is_used(browser: Chromium, own_site: Path, served: str):
    with_graphics(own_site)
    told = opened(browser, served)
    assert "WebGPU" in told and "WebAssembly" not in told
    assert answers_as_python(browser, own_site)


@pytest.mark.parametrize("answer", ["1.01 * value + 0.01", "NaN"], ids=["by a little", "nothing that is a number"])
def test_webgpu_that_departs_gives_way_to_webassembly(answer: str, browser: Chromium, own_site: Path, served: str):
    with_graphics(own_site, answer=answer)
    said = opened(browser, served)
    assert "WebGPU answers otherwise than it should (by " in said and "WebAssembly is used." in said
    assert answers_as_python(browser, own_site)
    assert errors(browser) == []


def test_webgpu_that_cannot_open_the_model_gives_way_to_webassembly(browser: Chromium, own_site: Path, served: str):
    with_graphics(own_site, fails=True)
    said = opened(browser, served)
    assert "WebGPU cannot be used: " in said and "no device" in said and "WebAssembly is used." in said
    assert answers_as_python(browser, own_site)


def test_webgpu_calculated_by_the_processor_is_not_taken(browser: Chromium, own_site: Path, served: str):
    with_graphics(own_site, answer="NaN", fallback=True)
    said = opened(browser, served)
    assert "WebAssembly" in said and "WebGPU" not in said
    assert answers_as_python(browser, own_site)


def test_webgpu_that_was_chosen_and_departs_is_an_error(browser: Chromium, own_site: Path, served: str):
    with_graphics(own_site, answer="2 * value")
    opened(browser, served)
    browser.evaluate("(() => { backend.value = 'webgpu'; backend.dispatchEvent(new Event('change')); })()")
    browser.wait("document.getElementById('status').className === 'failed'")
    assert "choose another way to calculate" in browser.evaluate("document.getElementById('status').textContent")
