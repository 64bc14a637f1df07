"""The documentation's own examples, with nothing changed but the import line.

Folders in the working directory stand in for the hub's repositories, a local file for the picture on the web.
"""

from __future__ import annotations

import doctest
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from small_models import randomise

from mobilevitv2.classification import MobileViTV2ForImageClassification
from mobilevitv2.configuration import MobileViTV2Config
from mobilevitv2.segmentation import MobileViTV2ForSemanticSegmentation

CONFIGURATION = """
>>> from transformers import MobileViTV2Config, MobileViTV2Model

>>> # Initializing a mobilevitv2-small style configuration
>>> configuration = MobileViTV2Config()

>>> # Initializing a model from the mobilevitv2-small style configuration
>>> model = MobileViTV2Model(configuration)

>>> # Accessing the model configuration
>>> configuration = model.config
"""

CLASSIFICATION = """
>>> from transformers import AutoImageProcessor, MobileViTV2ForImageClassification
>>> import torch
>>> from datasets import load_dataset

>>> dataset = load_dataset("huggingface/cats-image")
>>> image = dataset["test"]["image"][0]

>>> image_processor = AutoImageProcessor.from_pretrained("apple/mobilevitv2-1.0")
>>> model = MobileViTV2ForImageClassification.from_pretrained("apple/mobilevitv2-1.0")

>>> inputs = image_processor(image, return_tensors="pt")

>>> with torch.no_grad():
...     logits = model(**inputs).logits

>>> # model predicts one of the 1000 ImageNet classes
>>> predicted_label = logits.argmax(-1).item()
>>> print(model.config.id2label[predicted_label])
"""

SEGMENTATION = """
>>> import requests
>>> import torch
>>> from PIL import Image
>>> from transformers import AutoImageProcessor, MobileViTV2ForSemanticSegmentation

>>> url = "http://images.cocodataset.org/val2017/000000039769.jpg"
>>> image = Image.open(requests.get(url, stream=True).raw)

>>> image_processor = AutoImageProcessor.from_pretrained("apple/mobilevitv2-1.0-imagenet1k-256")
>>> model = MobileViTV2ForSemanticSegmentation.from_pretrained("apple/mobilevitv2-1.0-imagenet1k-256")

>>> inputs = image_processor(images=image, return_tensors="pt")

>>> with torch.no_grad():
...     outputs = model(**inputs)

>>> # logits are of shape (batch_size, num_labels, height, width)
>>> logits = outputs.logits
"""

# How the hub's repositories of MobileViTV2 describe their preprocessing.
PREPROCESSOR = {
    "crop_size": {"height": 256, "width": 256},
    "do_center_crop": True,
    "do_flip_channel_order": True,
    "do_rescale": True,
    "do_resize": True,
    "image_processor_type": "MobileViTImageProcessor",
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 288},
}
PROCESSOR_IMPORTS = [
    "from mobilevitv2 import MobileViTV2ImageProcessor as AutoImageProcessor",
    "from transformers import AutoImageProcessor",
]


def run(example: str, **replaced: str) -> dict[str, Any]:
    """Run an example with its `from transformers` line replaced; what it leaves behind."""
    names: dict[str, Any] = {}
    for piece in doctest.DocTestParser().get_examples(example):
        source = replaced["by"] if piece.source.startswith("from transformers import") else piece.source
        exec(source, names)
    return names


@pytest.fixture
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def repository(folder: Path, model: Any) -> None:
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))


def test_configuration_example() -> None:
    names = run(CONFIGURATION, by="from mobilevitv2 import MobileViTV2Config, MobileViTV2Model")
    assert names["configuration"] is names["model"].config


@pytest.mark.parametrize("processor_import", PROCESSOR_IMPORTS)
@pytest.mark.filterwarnings("ignore::UserWarning")  # these repositories swap red and blue, which earns a warning
def test_classification_example(
    processor_import: str,
    working_directory: Path,
    cat_photo: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", working_directory / "cache")
    pictures = working_directory / "huggingface" / "cats-image" / "test"
    pictures.mkdir(parents=True)
    (pictures / "cat.jpg").write_bytes(cat_photo.read_bytes())
    config = MobileViTV2Config(width_multiplier=0.5, num_labels=1000)
    repository(working_directory / "apple" / "mobilevitv2-1.0", randomise(MobileViTV2ForImageClassification(config)))
    names = run(CLASSIFICATION, by=f"{processor_import}\nfrom mobilevitv2 import MobileViTV2ForImageClassification")
    assert names["logits"].shape == (1, 1000)
    assert names["inputs"]["pixel_values"].shape == (1, 3, 256, 256)
    assert capsys.readouterr().out.strip() == f"LABEL_{names['predicted_label']}"


@pytest.mark.parametrize("processor_import", PROCESSOR_IMPORTS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_segmentation_example(
    processor_import: str, working_directory: Path, cat_photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = pytest.importorskip("requests")
    config = MobileViTV2Config(width_multiplier=0.5, num_labels=21, output_stride=16, aspp_out_channels=64)
    repository(
        working_directory / "apple" / "mobilevitv2-1.0-imagenet1k-256", randomise(MobileViTV2ForSemanticSegmentation(config))
    )
    with cat_photo.open("rb") as file:
        monkeypatch.setattr(requests, "get", lambda url, stream: SimpleNamespace(raw=file))
        names = run(SEGMENTATION, by=f"{processor_import}\nfrom mobilevitv2 import MobileViTV2ForSemanticSegmentation")
    assert names["logits"].shape == (1, 21, 16, 16)
    assert isinstance(names["image"], Image.Image)
    assert torch.isfinite(names["logits"]).all()
