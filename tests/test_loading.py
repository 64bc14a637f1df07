"""`from_pretrained` of every kind of source, `save_pretrained`, and what is refused."""

from __future__ import annotations

import json
import lzma
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from safetensors.torch import save_file
from small_models import pictures, randomise, small_config
from torch import Tensor, nn
from weights_helpers import make_state

from mobilevitv2 import create
from mobilevitv2.backbone import MobileViTV2Backbone, MobileViTV2Model
from mobilevitv2.classification import MobileViTV2ForImageClassification
from mobilevitv2.configuration import MobileViTV2Config
from mobilevitv2.contract import load_model
from mobilevitv2.detection import MobileViTV2ForObjectDetection
from mobilevitv2.errors import ConfigurationError, UnknownWeightsFormat, WeightsError, WeightsMismatch, WrongTaskError
from mobilevitv2.segmentation import MobileViTV2ForSemanticSegmentation
from mobilevitv2.weights import Architecture, WeightRecord, convert_state_dict, list_records

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning:timm")


@pytest.fixture
def classifier() -> MobileViTV2ForImageClassification:
    torch.manual_seed(0)
    return randomise(MobileViTV2ForImageClassification(MobileViTV2Config(width_multiplier=0.5, num_labels=10)))


@pytest.fixture
def segmenter() -> MobileViTV2ForSemanticSegmentation:
    torch.manual_seed(0)
    config = MobileViTV2Config(width_multiplier=0.5, num_labels=21, output_stride=16, aspp_out_channels=64, use_auxiliary_head=True)
    return randomise(MobileViTV2ForSemanticSegmentation(config))


@pytest.fixture
def detector() -> MobileViTV2ForObjectDetection:
    torch.manual_seed(0)
    return randomise(MobileViTV2ForObjectDetection(MobileViTV2Config(width_multiplier=0.5, num_labels=5)))


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        output = model.eval()(pictures(2))
    return output if isinstance(output, Tensor) else output.logits


def same(one: nn.Module, other: nn.Module) -> bool:
    return torch.equal(logits(one), logits(other))


# ---- folders, and transformers' own classes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["classifier", "segmenter", "detector"])
def test_saved_folder_comes_back_equal(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    model = request.getfixturevalue(kind)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert not again.training
    assert same(model, again)
    assert again.config == model.config
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [type(model).__name__]


@pytest.mark.parametrize("name", ["MobileViTV2ForImageClassification", "MobileViTV2ForSemanticSegmentation", "MobileViTV2Model"])
def test_transformers_loads_what_we_save_and_the_other_way(name: str, tmp_path: Path) -> None:
    ours_class: Any = {
        "MobileViTV2ForImageClassification": MobileViTV2ForImageClassification,
        "MobileViTV2ForSemanticSegmentation": MobileViTV2ForSemanticSegmentation,
        "MobileViTV2Model": MobileViTV2Model,
    }[name]
    ours = randomise(ours_class(small_config()))
    ours.save_pretrained(tmp_path / "ours")
    theirs, info = getattr(transformers, name).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values())
    with torch.no_grad():
        expected, found = theirs.eval()(pictures(2))[0], ours(pictures(2))[0]
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    theirs.save_pretrained(tmp_path / "theirs")
    back, info = ours_class.from_pretrained(tmp_path / "theirs", output_loading_info=True)
    assert not any(info.values())
    with torch.no_grad():
        assert torch.equal(back(pictures(2))[0], ours(pictures(2))[0])


def test_safe_serialisation_is_what_is_written(classifier: MobileViTV2ForImageClassification, tmp_path: Path) -> None:
    classifier.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()


