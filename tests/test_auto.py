"""`register()`: our classes behind transformers' Auto classes and pipelines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from small_models import pictures, randomise, small_config
from torch import Tensor
from transformers.models.auto import auto_factory, configuration_auto, image_processing_auto, modeling_auto

import mobilevitv2
from mobilevitv2.backbone import MobileViTV2Backbone, MobileViTV2Model
from mobilevitv2.classification import MobileViTV2ForImageClassification
from mobilevitv2.configuration import MobileViTV2Config
from mobilevitv2.detection import MobileViTV2ForObjectDetection
from mobilevitv2.errors import ConfigurationError
from mobilevitv2.image_processing import MobileViTV2ImageProcessor
from mobilevitv2.segmentation import MobileViTV2ForSemanticSegmentation

MAPPINGS = [
    configuration_auto.CONFIG_MAPPING,
    modeling_auto.MODEL_MAPPING,
    modeling_auto.MODEL_FOR_BACKBONE_MAPPING,
    modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    modeling_auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING,
    modeling_auto.MODEL_FOR_OBJECT_DETECTION_MAPPING,
    image_processing_auto.IMAGE_PROCESSOR_MAPPING,
]
TASK_CLASSES = [
    (transformers.AutoModel, MobileViTV2Model),
    (transformers.AutoBackbone, MobileViTV2Backbone),
    (transformers.AutoModelForImageClassification, MobileViTV2ForImageClassification),
    (transformers.AutoModelForSemanticSegmentation, MobileViTV2ForSemanticSegmentation),
    (transformers.AutoModelForObjectDetection, MobileViTV2ForObjectDetection),
]


@pytest.fixture
def registered() -> Iterator[None]:
    """Our classes registered for one test; the other tests see transformers as it comes."""
    before = [dict(mapping._extra_content) for mapping in MAPPINGS]
    mobilevitv2.register()
    yield
    for mapping, content in zip(MAPPINGS, before, strict=True):
        mapping._extra_content.clear()
        mapping._extra_content.update(content)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """AutoBackbone asks the hub for any name, a folder's too, and takes what the hub does not have for a timm model."""
    answers = SimpleNamespace(repo_exists=lambda _: True)
    monkeypatch.setattr(auto_factory, "hf_api", lambda: answers)


@pytest.fixture
def classifier_folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    names = ["cat", "dog", "rocket"]
    config = small_config(num_labels=3, id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)})
    randomise(MobileViTV2ForImageClassification(config)).save_pretrained(tmp_path)
    MobileViTV2ImageProcessor(size={"shortest_edge": 72}, crop_size={"height": 64, "width": 64}).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("registered")
def test_auto_config_and_image_processor_are_ours(classifier_folder: Path) -> None:
    assert type(transformers.AutoConfig.from_pretrained(classifier_folder)) is MobileViTV2Config
    assert type(transformers.AutoConfig.for_model("mobilevitv2")) is MobileViTV2Config
    assert type(transformers.AutoImageProcessor.from_pretrained(classifier_folder)) is MobileViTV2ImageProcessor


@pytest.mark.usefixtures("registered", "hub")
@pytest.mark.parametrize(("auto", "ours"), TASK_CLASSES)
def test_auto_classes_give_ours(auto: Any, ours: Any, classifier_folder: Path) -> None:
    assert type(auto.from_config(MobileViTV2Config(width_multiplier=0.5))) is ours
    model = auto.from_pretrained(classifier_folder)
    assert type(model) is ours
    weight = getattr(model, "mobilevitv2", model).conv_stem.convolution.weight
    saved = MobileViTV2ForImageClassification.from_pretrained(classifier_folder).mobilevitv2.conv_stem.convolution.weight
    assert torch.equal(weight, saved)


def test_registering_again_changes_nothing_and_nothing_leaks(registered: None) -> None:
    seen = [dict(mapping._extra_content) for mapping in MAPPINGS]
    mobilevitv2.register()
    assert [dict(mapping._extra_content) for mapping in MAPPINGS] == seen


def test_without_registering_transformers_stays_as_it_is(classifier_folder: Path) -> None:
    assert type(transformers.AutoModel.from_pretrained(classifier_folder)) is transformers.MobileViTV2Model


@pytest.mark.usefixtures("registered", "hub")
def test_auto_backbone_with_chosen_stages(classifier_folder: Path) -> None:
    model = transformers.AutoBackbone.from_pretrained(classifier_folder, out_indices=[2, 4])
    assert (model.channels, [x.shape[1] for x in model(pictures()).feature_maps]) == ([64, 192], [64, 192])


