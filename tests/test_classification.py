from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from small_models import checkpoint_activations, pictures, randomise, small_config
from torch import Tensor, nn

from mobilevitv2.classification import MobileViTV2ForImageClassification
from mobilevitv2.errors import ConfigurationError, ImageError


def classifier(**options: Any) -> MobileViTV2ForImageClassification:
    torch.manual_seed(0)
    return randomise(MobileViTV2ForImageClassification(small_config(**options)))


def twin_of_transformers(ours: MobileViTV2ForImageClassification) -> nn.Module:
    theirs = transformers.MobileViTV2ForImageClassification(transformers.MobileViTV2Config(**ours.config.to_dict())).eval()
    theirs.load_state_dict(ours.state_dict())
    return theirs


# ---- what forward gives -----------------------------------------------------------------------------------------------------


def test_logits_and_hidden_states() -> None:
    model = classifier()
    output = model(pictures(2, height=128))
    assert output.logits.shape == (2, 10)
    assert (output.loss, output.hidden_states) == (None, None)
    maps = model(pictures(2, height=128), output_hidden_states=True).hidden_states
    assert [tuple(x.shape) for x in maps] == [
        (2, 32, 64, 64),
        (2, 64, 32, 32),
        (2, 128, 16, 16),
        (2, 192, 8, 8),
        (2, 256, 4, 4),
    ]


@pytest.mark.parametrize("hidden", [True, False])
@pytest.mark.parametrize("with_labels", [True, False])
def test_tuples_are_laid_out_as_transformers_has_them(hidden: bool, with_labels: bool) -> None:
    ours = classifier()
    labels = torch.tensor([1, 2]) if with_labels else None
    arguments = {"output_hidden_states": hidden, "labels": labels, "return_dict": False}
    found = ours(pictures(2), **arguments)
    expected = twin_of_transformers(ours)(pictures(2), **arguments)
    assert isinstance(found, tuple)
    assert len(found) == len(expected)
    for mine, other in zip(found, expected, strict=True):
        assert type(mine) is type(other)
        if isinstance(mine, Tensor):
            assert torch.allclose(mine, other, atol=1e-5)
        else:
            assert [x.shape for x in mine] == [x.shape for x in other]


def test_configuration_sets_what_forward_gives_unless_told_otherwise() -> None:
    model = classifier(output_hidden_states=True, return_dict=False)
    logits, hidden_states = model(pictures())
    assert (logits.shape, len(hidden_states)) == ((1, 10), 5)
    output = model(pictures(), output_hidden_states=False, return_dict=True)
    assert (output.logits.shape, output.hidden_states) == ((1, 10), None)


def test_documented_order_of_arguments() -> None:
    logits, hidden_states = classifier()(pictures(), True, None, False)
    assert (logits.shape, len(hidden_states)) == ((1, 10), 5)


def test_no_labels_leave_the_pooled_features() -> None:
    model = classifier(num_labels=0)
    assert torch.equal(model(pictures()).logits, model.mobilevitv2(pictures()).pooler_output)
    assert not any(name.startswith("classifier") for name in model.state_dict())


def test_dropout_works_on_the_pooled_features_in_training_alone() -> None:
    model = classifier(classifier_dropout_prob=0.5)
    seen = []
    model.dropout.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    model(pictures(2))
    model.train()(pictures(2))
    assert torch.equal(*seen[0])
    kept = seen[1][1] != 0
    assert 0.3 < kept.float().mean() < 0.7
    assert torch.allclose(seen[1][1][kept], 2 * seen[1][0][kept])


# ---- losses -----------------------------------------------------------------------------------------------------------------

LOSSES = {
    "single_label": ({}, torch.tensor([3, 9])),
    "single_label_named": ({"problem_type": "single_label_classification"}, torch.tensor([3, 9])),
    "multi_label": ({}, torch.eye(10)[[3, 9]]),
    "multi_label_named": ({"problem_type": "multi_label_classification"}, torch.eye(10)[[3, 9]]),
    "regression": ({"num_labels": 1}, torch.tensor([0.5, -2.0])),
    "regression_column": ({"num_labels": 1}, torch.tensor([[0.5], [-2.0]])),
    "regression_of_several": ({"num_labels": 3, "problem_type": "regression"}, torch.tensor([[0.5, 1, 2], [-2.0, 0, 1]])),
}