@pytest.mark.parametrize("cls", [MobileViTV2Model, MobileViTV2Backbone, MobileViTV2ForSemanticSegmentation])
def test_classifiers_folder_gives_its_trunk(cls: Any, classifier: MobileViTV2ForImageClassification, tmp_path: Path) -> None:
    classifier.save_pretrained(tmp_path)
    trunk = cls.from_pretrained(tmp_path)
    trunk = getattr(trunk, "mobilevitv2", trunk)
    for name, tensor in classifier.mobilevitv2.state_dict().items():
        assert torch.equal(trunk.state_dict()[name], tensor), name


def test_new_number_of_classes_in_a_folder(classifier: MobileViTV2ForImageClassification, tmp_path: Path) -> None:
    classifier.save_pretrained(tmp_path)
    with pytest.raises(WeightsMismatch, match=r"classifier\.weight: \(10, 256\) in the file, \(4, 256\) in the model"):
        MobileViTV2ForImageClassification.from_pretrained(tmp_path, num_labels=4)
    model = MobileViTV2ForImageClassification.from_pretrained(tmp_path, num_labels=4, ignore_mismatched_sizes=True)
    assert logits(model).shape == (2, 4)
    assert torch.equal(model.mobilevitv2.conv_stem.convolution.weight, classifier.mobilevitv2.conv_stem.convolution.weight)


def test_folder_that_lacks_parts_of_the_trunk_is_refused(classifier: MobileViTV2ForImageClassification, tmp_path: Path) -> None:
    classifier.save_pretrained(tmp_path)
    state = classifier.state_dict()
    del state["mobilevitv2.encoder.layer.4.layernorm.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsMismatch, match=r"lacks 1 tensors of the trunk.*encoder\.layer\.4\.layernorm\.weight"):
        MobileViTV2ForImageClassification.from_pretrained(tmp_path)


def test_options_while_loading_a_folder(classifier: MobileViTV2ForImageClassification, tmp_path: Path) -> None:
    classifier.save_pretrained(tmp_path)
    model = MobileViTV2ForImageClassification.from_pretrained(tmp_path, output_stride=16, dtype=torch.bfloat16)
    assert model.config.output_stride == 16
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    with pytest.raises(ConfigurationError, match="output_stride=5"):
        MobileViTV2ForImageClassification.from_pretrained(tmp_path, output_stride=5)


def test_source_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=re.escape(str(tmp_path))):
        MobileViTV2ForImageClassification.from_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=r"nothing\.pt: there is no such file"):
        MobileViTV2ForImageClassification.from_pretrained(tmp_path / "nothing.pt")
    with pytest.raises(ConfigurationError, match=r"Did you mean mobilevitv2-0\.5-imagenet1k-256"):
        MobileViTV2ForImageClassification.from_pretrained("mobilevitv2-0.5-imagenet1k-265")
    with pytest.raises(OSError, match="huggingface"):  # no name of ours: the hub was asked
        MobileViTV2ForImageClassification.from_pretrained("somebody/their-model")


# ---- single files -----------------------------------------------------------------------------------------------------------


def timm_twin(ours: MobileViTV2ForImageClassification) -> nn.Module:
    theirs = timm.create_model("mobilevitv2_050", num_classes=10).eval()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    return theirs


def official(model: nn.Module) -> dict[str, Tensor]:
    return convert_state_dict(model.state_dict(), to="official")


