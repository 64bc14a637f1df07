"""ExecuTorch files for the Core ML delegate: one program with all operators, right when evaluated, and said not to have run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from export_programs import program_of

from mobilevitv2.errors import ConfigurationError, WeightsError

pytest.importorskip("executorch", reason="the executorch extra is not installed")
pytest.importorskip("coremltools", reason="the coreml extra is not installed")

from mobilevitv2.export.executorch_coreml import check
from mobilevitv2.export.formats import EXECUTORCH_COREML as FORMAT
from mobilevitv2.export.samples import made_picture

# The exporters and torch's own parts warn about each other.
pytestmark = pytest.mark.filterwarnings("ignore")


def numbers(program: Any) -> int:
    """How many the folded model has."""
    return sum(each.numel() for each in program.module.model.parameters())


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, Any]:
    program = program_of("classify", size=(64, 96), inside=True)
    path = tmp_path_factory.mktemp("coreml") / "model.pte"
    return program, path, FORMAT.write(program, path)


def test_all_but_the_widening_of_bytes_is_in_the_delegate(classifier: tuple[Any, Path, Any]) -> None:
    _, path, written = classifier
    assert written.files == (path,)
    assert sum(written.outside.values()) == 1 and "copy" in next(iter(written.outside))
    assert written.operators["conv2d"] > 20


def test_what_is_said_of_it(classifier: tuple[Any, Path, Any]) -> None:
    program, path, written = classifier
    assert any(note.startswith("not run: Core ML exists on Apple's systems only") for note in written.notes)
    found = check(program, path, [made_picture(seed) for seed in range(4)])
    assert found.lines[0].startswith("not run: its Core ML program, read back, evaluated operator by operator on 3 pictures")
    assert found.comparison.relative < 1e-4
    assert (found.comparison.count, found.comparison.agreement) == (3, 1.0)
    assert "each in coremltools' tables for iOS16" in found.lines[1]


def test_who_opens_it_elsewhere_is_told_where_it_runs(classifier: tuple[Any, Path, Any]) -> None:
    from mobilevitv2.runtime.engines import open_engine

    with pytest.raises(WeightsError, match=r"Core ML delegate, which runs on Apple's systems only.*--delegate xnnpack"):
        open_engine(classifier[1])


def test_the_file_carries_its_metadata(classifier: tuple[Any, Path, Any]) -> None:
    from executorch.exir._serialize._program import deserialize_pte_binary

    program, path, _ = classifier
    plans = {plan.name: plan for plan in deserialize_pte_binary(path.read_bytes()).program.execution_plan}
    texts = [value.val.string_val for value in plans["mobilevitv2"].values if hasattr(value.val, "string_val")]
    assert [json.loads(text)["labels"][9] for text in texts] == ["class 9"]
    assert texts == [program.metadata.to_json()]


def test_a_wrong_program_is_found(classifier: tuple[Any, Path, Any]) -> None:
    program, path, _ = classifier
    other = program_of("classify", size=(64, 96), inside=True, n_attn_blocks=[2, 1, 1])
    with pytest.raises(WeightsError, match=r"does not answer as PyTorch does: probabilities by .* Every stage by itself agrees"):
        check(replace(program, module=other.module, model=other.model), path)


@pytest.mark.parametrize("task", ["segment", "detect"])
def test_the_other_tasks(task: str, tmp_path: Path) -> None:
    program = program_of(task, size=(64, 96))
    written = FORMAT.write(program, tmp_path / "model.pte")
    assert not written.outside
    assert check(program, tmp_path / "model.pte").comparison.decided > 0.999


def test_half_precision_keeps_sums_in_single(tmp_path: Path) -> None:
    from coremltools.converters.mil.mil import types

    from mobilevitv2.export.coreml import loaded
    from mobilevitv2.export.executorch_coreml import package

    program, path = program_of("classify", precision="fp16"), tmp_path / "model.pte"
    FORMAT.write(program, path)
    assert path.stat().st_size < 3 * numbers(program)
    assert check(program, path).comparison.count == 1
    operations = loaded(package(path, tmp_path)).functions["main"].operations
    found = {(each.op_type, types.builtin_to_string(each.outputs[0].dtype)) for each in operations if each.op_type != "const"}
    kinds = {name: {kind for operator, kind in found if operator == name} for name in ("conv", "softmax", "reduce_mean")}
    assert kinds["conv"] == {"fp16"}
    assert kinds["softmax"] == {"fp32"}
    assert "fp32" in kinds["reduce_mean"]


def test_weights_of_eight_bits(tmp_path: Path) -> None:
    program, path = program_of("classify", precision="int8-weights", inside=True), tmp_path / "model.pte"
    assert FORMAT.quantise is not None
    written = FORMAT.quantise(program, path, None)
    share = check(program, path).comparison.relative
    assert path.stat().st_size < 2 * numbers(program)
    assert written.quantisation is not None and written.quantisation["convolutions"] > 20
    assert 0 < share < 0.1


def test_the_command_writes_it_and_a_report(tmp_path: Path) -> None:
    from small_models import randomise, small_config

    from mobilevitv2.classification import MobileViTV2ForImageClassification
    from mobilevitv2.cli import main

    randomise(MobileViTV2ForImageClassification(small_config())).save_pretrained(tmp_path / "mine")
    words = ["export", str(tmp_path / "mine"), str(tmp_path / "model.pte"), "--delegate", "coreml", "--size", "64"]
    assert main(words) == 0
    report = json.loads((tmp_path / "model.pte.report.json").read_text())
    assert report["run"] is False and report["verification"] is None
    assert report["checked"][0].startswith("not run")
    assert report["evaluation"]["pictures"] == 3


def test_free_axes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="batch cannot be free"):
        FORMAT.write(replace(program_of("classify"), dynamic=("batch",)), tmp_path / "model.pte")
    assert not list(tmp_path.iterdir())