@pytest.mark.parametrize("name", LOSSES)
def test_loss_is_that_of_transformers(name: str) -> None:
    options, labels = LOSSES[name]
    ours = classifier(**options)
    expected = twin_of_transformers(ours)(pictures(2), labels=labels).loss
    found = ours(pictures(2), labels=labels).loss
    assert found.shape == ()
    assert torch.allclose(found, expected, atol=1e-5)


def test_one_batch_does_not_settle_the_problem_type() -> None:
    model = classifier()
    single = model(pictures(2), labels=torch.tensor([3, 9])).loss
    several = model(pictures(2), labels=torch.eye(10)[[3, 9]]).loss
    assert model.config.problem_type is None
    assert not torch.isclose(single, several)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int16])
def test_whole_numbers_of_any_type_are_class_indices(dtype: torch.dtype) -> None:
    model = classifier()
    labels = torch.tensor([3, 9])
    assert torch.equal(model(pictures(2), labels=labels.to(dtype)).loss, model(pictures(2), labels=labels).loss)


def test_bool_labels_are_several_classes_a_picture() -> None:
    model = classifier()
    labels = torch.eye(10)[[3, 9]]
    assert torch.equal(model(pictures(2), labels=labels.bool()).loss, model(pictures(2), labels=labels).loss)


@pytest.mark.parametrize(
    ("options", "labels", "named"),
    [
        ({}, torch.tensor([3, 10]), r"label 10 is outside 0\.\.9"),
        ({}, torch.tensor([-1, 3]), r"label -1 is outside"),
        ({}, torch.tensor([-100, 3]), r"label -100 is outside"),
        ({}, torch.tensor([1, 2, 3]), r"shape \(3,\)"),
        ({}, torch.eye(10, dtype=torch.long)[[3, 9]], r"shape \(2, 10\) do not fit 2 pictures"),
        ({}, torch.rand(2, 9), r"shape \(2, 9\)"),
        ({"num_labels": 1}, torch.rand(3), r"shape \(3,\)"),
    ],
)
def test_bad_labels_are_named(options: dict[str, Any], labels: Tensor, named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        classifier(**options)(pictures(2), labels=labels)


def test_unknown_problem_type_is_named() -> None:
    model = classifier()
    model.config.__dict__["problem_type"] = "ranking"  # past the checks of the configuration
    with pytest.raises(ConfigurationError, match="problem_type='ranking'"):
        model(pictures(), labels=torch.tensor([1]))


# ---- bad pictures -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (None, "You have to specify pixel_values"),
        (pictures()[0], r"shape \(3, 64, 64\) do not fit"),
        (pictures(channels=4), r"takes \(batch, 3, height, width\)"),
        (torch.rand(1, 3, 0, 64), "no pixels"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "divide bytes by 255"),
    ],
)
def test_what_is_no_batch_of_pictures_is_named(value: Tensor | None, named: str) -> None:
    with pytest.raises(ImageError, match=named):
        classifier()(value)


# ---- start and training -----------------------------------------------------------------------------------------------------


def test_initialisation_is_the_official_one() -> None:
    torch.manual_seed(0)
    model = MobileViTV2ForImageClassification(small_config(num_labels=500, width_multiplier=1.0))
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 2000:
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1), name
            assert abs(module.weight.mean().item()) < 0.1 * module.weight.std().item(), name
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            assert (module.weight == 1).all() and (module.bias == 0).all(), name
        if isinstance(module, nn.BatchNorm2d):
            assert (module.running_mean == 0).all() and (module.running_var == 1).all(), name
        if getattr(module, "bias", None) is not None:
            assert (module.bias == 0).all(), name
    assert model.classifier.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    plain = classifier(classifier_dropout_prob=0.0).train()
    kept = classifier(classifier_dropout_prob=0.0).train()
    kept.load_state_dict(plain.state_dict())
    checkpoint_activations(kept)
    calls = []
    function = kept.mobilevitv2.encoder._gradient_checkpointing_func
    kept.mobilevitv2.encoder._gradient_checkpointing_func = lambda *args: calls.append(1) or function(*args)
    for model in (plain, kept):
        model(pictures(2), labels=torch.tensor([1, 2])).loss.backward()
    assert len(calls) == 5
    for mine, other in zip(plain.parameters(), kept.parameters(), strict=True):
        assert torch.allclose(mine.grad, other.grad, atol=1e-6)


def test_every_parameter_learns() -> None:
    model = MobileViTV2ForImageClassification(small_config()).train()
    model(pictures(4, height=128), labels=torch.tensor([1, 2, 3, 4])).loss.backward()
    still = [name for name, p in model.named_parameters() if p.grad is None]
    assert still == []


