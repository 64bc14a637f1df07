"""The README's own code and commands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mobilevitv2.cli import main

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_python_code_runs_from_top_to_bottom() -> None:
    # In a process of its own: register() changes what transformers' Auto classes give.
    code = "\n".join(_blocks("python"))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    first, *_, piped, found = done.stdout.strip().splitlines()
    assert first.startswith("examples/cat.jpg cat 0.9")
    assert "'label': 'cat'" in piped
    assert re.fullmatch(r"cat (1\.0|0\.99) \[\d+, \d+, \d+, \d+\]", found)


def test_the_first_screen_shows_what_the_command_answers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["predict", "examples/cat.jpg", "--device", "cpu"]) == 0
    shown = [line.split("%")[0].split() for line in _blocks("text")[0].splitlines() if "%" in line]
    answered = [line.split("%")[0].split() for line in capsys.readouterr().out.splitlines() if "%" in line]
    assert [line[:-1] for line in shown[:2]] == [line[:-1] for line in answered[:2]]
    # The last digit depends on the processor's arithmetic.
    assert [float(line[-1]) for line in answered] == pytest.approx([float(line[-1]) for line in shown], abs=0.2)


def test_ci_runs_the_test_command_of_the_readme() -> None:
    command = "scripts/install && scripts/test"
    assert f"    {command}\n" in README
    assert command in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_every_command_in_the_readme_names_a_verb_that_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    verbs = set(re.findall(r"^    mobilevitv2 (\w+)|`mobilevitv2 (\w+)", README, flags=re.MULTILINE))
    names = {name for pair in verbs for name in pair if name}
    assert {"predict", "train", "evaluate", "models", "convert", "info"} <= names
    for name in sorted(names):
        assert main([name, "--help"]) == 0
        assert name in capsys.readouterr().out


def test_every_file_that_the_documents_point_to_exists() -> None:
    for document in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*.md")):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)|src=\"([^\":]+)\"", document.read_text(encoding="utf-8")):
            path = "".join(target)
            assert (document.parent / path).exists(), f"{document.name} points to {path}"
