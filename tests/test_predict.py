"""Pictures in, answers out: order, errors, memory, batches, devices, and the names of the answers."""

from __future__ import annotations

import io
import itertools
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mobilevitv2 import MobileViTV2Config, MobileViTV2ForImageClassification, MobileViTV2ImageProcessor
from mobilevitv2.devices import choose_device
from mobilevitv2.errors import ConfigurationError
from mobilevitv2.prediction import Classifier, Label, Prediction, iter_predictions, open_task, predict
from mobilevitv2.streaming import callers_for

NAMES = ["red", "green", "blue"]


@pytest.fixture(scope="module")
def model() -> MobileViTV2ForImageClassification:
    torch.manual_seed(0)
    return MobileViTV2ForImageClassification(MobileViTV2Config(width_multiplier=0.5, id2label=dict(enumerate(NAMES)))).eval()


@pytest.fixture(scope="module")
def processor() -> MobileViTV2ImageProcessor:
    return MobileViTV2ImageProcessor(size={"shortest_edge": 72}, crop_size={"height": 64, "width": 64})


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, model: MobileViTV2ForImageClassification, processor: MobileViTV2ImageProcessor
) -> Path:
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{index}.png" for index in range(5)]
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(path)
    return paths


def test_answers_are_the_models_own(
    model: MobileViTV2ForImageClassification, processor: MobileViTV2ImageProcessor, folder: Path, pictures: list[Path]
) -> None:
    answers = predict(pictures, model=folder, batch_size=2, device="cpu")
    logits = model(processor([str(path) for path in pictures], return_tensors="pt")["pixel_values"]).logits
    for answer, path, row in zip(answers, pictures, logits.softmax(-1), strict=True):
        assert (answer.source, answer.size, answer.error) == (str(path), (60, 40), None)
        assert [label.index for label in answer.labels] == row.argsort(descending=True).tolist()
        assert [label.label for label in answer.labels] == [NAMES[label.index] for label in answer.labels]
        torch.testing.assert_close(torch.tensor([label.probability for label in answer.labels]), row.sort(descending=True).values)


def test_an_unreadable_picture_does_not_stop_the_others(folder: Path, pictures: list[Path]) -> None:
    pictures[1].write_bytes(b"")
    pictures[3].write_text("<html>not found</html>")
    answers = predict([*pictures, "missing.png"], model=folder, batch_size=2)
    assert [answer.error is None for answer in answers] == [True, False, True, False, True, False]
    assert "0 bytes" in (answers[1].error or "")
    assert "HTML" in (answers[3].error or "")
    assert answers[5].source == "missing.png"
    assert [len(answer.labels) for answer in answers] == [3, 0, 3, 0, 3, 0]


def test_nothing_readable_is_still_an_answer(folder: Path) -> None:
    assert [answer.error is not None for answer in predict(["a.png", "b.png"], model=folder)] == [True, True]
    assert predict([], model=folder) == []


def test_batches_and_threads_do_not_change_the_answers(folder: Path, pictures: list[Path]) -> None:
    one = predict(pictures, model=folder, batch_size=1, workers=1)
    many = predict(pictures, model=folder, batch_size=64, workers=8)
    assert [answer.labels[0].index for answer in one] == [answer.labels[0].index for answer in many]
    for a, b in zip(one, many, strict=True):
        assert a.labels[0].probability == pytest.approx(b.labels[0].probability, abs=1e-5)


def test_sources_of_every_kind(model: MobileViTV2ForImageClassification, pictures: list[Path], cat_photo: Path) -> None:
    array = np.zeros((20, 30, 3), dtype=np.uint8)
    many = [
        pictures[0],
        str(pictures[1]),
        pictures[2].read_bytes(),
        io.BytesIO(pictures[3].read_bytes()),
        array,
        Image.open(cat_photo),
    ]
    answers = predict(many, model=model)
    assert [answer.error for answer in answers] == [None] * 6
    assert [answer.source for answer in answers[2:5]] == ["picture 3", "picture 4", "picture 5"]
    assert answers[5].source == str(cat_photo)
    assert answers[4].size == (30, 20)
    for single in (
        str(pictures[0]),
        pictures[0].read_bytes(),
        array,
        torch.zeros(3, 20, 30, dtype=torch.uint8),
        Image.open(cat_photo),
    ):
        assert len(predict(single, model=model)) == 1


def test_folders_and_globs_are_opened_up(folder: Path, pictures: list[Path]) -> None:
    place = pictures[0].parent
    by_folder, by_glob = predict(place, model=folder), predict(f"{place}/[01].png", model=folder)
    assert [answer.source for answer in by_folder] == [str(path) for path in pictures]
    assert [answer.source for answer in by_glob] == [str(path) for path in pictures[:2]]


