"""The way from an exported file, or the classifier inside the package, to its answer imports neither torch nor transformers."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(find_spec("onnxruntime") is None, reason="onnxruntime is not installed")

PROGRAM = """
import sys
from mobilevitv2.cli import main
code = main(sys.argv[1:])
heavy = {"torch", "torchvision", "transformers"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else code)
"""


def _run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, check=False)


def test_the_embedded_classifier_answers_without_torch(cat_photo: Path):
    done = _run("predict", str(cat_photo), "--json")
    assert done.returncode == 0, done.stderr
    assert '"label": "cat"' in done.stdout


def test_importing_the_runtime_imports_no_torch():
    code = "import sys, mobilevitv2.runtime, mobilevitv2.runtime.model, mobilevitv2.runtime.task; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
