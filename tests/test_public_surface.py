from __future__ import annotations

import subprocess
import sys

import pytest

import mobilevitv2

DOCUMENTED = [
    "MobileViTV2Backbone",
    "MobileViTV2Config",
    "MobileViTV2ForImageClassification",
    "MobileViTV2ForObjectDetection",
    "MobileViTV2ForSemanticSegmentation",
    "MobileViTV2ImageProcessor",
    "MobileViTV2Model",
    "create",
    "predict",
    "register",
]


def run(code: str) -> str:
    """What a fresh interpreter prints."""
    return subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_all_is_sorted_and_dir_shows_it() -> None:
    assert mobilevitv2.__all__ == sorted(mobilevitv2.__all__)
    assert dir(mobilevitv2) == sorted(mobilevitv2.__all__)
    assert set(DOCUMENTED) <= set(mobilevitv2.__all__)


@pytest.mark.parametrize("name", mobilevitv2.__all__)
def test_every_public_name_can_be_imported(name: str) -> None:
    assert getattr(mobilevitv2, name) is not None


@pytest.mark.parametrize("name", [n for n in mobilevitv2.__all__ if n != "__version__"])
def test_every_public_name_has_a_docstring(name: str) -> None:
    assert getattr(mobilevitv2, name).__doc__


def test_names_stay_what_they_are_after_their_modules_are_imported() -> None:
    """A function must not be hidden by a module of its name."""
    code = "import mobilevitv2; [getattr(mobilevitv2, n) for n in mobilevitv2.__all__]; import types\n"
    code += "print([n for n in mobilevitv2.__all__ if isinstance(getattr(mobilevitv2, n), types.ModuleType)])"
    assert run(code) == "[]"


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        mobilevitv2.nonsense  # noqa: B018


@pytest.mark.parametrize("code", ["import mobilevitv2", "from mobilevitv2 import create, list_records, register, MobileViTV2Error"])
def test_importing_costs_no_heavy_packages(code: str) -> None:
    heavy = "('torch', 'torchvision', 'transformers', 'numpy', 'PIL', 'datasets', 'matplotlib', 'safetensors')"
    assert run(f"{code}\nimport sys; print([m for m in {heavy} if m in sys.modules])") == "[]"


def test_version_is_the_installed_ones() -> None:
    from importlib.metadata import version

    assert mobilevitv2.__version__ == version("mobilevitv2")


def test_the_package_never_imports_the_peers_models() -> None:
    code = "import sys, mobilevitv2; [getattr(mobilevitv2, n) for n in mobilevitv2.__all__]\n"
    code += "print([m for m in sys.modules if m.startswith(('transformers.models.mobilevit', 'timm'))])"
    assert run(code) == "[]"