WRITERS: dict[str, Callable[[nn.Module, Path], None]] = {
    "official.pt": lambda model, path: torch.save(official(model), path),
    "training_checkpoint.pt": lambda model, path: torch.save(
        {"model_state_dict": official(model), "epoch": 3, "optim_state_dict": {}}, path
    ),
    "data_parallel.pt": lambda model, path: torch.save({f"module.{k}": v for k, v in official(model).items()}, path),
    "timm.safetensors": lambda model, path: save_file(timm_twin(model).state_dict(), path),
    "timm.pth": lambda model, path: torch.save(timm_twin(model).state_dict(), path),
    "pytorch_model.bin": lambda model, path: torch.save(model.state_dict(), path),
    "model.safetensors": lambda model, path: save_file(model.state_dict(), path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_single_file_of_every_format(name: str, classifier: MobileViTV2ForImageClassification, tmp_path: Path) -> None:
    WRITERS[name](classifier, tmp_path / name)
    for path in (tmp_path / name, str(tmp_path / name)):
        model = MobileViTV2ForImageClassification.from_pretrained(path)
        assert same(model, classifier)
    assert (model.config.width_multiplier, model.config.num_labels, model.training) == (0.5, 10, False)


def test_file_of_another_shape_of_model(tmp_path: Path) -> None:
    config = MobileViTV2Config(width_multiplier=0.75, num_channels=1, num_labels=3, ffn_multiplier=3, conv_kernel_size=5)
    model = randomise(MobileViTV2ForImageClassification(config))
    torch.save(official(model), tmp_path / "odd.pt")
    again = MobileViTV2ForImageClassification.from_pretrained(tmp_path / "odd.pt")
    for name in ("width_multiplier", "num_channels", "num_labels", "ffn_multiplier", "conv_kernel_size"):
        assert getattr(again.config, name) == getattr(config, name)


@pytest.mark.parametrize("auxiliary", [True, False])
@pytest.mark.parametrize("head", ["deeplabv3", "pspnet"])
def test_official_segmenters_with_and_without_auxiliary_head(head: str, auxiliary: bool, tmp_path: Path) -> None:
    config = MobileViTV2Config(
        width_multiplier=0.5, num_labels=21, segmentation_head=head, use_auxiliary_head=auxiliary, output_stride=16
    )
    model = randomise(MobileViTV2ForSemanticSegmentation(config))
    torch.save(official(model), tmp_path / "segmenter.pt")
    again = MobileViTV2ForSemanticSegmentation.from_pretrained(tmp_path / "segmenter.pt")
    assert same(again, model)
    assert (again.config.segmentation_head, again.config.use_auxiliary_head) == (head, auxiliary)
    saved = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert {name: tuple(tensor.shape) for name, tensor in again.state_dict().items()} == saved


@pytest.mark.parametrize("cls", [MobileViTV2Model, MobileViTV2Backbone])
@pytest.mark.parametrize("kind", ["classifier", "segmenter"])
def test_any_file_gives_its_trunk(cls: Any, kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    source = request.getfixturevalue(kind)
    torch.save(official(source), tmp_path / "file.pt")
    trunk = cls.from_pretrained(tmp_path / "file.pt")
    for name, tensor in source.mobilevitv2.state_dict().items():
        assert torch.equal(trunk.state_dict()[name], tensor), name
    assert trunk.config.output_stride == 32  # what a segmenter has there is no property of the trunk


def test_classifiers_file_starts_a_segmenter(
    classifier: MobileViTV2ForImageClassification, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(official(classifier), tmp_path / "classifier.pt")
    model = MobileViTV2ForSemanticSegmentation.from_pretrained(tmp_path / "classifier.pt", num_labels=5, output_stride=16)
    for name, tensor in classifier.mobilevitv2.state_dict().items():
        assert torch.equal(model.mobilevitv2.state_dict()[name], tensor), name
    assert logits(model).shape == (2, 5, 4, 4)
    assert logits(model).isfinite().all()
    assert "start at random" in caplog.text


def test_new_number_of_classes_in_a_file(classifier: MobileViTV2ForImageClassification, tmp_path: Path) -> None:
    torch.save(official(classifier), tmp_path / "classifier.pt")
    with pytest.raises(WeightsMismatch, match=r"classifier\.weight"):
        MobileViTV2ForImageClassification.from_pretrained(tmp_path / "classifier.pt", num_labels=4)
    model = MobileViTV2ForImageClassification.from_pretrained(
        tmp_path / "classifier.pt", num_labels=4, ignore_mismatched_sizes=True
    )
    assert logits(model).shape == (2, 4)
    assert model.classifier.weight.std() > 0


def test_given_configuration_is_held_to(classifier: MobileViTV2ForImageClassification, tmp_path: Path) -> None:
    save_file(classifier.state_dict(), tmp_path / "model.safetensors")
    config = MobileViTV2Config(width_multiplier=0.5, num_labels=10, output_stride=16)
    model = MobileViTV2ForImageClassification.from_pretrained(tmp_path / "model.safetensors", config=config)
    assert model.config.output_stride == 16
    with pytest.raises(WeightsMismatch, match="another shape"):
        MobileViTV2ForImageClassification.from_pretrained(tmp_path / "model.safetensors", config=MobileViTV2Config())


def test_arguments_of_transformers_work_with_files(classifier: MobileViTV2ForImageClassification, tmp_path: Path) -> None:
    torch.save(official(classifier), tmp_path / "classifier.pt")
    model, info = MobileViTV2ForImageClassification.from_pretrained(
        tmp_path / "classifier.pt",
        dtype=torch.bfloat16,
        device_map="cpu",
        output_loading_info=True,
        id2label={i: str(i) for i in range(10)},
    )
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not any(info.values())
    assert model.config.id2label[3] == "3"


def test_fixture_without_auxiliary_head_gives_its_trunk_to_a_classifier_never(shared_fixtures: Path, tmp_path: Path) -> None:
    for name, noun in (("cvnets-ssd-0.5", "detector"), ("cvnets-deeplabv3-0.5", "segmentation")):
        path = tmp_path / f"{name}.pt"
        path.write_bytes(lzma.decompress((shared_fixtures / f"{name}.pt.xz").read_bytes()))
        with pytest.raises(WrongTaskError, match=rf"{name}\.pt: this is a {noun}.*; use MobileViTV2For"):
            MobileViTV2ForImageClassification.from_pretrained(path)
        assert MobileViTV2Model.from_pretrained(path).config.width_multiplier == 0.5


# ---- what is refused --------------------------------------------------------------------------------------------------------


def test_missing_extra_and_misshapen_tensors_are_named(classifier: MobileViTV2ForImageClassification, tmp_path: Path) -> None:
    state = official(classifier)
    del state["layer_3.1.global_rep.0.pre_norm_attn.0.weight"]
    state["classifier.1.weight"] = torch.zeros(10, 255)
    state["surprise.weight"] = torch.zeros(3)
    torch.save(state, tmp_path / "broken.pt")
    with pytest.raises(WeightsMismatch) as caught:
        MobileViTV2ForImageClassification.from_pretrained(tmp_path / "broken.pt")
    message = str(caught.value)
    order = [message.index(n) for n in ("classifier.1.weight", "layer_3.1.global_rep.0.pre_norm_attn.0.weight", "surprise.weight")]
    assert order == sorted(order)


def test_file_of_another_family(tmp_path: Path) -> None:
    torch.save({"blocks.0.attn.qkv.weight": torch.zeros(3, 3)}, tmp_path / "vit.pt")
    with pytest.raises(UnknownWeightsFormat, match="vision transformer"):
        MobileViTV2Model.from_pretrained(tmp_path / "vit.pt")


def test_pickle_that_would_run_code_does_not(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "boom",)

    torch.save({"state_dict": Bomb()}, tmp_path / "bomb.pt")
    with pytest.raises(WeightsError):
        MobileViTV2ForImageClassification.from_pretrained(tmp_path / "bomb.pt")
    assert not (tmp_path / "boom").exists()


def test_segmenters_file_does_not_classify(segmenter: MobileViTV2ForSemanticSegmentation, tmp_path: Path) -> None:
    save_file(segmenter.state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(WrongTaskError, match="use MobileViTV2ForSemanticSegmentation"):
        MobileViTV2ForImageClassification.from_pretrained(tmp_path / "model.safetensors")


def test_detectors_file_does_not_segment_nor_the_other_way_round(
    segmenter: MobileViTV2ForSemanticSegmentation, detector: MobileViTV2ForObjectDetection, tmp_path: Path
) -> None:
    for model, other in ((detector, type(segmenter)), (segmenter, type(detector))):
        torch.save(official(model), tmp_path / "weights.pt")
        with pytest.raises(WrongTaskError, match=rf"weights\.pt: this is a .*; use {type(model).__name__}"):
            other.from_pretrained(tmp_path / "weights.pt")


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [
        ("ssdlite-mobilevitv2-0.5-coco", MobileViTV2ForSemanticSegmentation, "MobileViTV2ForObjectDetection"),
        ("ssdlite-mobilevitv2-0.5-coco", MobileViTV2ForImageClassification, "MobileViTV2ForObjectDetection"),
        ("pspnet-mobilevitv2-0.5-voc", MobileViTV2ForObjectDetection, "MobileViTV2ForSemanticSegmentation"),
    ],
)
def test_record_of_another_task_is_refused_before_its_download(name: str, wrong: Any, right: str) -> None:
    with pytest.raises(WrongTaskError, match=rf"^{name}: this is a .* classes, width 0\.5\); use {right}"):
        wrong.from_pretrained(name)


# ---- detectors --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("record", list_records(task="detect", bundled=False), ids=lambda record: record.name)
def test_official_detectors_load_by_name_and_by_file(record: WeightRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    state = make_state(Architecture(task="detect", head="ssdlite", width=record.width, num_labels=80))
    (tmp_path / "mobilevitv2").mkdir()
    file = tmp_path / "mobilevitv2" / f"{record.name}.pt"
    torch.save(convert_state_dict(state, to="official"), file)
    for source in (record.name, file):
        model = MobileViTV2ForObjectDetection.from_pretrained(source)
        config = model.config
        assert (config.num_labels, config.image_size, config.width_multiplier) == (80, 320, record.width)
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
        assert (config.id2label[0], config.id2label[79]) == (
            ("person", "toothbrush") if source == record.name else ("LABEL_0", "LABEL_79")
        )
    fewer = create(record.name, num_labels=3, ignore_mismatched_sizes=True)
    assert (fewer.config.num_labels, fewer.config.id2label[2]) == (3, "LABEL_2")
    assert fewer(torch.rand(1, 3, 64, 64)).logits.shape[-1] == 4


def test_detector_starts_from_a_classifiers_trunk(
    classifier: MobileViTV2ForImageClassification, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(official(classifier), tmp_path / "classifier.pt")
    model = MobileViTV2ForObjectDetection.from_pretrained(tmp_path / "classifier.pt", num_labels=7)
    assert model.config.num_labels == 7
    assert "start at random" in caplog.text
    ours, theirs = model.mobilevitv2.state_dict(), classifier.mobilevitv2.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert model.detection_head.levels[0].pointwise.convolution.weight.std() > 0


def test_detector_of_other_channels_is_told_from_its_file(tmp_path: Path) -> None:
    config = MobileViTV2Config(
        width_multiplier=0.5,
        num_labels=5,
        detection_extra_channels=[64, 48, 32, 16],
        detection_level_channels=[64, 256, 64, 64, 32, 16],
    )
    model = randomise(MobileViTV2ForObjectDetection(config))
    torch.save(official(model), tmp_path / "narrow.pt")
    assert same(MobileViTV2ForObjectDetection.from_pretrained(tmp_path / "narrow.pt"), model)


# ---- create -----------------------------------------------------------------------------------------------------------------


def test_create_tells_the_task_from_file_and_folder(
    classifier: MobileViTV2ForImageClassification,
    segmenter: MobileViTV2ForSemanticSegmentation,
    detector: MobileViTV2ForObjectDetection,
    tmp_path: Path,
) -> None:
    for model, name in ((classifier, "classifier"), (segmenter, "segmenter"), (detector, "detector")):
        model.save_pretrained(tmp_path / name)
        torch.save(official(model), tmp_path / f"{name}.pt")
        for source in (tmp_path / name, tmp_path / f"{name}.pt"):
            made = create(source)
            assert type(made) is type(model)
            assert same(made, model)
            fresh = create(source, pretrained=False)
            assert type(fresh) is type(model)
            assert fresh.config.num_labels == model.config.num_labels
            assert not same(fresh, model)
    assert type(create(tmp_path / "classifier", task="backbone")) is MobileViTV2Model
    assert create(tmp_path / "classifier.pt", num_labels=3, ignore_mismatched_sizes=True).config.num_labels == 3


@pytest.mark.parametrize(
    ("name", "labels", "stride", "width"),
    [
        ("mobilevitv2-0.5-imagenet1k-256", 1000, 32, 0.5),
        ("mobilevitv2-2.0-imagenet21k-to-1k-384", 1000, 32, 2.0),
        ("deeplabv3-mobilevitv2-0.5-voc", 21, 16, 0.5),
        ("pspnet-mobilevitv2-0.75-ade20k", 150, 8, 0.75),
        ("ssdlite-mobilevitv2-1.25-coco", 80, 32, 1.25),
    ],
)
def test_create_by_a_records_name_without_weights(name: str, labels: int, stride: int, width: float) -> None:
    with torch.device("meta"):
        model = create(name, pretrained=False)
    config = model.config
    assert (config.num_labels, config.output_stride, config.width_multiplier) == (labels, stride, width)
    assert not model.training


def test_record_in_the_cache_loads_by_name(
    classifier: MobileViTV2ForImageClassification, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    config = MobileViTV2Config(
        width_multiplier=0.5, num_labels=150, segmentation_head="pspnet", output_stride=8, use_auxiliary_head=True
    )
    model = randomise(MobileViTV2ForSemanticSegmentation(config))
    (tmp_path / "mobilevitv2").mkdir()
    torch.save(official(model), tmp_path / "mobilevitv2" / "pspnet-mobilevitv2-0.5-ade20k.pt")
    found = create("pspnet-mobilevitv2-0.5-ade20k")
    assert same(found, model)
    assert (found.config.output_stride, found.config.image_size) == (8, 512)


def test_create_refuses_what_it_cannot_tell(tmp_path: Path) -> None:
    small_config().save_pretrained(tmp_path)
    with pytest.raises(ConfigurationError, match="names no task"):
        create(tmp_path)
    with pytest.raises(ConfigurationError, match="task='paint'"):
        create(tmp_path, task="paint")


def test_folders_of_the_dense_tasks_give_their_trunk_only_where_a_new_head_is_asked_for(tmp_path: Path) -> None:
    segmenter = MobileViTV2ForSemanticSegmentation(small_config())
    segmenter.save_pretrained(tmp_path)
    for wrong in (MobileViTV2ForObjectDetection, MobileViTV2ForImageClassification):
        with pytest.raises(WrongTaskError, match="with segmentation_head; its answers would come from a head at random"):
            wrong.from_pretrained(tmp_path)
    detector = MobileViTV2ForObjectDetection.from_pretrained(tmp_path, ignore_mismatched_sizes=True)
    ours, theirs = segmenter.mobilevitv2.state_dict(), detector.mobilevitv2.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert MobileViTV2Model.from_pretrained(tmp_path) is not None


def test_a_classifiers_folder_is_no_segmenter_to_predict_with(tmp_path: Path) -> None:
    MobileViTV2ForImageClassification(small_config()).save_pretrained(tmp_path)
    with pytest.raises(WrongTaskError, match="is a model to classify; to segment, its head would be at random"):
        load_model(tmp_path, task="segment")


def test_a_folder_that_names_no_class_is_of_the_task_that_is_asked_for(tmp_path: Path) -> None:
    MobileViTV2ForImageClassification(small_config()).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["architectures"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigurationError, match="pass task='classify'"):
        load_model(tmp_path)
    assert load_model(tmp_path, task="classify")[0].task == "classify"