def test_an_endless_stream_is_read_only_as_far_as_wanted(model: MobileViTV2ForImageClassification) -> None:
    taken = 0

    def endless() -> Iterator[np.ndarray]:
        nonlocal taken
        for shade in itertools.count():
            taken += 1
            yield np.full((8, 8, 3), shade % 256, dtype=np.uint8)

    processor = MobileViTV2ImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    answers = iter_predictions(endless(), model=model, processor=processor, batch_size=4, workers=2)
    first = list(itertools.islice(answers, 10))
    answers.close()  # type: ignore[attr-defined]
    assert [answer.source for answer in first] == [f"picture {index}" for index in range(1, 11)]
    assert taken <= 10 + 2 * 4 + 2
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("mobilevitv2-read")]


def test_pictures_are_kept_only_on_request(folder: Path, pictures: list[Path]) -> None:
    assert next(iter_predictions(pictures[:1], model=folder)).picture is None
    kept = next(iter_predictions(pictures[:1], model=folder, keep_pictures=True)).picture
    assert kept is not None
    assert kept.size == (60, 40)


def test_pictures_of_different_prepared_shapes_go_together(model: MobileViTV2ForImageClassification) -> None:
    processor = MobileViTV2ImageProcessor(do_resize=False, do_center_crop=False)
    shapes = [(40, 64), (64, 40), (40, 64), (33, 50)]
    arrays = [np.random.default_rng(index).integers(0, 255, (*shape, 3), dtype=np.uint8) for index, shape in enumerate(shapes)]
    together = predict(arrays, model=model, processor=processor, batch_size=4)
    apart = predict(arrays, model=model, processor=processor, batch_size=1)
    assert [answer.size for answer in together] == [(width, height) for height, width in shapes]
    for a, b in zip(together, apart, strict=True):
        assert a.labels[0].index == b.labels[0].index
        assert a.labels[0].probability == pytest.approx(b.labels[0].probability, abs=1e-5)


def test_attention_gives_each_layer_and_the_part_it_lies_over(folder: Path, pictures: list[Path]) -> None:
    plain, answer = predict(pictures[0], model=folder)[0], predict(pictures[0], model=folder, attention=True)[0]
    assert plain.attention is None
    assert answer.attention is not None
    assert [score_map.layer for score_map in answer.attention][:2] == ["stage3.layer1", "stage3.layer2"]
    assert len(answer.attention) == 9
    assert answer.attention[0].scores.shape == (8, 8)
    assert answer.attention[0].scores.sum() == pytest.approx(4.0, abs=1e-4)
    assert answer.seen == (12, 2, 48, 38)  # 64 of 72 pixels of the short side
    assert [label.index for label in answer.labels] == [label.index for label in plain.labels]


def test_top_k_is_cut_to_the_classes(folder: Path, pictures: list[Path]) -> None:
    assert len(predict(pictures[0], model=folder, top_k=2)[0].labels) == 2
    assert len(predict(pictures[0], model=folder, top_k=50)[0].labels) == 3


def test_independent_classes_have_independent_probabilities(pictures: list[Path]) -> None:
    torch.manual_seed(0)
    config = MobileViTV2Config(width_multiplier=0.5, num_labels=4, problem_type="multi_label_classification")
    model = MobileViTV2ForImageClassification(config)
    torch.nn.init.constant_(model.classifier.bias, 3.0)
    answer = predict(pictures[0], model=model)[0]
    assert sum(label.probability for label in answer.labels) > 1.5