def crops_of_photographs() -> tuple[Tensor, Tensor]:
    """48 crops of each of the four photographs of the examples, 64x64, and which photograph they are of."""
    folder = Path(__file__).resolve().parents[1] / "examples"
    generator = torch.Generator().manual_seed(0)
    crops, labels = [], []
    for label, path in enumerate(sorted(folder.glob("*.jpg"))):
        photo = torch.frombuffer(bytearray(Image.open(path).convert("RGB").resize((160, 160)).tobytes()), dtype=torch.uint8)
        photo = photo.reshape(160, 160, 3).permute(2, 0, 1) / 255
        for top, left in torch.randint(0, 97, (48, 2), generator=generator).tolist():
            crops.append(photo[:, top : top + 64, left : left + 64])
            labels.append(label)
    return torch.stack(crops), torch.tensor(labels)


def real_pictures(folder: Path) -> tuple[Tensor, Tensor]:
    """Up to 48 pictures of each of four object classes, 64x64."""
    import pyarrow.parquet

    wanted: dict[int, list[Tensor]] = {}
    table = pyarrow.parquet.read_table(folder / "objects" / "train-00000-of-00004.parquet", columns=["image", "label"])
    counts = table["label"].value_counts().to_pylist()
    classes = [c["values"] for c in sorted(counts, key=lambda c: -c["counts"])[:4]]
    for row, label in enumerate(table["label"].to_pylist()):
        if label in classes and len(wanted.setdefault(label, [])) < 48:
            picture = Image.open(io.BytesIO(table["image"][row].as_py()["bytes"])).convert("RGB").resize((64, 64))
            pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
            wanted[label].append(pixels.reshape(64, 64, 3).permute(2, 0, 1) / 255)
    x = torch.stack([picture for label in classes for picture in wanted[label]])
    return x, torch.tensor([i for i, label in enumerate(classes) for _ in wanted[label]])


def test_learns_real_pictures_from_scratch_at_once() -> None:
    data = Path(__file__).resolve().parents[2] / "shared" / "data"
    x, y = real_pictures(data) if data.is_dir() else crops_of_photographs()
    torch.manual_seed(0)
    model = MobileViTV2ForImageClassification(small_config(num_labels=4, classifier_dropout_prob=0.0)).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(100):
        chosen = torch.randint(0, len(x), (16,))
        optimiser.zero_grad()
        model(x[chosen], labels=y[chosen]).loss.backward()
        optimiser.step()
    model.eval()
    with torch.no_grad():
        right = torch.cat([model(part).logits.argmax(1) for part in x.split(32)]) == y
    assert right.float().mean() >= 0.6  # chance is 0.25


# ---- compilers and precision ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_model_in_half_precision_stays_close(dtype: torch.dtype) -> None:
    model = classifier(n_attn_blocks=[2, 4, 3])
    with torch.no_grad():
        expected = model(pictures(2)).logits
        with torch.autocast("cpu", dtype=dtype):
            mixed = model(pictures(2)).logits
        half = model.to(dtype)(pictures(2).to(dtype)).logits
    for found in (mixed, half):
        assert found.isfinite().all()
        assert ((found.float() - expected).abs().max() / expected.abs().max()).item() <= 0.1


def test_compiles_whole() -> None:
    torch._dynamo.reset()
    model = classifier()
    x, labels = pictures(2), torch.tensor([1, 2])
    with torch.no_grad():
        assert torch.allclose(torch.compile(model, fullgraph=True, backend="aot_eager")(x).logits, model(x).logits, atol=1e-6)
    model.train().dropout.p = 0.0
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert torch.allclose(compiled(x, labels=labels).loss, model(x, labels=labels).loss, atol=1e-6)


def test_exports_with_any_batch_height_and_width() -> None:
    model = classifier()
    batch, height, width = (
        torch.export.Dim("batch", max=64),
        torch.export.Dim("height", min=2, max=16),
        torch.export.Dim("width", min=2, max=16),
    )
    shapes = {"pixel_values": {0: batch, 2: 64 * height, 3: 64 * width}, "return_dict": None}
    program = torch.export.export(
        model, (), kwargs={"pixel_values": pictures(2, height=128, width=192), "return_dict": False}, dynamic_shapes=shapes
    )
    for size in ((2, 128, 128), (3, 192, 128), (2, 256, 192)):
        x = pictures(size[0], height=size[1], width=size[2])
        with torch.no_grad():
            found = program.module()(pixel_values=x, return_dict=False)[0]
            assert torch.allclose(found, model(x).logits, atol=1e-6), size