@pytest.mark.usefixtures("registered")
def test_a_segmenter_of_transformers_takes_our_backbone(tmp_path: Path) -> None:
    backbone = small_config(out_features=["stage2", "stage3", "stage4", "stage5"])
    config = transformers.UperNetConfig(
        backbone_config=backbone, hidden_size=16, pool_scales=[1, 2], use_auxiliary_head=False, num_labels=4
    )
    model = transformers.UperNetForSemanticSegmentation(config).eval()
    assert type(model.backbone) is MobileViTV2Backbone
    with torch.no_grad():
        logits: Tensor = model(pictures(2, height=128)).logits
    assert logits.shape == (2, 4, 128, 128)
    model.save_pretrained(tmp_path)
    again = transformers.UperNetForSemanticSegmentation.from_pretrained(tmp_path)
    assert type(again.backbone) is MobileViTV2Backbone
    with torch.no_grad():
        assert torch.equal(again(pictures(2, height=128)).logits, logits)


@pytest.mark.usefixtures("registered")
def test_image_classification_pipeline(classifier_folder: Path, cat_photo: Path) -> None:
    answers = transformers.pipeline("image-classification", model=str(classifier_folder))(str(cat_photo))
    assert {answer["label"] for answer in answers} == {"cat", "dog", "rocket"}
    assert sum(answer["score"] for answer in answers) == pytest.approx(1)
    model = MobileViTV2ForImageClassification.from_pretrained(classifier_folder)
    with Image.open(cat_photo) as photo:
        inputs = MobileViTV2ImageProcessor.from_pretrained(classifier_folder)(photo, return_tensors="pt")
    with torch.no_grad():
        best = model(**inputs).logits.softmax(-1)[0].max().item()
    assert answers[0]["score"] == pytest.approx(best, abs=1e-5)


@pytest.mark.usefixtures("registered")
def test_image_segmentation_pipeline(tmp_path: Path, cat_photo: Path) -> None:
    torch.manual_seed(0)
    names = ["background", "cat", "dog"]
    config = small_config(
        num_labels=3, output_stride=16, id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)}
    )
    randomise(MobileViTV2ForSemanticSegmentation(config)).save_pretrained(tmp_path)
    MobileViTV2ImageProcessor(size={"height": 64, "width": 64}, do_center_crop=False).save_pretrained(tmp_path)
    answers = transformers.pipeline("image-segmentation", model=str(tmp_path))(str(cat_photo))
    with Image.open(cat_photo) as photo:
        size = photo.size
    assert answers and {answer["label"] for answer in answers} <= set(names)
    assert all(answer["mask"].size == size for answer in answers)
    covered = sum(sum(answer["mask"].histogram()[1:]) for answer in answers)
    assert covered == size[0] * size[1]  # each pixel has one class


@pytest.mark.usefixtures("registered")
def test_object_detection_pipeline(tmp_path: Path, cat_photo: Path) -> None:
    torch.manual_seed(0)
    names = ["cat", "dog"]
    config = small_config(num_labels=2, id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)})
    randomise(MobileViTV2ForObjectDetection(config)).save_pretrained(tmp_path)
    MobileViTV2ImageProcessor(size={"height": 64, "width": 64}, do_center_crop=False).save_pretrained(tmp_path)
    answers = transformers.pipeline("object-detection", model=str(tmp_path))(str(cat_photo), threshold=0.2)
    model = transformers.AutoModelForObjectDetection.from_pretrained(tmp_path)
    processor = MobileViTV2ImageProcessor.from_pretrained(tmp_path)
    with Image.open(cat_photo) as photo, torch.no_grad():
        outputs = model(**processor(photo, return_tensors="pt"))
        found = processor.post_process_object_detection(outputs, 0.2, [(photo.height, photo.width)])[0]
    assert len(answers) == len(found["scores"]) > 0
    for answer, score, label, box in zip(answers, found["scores"], found["labels"], found["boxes"], strict=True):
        assert answer["label"] == names[label]
        assert answer["score"] == pytest.approx(score.item(), abs=1e-5)
        assert list(answer["box"].values()) == pytest.approx(box.tolist(), abs=1.001)  # the pipeline cuts off fractions


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "without config.json"),
        ('{"model_type": "vit"}', "'vit' model"),
        ('{"architecture": "mobilevitv2_050", "num_classes": 7}', "name the weights file itself"),
    ],
)
def test_create_says_what_a_folder_is_that_holds_no_model_of_ours(tmp_path: Path, content: str | None, told: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigurationError, match=told):
        mobilevitv2.create(tmp_path)