def test_a_model_in_training_answers_in_evaluation_mode(model: MobileViTV2ForImageClassification, pictures: list[Path]) -> None:
    statistics = model.mobilevitv2.conv_stem.normalization.running_mean.clone()
    model.train()
    first, second = predict(pictures[0], model=model), predict(pictures[0], model=model)
    model.eval()
    assert first == second
    assert torch.equal(statistics, model.mobilevitv2.conv_stem.normalization.running_mean)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "top_k=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"workers": 0}, "workers=0"),
        ({"device": "gpu"}, "cpu"),
        ({"device": "meta"}, "cannot be used"),
        ({"task": "detecting"}, "task='detecting'"),
    ],
)
def test_impossible_settings_are_refused(
    model: MobileViTV2ForImageClassification, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        iter_predictions(["a.png"], model=model, **options)


def test_models_without_classes_are_refused(tmp_path: Path) -> None:
    from mobilevitv2 import MobileViTV2Model

    config = MobileViTV2Config(width_multiplier=0.5, num_labels=0)
    with pytest.raises(ConfigurationError, match="num_labels=0"):
        predict("a.png", model=MobileViTV2ForImageClassification(config))
    with pytest.raises(ConfigurationError, match="backbone"):
        predict("a.png", model=MobileViTV2Model(config))


def test_the_best_device_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device(None) == torch.device("cpu")


def test_too_large_a_batch_names_the_remedy(
    model: MobileViTV2ForImageClassification,
    processor: MobileViTV2ImageProcessor,
    pictures: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(self: Classifier, *_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Classifier, "answer", full)
    with pytest.raises(ConfigurationError, match="batch_size"):
        predict(pictures, model=model, processor=processor)


def test_errors_of_the_program_are_not_taken_for_bad_pictures(
    model: MobileViTV2ForImageClassification, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Classifier, picture: Image.Image) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Classifier, "prepare", broken)
    with pytest.raises(ZeroDivisionError):
        predict(pictures, model=model)


def test_a_folders_classifier_answers_without_torch_where_a_runtime_is_installed(folder: Path, pictures: list[Path]) -> None:
    pytest.importorskip("onnxruntime")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mobilevitv2.prediction.choose_device", lambda device: torch.device("cpu"))
        patch.setattr("mobilevitv2.prediction.open_task", lambda *args, **kwargs: pytest.fail("torch was asked"))
        found = predict(pictures, model=folder, top_k=2)
    for answer, exact in zip(found, predict(pictures, model=folder, device="cpu"), strict=True):
        assert answer.source == exact.source and answer.size == exact.size
        assert [label.index for label in answer.labels] == [label.index for label in exact.labels[:2]]
        assert [label.probability for label in answer.labels] == pytest.approx(
            [label.probability for label in exact.labels[:2]], abs=1e-3
        )


@pytest.mark.parametrize("broken", [0, 4, 8])
def test_many_pictures_are_read_and_answered_in_threads(
    folder: Path, pictures: list[Path], broken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    from mobilevitv2.runtime.model import RuntimeModel

    sources = [pictures[index % 5] for index in range(9)]
    sources[broken] = Path("missing.png")
    threads = set()
    answer = RuntimeModel.answer
    monkeypatch.setattr("mobilevitv2.prediction.choose_device", lambda device: torch.device("cpu"))
    monkeypatch.setattr("mobilevitv2.streaming._cores", lambda: 3)
    monkeypatch.setattr(
        RuntimeModel, "answer", lambda *args, **kwargs: threads.add(threading.current_thread().name) or answer(*args, **kwargs)
    )
    found = predict(sources, model=folder)
    assert threads and all(name.startswith("mobilevitv2-read") for name in threads)
    for index, (ours, exact) in enumerate(zip(found, predict(sources, model=folder, device="cpu"), strict=True)):
        assert ours.source == exact.source and ours.size == exact.size
        assert (ours.error is not None) is (exact.error is not None) is (index == broken)
        assert [label.index for label in ours.labels] == [label.index for label in exact.labels]
        for mine, other in zip(ours.labels, exact.labels, strict=True):
            assert mine.probability == pytest.approx(other.probability, abs=1e-3)


def test_threads_that_answer_read_an_endless_stream_only_as_far_as_wanted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    taken = itertools.count()
    monkeypatch.setattr("mobilevitv2.prediction.choose_device", lambda device: torch.device("cpu"))
    answers = iter_predictions(
        (np.full((8, 8, 3), next(taken) % 250, np.uint8) for _ in itertools.count()), model=folder, workers=2
    )
    for _, answer in zip(range(3), answers, strict=False):
        assert answer.error is None
    assert next(taken) <= 3 + 2 * 2
    answers.close()  # type: ignore[attr-defined]


def test_errors_in_threads_that_answer_are_raised(folder: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    from mobilevitv2.runtime.model import RuntimeModel

    monkeypatch.setattr("mobilevitv2.prediction.choose_device", lambda device: torch.device("cpu"))
    monkeypatch.setattr(RuntimeModel, "prepare", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        predict(pictures, model=folder, workers=2)


@pytest.mark.parametrize(
    ("count", "workers", "expected"),
    [(1, None, 1), (7, None, 1), (8, None, 4), (None, None, 4), (100, 1, 1), (100, 2, 2), (3, 2, 1)],
)
def test_few_pictures_get_all_cores_and_many_one_each(
    count: int | None, workers: int | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mobilevitv2.streaming._cores", lambda: 4)
    assert callers_for(count, workers) == expected


def test_a_task_prepares_answers_and_draws(folder: Path, pictures: list[Path]) -> None:
    task = open_task(folder)
    with Image.open(pictures[0]) as picture:
        pixel_values = task.prepare(picture)
        fields = task.answer(pixel_values[None], [picture.size])
        drawn = task.draw(picture, Prediction("x", **fields[0]))
    assert pixel_values.shape == (3, 64, 64)
    assert drawn.height > 40


def test_to_dict_is_json() -> None:
    answer = Prediction("a.png", size=(4, 3), labels=[Label("cat", 0.5, 7)])
    assert json.loads(json.dumps(answer.to_dict())) == {
        "source": "a.png",
        "width": 4,
        "height": 3,
        "labels": [{"label": "cat", "probability": 0.5, "index": 7}],
        "error": None,
    }
    failed = Prediction("b.png", error="no such file").to_dict()
    assert (failed["width"], failed["labels"], failed["error"]) == (None, [], "no such file")


def test_predict_is_a_name_of_the_package_every_time(folder: Path, pictures: list[Path]) -> None:
    code = f"""
import mobilevitv2
from mobilevitv2 import predict
from mobilevitv2.prediction import iter_predictions
for _ in range(2):
    print(mobilevitv2.predict({str(pictures[0])!r}, model={str(folder)!r})[0].error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["None", "None"], done.stderr
