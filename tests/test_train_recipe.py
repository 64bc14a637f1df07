"""Recipes: their numbers are the official ones, settings are checked, rates and decay follow by hand."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
from small_models import small_config
from torch import nn

from mobilevitv2.classification import MobileViTV2ForImageClassification
from mobilevitv2.errors import ConfigurationError
from mobilevitv2.train.recipe import (
    ClassificationRecipe,
    DetectionRecipe,
    SegmentationRecipe,
    load_recipe,
    recipe_names,
    recipe_of,
    save_recipe,
)
from mobilevitv2.train.schedule import build_optimizer, learning_rate_factor

RATES = {2.0: 0.0020, 1.75: 0.0026, 1.5: 0.0035, 1.25: 0.0049, 1.0: 0.0075, 0.75: 0.0090, 0.5: 0.0090}
LOWEST = {2.0: 0.00020, 1.75: 0.00026, 1.5: 0.00035, 1.25: 0.00049, 1.0: 0.00075, 0.75: 0.00090, 0.5: 0.00090}
DECAYS = {2.0: 0.050, 1.75: 0.039, 1.5: 0.029, 1.25: 0.020, 1.0: 0.013, 0.75: 0.008, 0.5: 0.004}
HEAVY = {
    "crop_scale": (0.08, 1.0),
    "crop_ratio": (3 / 4, 4 / 3),
    "interpolation": "bicubic",
    "flip": 0.5,
    "randaugment_operations": 2,
    "randaugment_magnitude": 9,
    "erasing": 0.25,
    "mixup": 0.2,
    "cutmix": 1.0,
    "mix_probability": 0.5,
    "label_smoothing": 0.1,
    "image_size": 256,
    "eval_resize": 288,
    "eval_crop": 256,
    "unmixed_epochs": 0,
    "accumulate": 1,
    "validation_fraction": 0.0,
}
DENSE = {
    "task": "segment",
    "image_size": 512,
    "eval_size": 512,
    "segmentation_head": "deeplabv3",
    "aspp_out_channels": 512,
    "psp_out_channels": 512,
    "dropout": 0.1,
    "use_auxiliary_head": True,
    "auxiliary_loss_weight": 0.4,
    "decay_all": False,
    "trunk_rate": 1.0,
    "schedule": "cosine",
    "schedule_per_epoch": True,
    "clip_grad_norm": 10.0,
    "ema_momentum": 5e-4,
    "ema_warmup": False,
    "short_side": (256, 768),
    "long_side": 1024,
    "stretch": 1.0,
    "interpolation": "bicubic",
    "flip": 0.5,
    "largest_class": 0.75,
    "crop_tries": 10,
    "blur": 0.5,
    "photometric": 0.5,
    "rotation": 10.0,
}
# The official recipes: architecture_and_results.md, section 7.1 to 7.5.
OFFICIAL: dict[str, dict[str, Any]] = {
    "imagenet-256": {
        **HEAVY,
        "epochs": 300,
        "batch_size": 1024,
        "optimizer": "adamw",
        "learning_rate": RATES,
        "min_learning_rate": LOWEST,
        "weight_decay": DECAYS,
        "schedule": "cosine",
        "schedule_per_epoch": True,
        "warmup_steps": 20_000,
        "warmup_learning_rate": 1e-6,
        "clip_grad_norm": 10.0,
        "ema_momentum": 5e-4,
        "ema_warmup": False,
    },
    "imagenet-384": {
        **HEAVY,
        "epochs": 10,
        "batch_size": 128,
        "image_size": 384,
        "optimizer": "sgd",
        "learning_rate": 1e-3,
        "schedule": "constant",
        "warmup_steps": 0,
        "weight_decay": 4e-5,
        "clip_grad_norm": 10.0,
        "ema_momentum": 5e-5,
        "ema_warmup": False,
        "randaugment_operations": 0,
        "randaugment_magnitude": 9,
        "erasing": 0.0,
        "mixup": 0.0,
        "cutmix": 0.0,
        "eval_resize": 384,
        "eval_crop": 384,
    },
    "imagenet-21k": {
        **HEAVY,
        "epochs": 80,
        "batch_size": 4096,
        "optimizer": "adamw",
        "learning_rate": 3e-4,
        "min_learning_rate": 1e-6,
        "weight_decay": {width: DECAYS[width] for width in (1.5, 1.75, 2.0)},
        "schedule": "cosine",
        "schedule_per_epoch": True,
        "warmup_steps": 0,
        "clip_grad_norm": 10.0,
        "ema_momentum": 5e-4,
        "ema_warmup": False,
    },
    "segment-voc": {
        **DENSE,
        "sync_norms": True,
        "epochs": 50,
        "batch_size": 128,
        "optimizer": "adamw",
        "learning_rate": 5e-4,
        "min_learning_rate": 1e-6,
        "weight_decay": 0.05,
        "warmup_steps": 500,
        "warmup_learning_rate": 5e-5,
        "output_stride": 16,
        "atrous_rates": (6, 12, 18),
    },
    "segment-ade20k": {
        **DENSE,
        "sync_norms": True,
        "epochs": 120,
        "batch_size": 16,
        "optimizer": "sgd",
        "learning_rate": 0.02,
        "min_learning_rate": 2e-4,
        "weight_decay": 1e-4,
        "warmup_steps": 0,
        "output_stride": 8,
        "atrous_rates": (12, 24, 36),
    },
    "detect-coco": {
        "task": "detect",
        "epochs": 200,
        "batch_size": 128,
        "image_size": 320,
        "optimizer": "adamw",
        "learning_rate": 9e-4,
        "min_learning_rate": 1e-6,
        "weight_decay": 0.05,
        "decay_all": True,
        "sync_norms": True,
        "trunk_rate": 1.0,
        "schedule": "cosine",
        "schedule_per_epoch": True,
        "warmup_steps": 500,
        "warmup_learning_rate": 9e-5,
        "clip_grad_norm": 0.0,
        "ema_momentum": 5e-4,
        "ema_warmup": False,
        "iou_crop": 1.0,
        "minimum_crop": 100,
        "zoom_out": 0.0,
        "photometric": 0.5,
        "flip": 0.5,
        "interpolation": "bicubic",
        "anchor_scales": (0.1, 1.05),
        "finest_stride": 16,
        "score_threshold": 0.01,
    },
    "imagenet-21k-to-1k": {
        **HEAVY,
        "epochs": 50,
        "batch_size": 512,
        "optimizer": "sgd",
        "learning_rate": 1e-2,
        "min_learning_rate": 1e-3,
        "weight_decay": 4e-5,
        "schedule": "cosine",
        "warmup_steps": 0,
        "clip_grad_norm": 0.0,
        "ema_momentum": 5e-4,
        "ema_warmup": False,
    },
}


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads_and_says_how_it_is_used(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    import mobilevitv2.train

    text = (Path(mobilevitv2.train.__path__[0]) / "recipes" / f"{name}.yaml").read_text()
    assert text.startswith("# ") and f"--recipe {name}" in text


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_numbers(name: str) -> None:
    recipe = load_recipe(name).to_dict()
    assert {key: recipe[key] for key in OFFICIAL[name]} == OFFICIAL[name]


def test_a_recipe_survives_being_written(tmp_path: Path) -> None:
    import yaml

    recipe = load_recipe("imagenet-256", {"width": "0.5", "crop_scale": "0.2,0.9"})
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in recipe.to_dict().items()}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(values))
    assert load_recipe(tmp_path / "own.yaml") == recipe


@pytest.mark.parametrize("name", ["segment-voc", "detect-small"])
def test_a_written_recipe_keeps_its_task(tmp_path: Path, name: str) -> None:
    recipe = load_recipe(name, {"image_size": "320,448", "name": "own"})
    save_recipe(recipe, tmp_path / "own.yaml")
    assert load_recipe(tmp_path / "own.yaml") == recipe and recipe.image_size == (320, 448)


def test_recipes_know_their_task(tmp_path: Path) -> None:
    assert recipe_names("detect") == ["detect-coco", "detect-small"]
    assert recipe_names("segment") == ["segment-ade20k", "segment-small", "segment-voc"]
    assert "small" in recipe_names("classify") and len(recipe_names()) == sum(
        len(recipe_names(task)) for task in ("classify", "segment", "detect")
    )
    with pytest.raises(ConfigurationError, match=r"Recipe segment-small is one for --task segment, not detect; .*detect-coco"):
        recipe_of(DetectionRecipe, "segment-small")
    with pytest.raises(ConfigurationError, match="A ClassificationRecipe is one for --task classify, not segment"):
        recipe_of(SegmentationRecipe, ClassificationRecipe())
    (tmp_path / "odd.yaml").write_text("task: pose\n")
    with pytest.raises(ConfigurationError, match="task: pose; use one of classify, segment, detect"):
        load_recipe(tmp_path / "odd.yaml")


@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        ("segment-small", {"outputstride": "8"}, "'output_stride'"),
        ("segment-small", {"output_stride": "12"}, "8, 16, 32"),
        ("segment-small", {"segmentation_head": "psp"}, "pspnet"),
        ("segment-small", {"short_side": "300,200"}, "short_side=(300, 200)"),
        ("segment-small", {"atrous_rates": "6,12"}, "atrous_rates=[6, 12]"),
        ("segment-small", {"image_size": "320,0"}, "image_size=(320, 0)"),
        ("segment-small", {"stretch": "0.5"}, "stretch=0.5"),
        ("segment-small", {"mixup": "0.5"}, "Unknown setting 'mixup'"),
        ("segment-small", {"atrous_rates": "0,6,12"}, "atrous_rates=(0, 6, 12)"),
        ("segment-small", {"aspp_out_channels": "0"}, "aspp_out_channels=0"),
        ("segment-small", {"auxiliary_loss_weight": "-0.4"}, "auxiliary_loss_weight=-0.4"),
        ("segment-small", {"eval_size": "0"}, "eval_size=0"),
        ("segment-small", {"seed": "-1"}, "seed=-1"),
        ("segment-small", {"weight_decay": "-0.1"}, "weight_decay=-0.1"),
        ("segment-small", {"min_learning_rate": ".nan"}, "min_learning_rate=nan"),
        ("detect-small", {"anchor_scales": "1.0,0.1"}, "anchor_scales=(1.0, 0.1)"),
        ("detect-small", {"anchor_scales": "0,1"}, "anchor_scales=(0.0, 1.0)"),
        ("detect-small", {"zoom": "0.5"}, "'zoom_out'"),
        ("detect-small", {"zoom_out": "2"}, "zoom_out=2.0"),
        ("detect-small", {"finest_stride": "4"}, "8, 16"),
        ("detect-small", {"image_size": "320,320,3"}, "image_size=[320, 320, 3]"),
        ("detect-small", {"trunk_rate": "-1"}, "trunk_rate=-1"),
    ],
)
def test_settings_of_other_tasks_that_do_not_fit_are_named(name: str, settings: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigurationError, match=None) as raised:
        load_recipe(name, settings)
    assert told in str(raised.value)


def test_overrides_take_the_type_of_their_setting() -> None:
    settings = {"epochs": "3", "learning_rate": "1e-3", "compile": "true", "crop_scale": "0.2,1.0", "schedule": "constant"}
    recipe = load_recipe("small", settings)
    assert (recipe.epochs, recipe.learning_rate, recipe.compile, recipe.schedule) == (3, 1e-3, True, "constant")
    assert recipe.crop_scale == (0.2, 1.0)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"epoch": "3"}, "'epochs'"),
        ({"learnig_rate": "1"}, "'learning_rate'"),
        ({"xyz": "1"}, "known: width"),
        ({"epochs": "many"}, "epochs='many'"),
        ({"epochs": "2.5"}, "epochs=2.5"),
        ({"epochs": "0"}, "epochs=0"),
        ({"compile": "1"}, "compile=1"),
        ({"optimizer": "adam"}, "adamw, sgd"),
        ({"erasing": "1.5"}, "erasing=1.5"),
        ({"batch_size": "16", "accumulate": "3"}, "accumulate=3"),
        ({"eval_crop": "300"}, "eval_crop=300"),
        ({"crop_scale": "0.9,0.2"}, "crop_scale"),
        ({"crop_scale": "0.9"}, "crop_scale=0.9"),
        ({"learning_rate": "0"}, "learning_rate=0"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigurationError, match=None) as raised:
        load_recipe("small", settings)
    assert told in str(raised.value)


def test_unknown_recipes_get_the_nearest_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="'small-scratch'"):
        load_recipe("small-scrach")
    with pytest.raises(ConfigurationError, match="no recipe file"):
        load_recipe(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ConfigurationError, match="setting: value"):
        load_recipe(tmp_path / "list.yaml")


def test_official_rate_at_given_steps() -> None:
    recipe, per_epoch = load_recipe("imagenet-256"), 1251
    factor = learning_rate_factor(recipe, 1.0, per_epoch)

    def cosine(epoch: int) -> float:
        return 0.00075 + (0.0075 - 0.00075) * (1 + math.cos(math.pi * epoch / 300)) / 2

    assert factor(0) * 0.0075 == pytest.approx(1e-6)
    assert factor(10_000) * 0.0075 == pytest.approx(1e-6 + (0.0075 - 1e-6) / 2)
    # Warm-up ends inside epoch 15 (20000 // 1251), and the rate stays that epoch's until its end.
    assert factor(20_000) * 0.0075 == pytest.approx(cosine(15)) == pytest.approx(factor(16 * per_epoch - 1) * 0.0075)
    assert factor(16 * per_epoch) * 0.0075 == pytest.approx(cosine(16))
    assert factor(150 * per_epoch) * 0.0075 == pytest.approx((0.0075 + 0.00075) / 2)
    assert factor(300 * per_epoch - 1) * 0.0075 == pytest.approx(cosine(299))


def test_rate_by_step_and_constant_rate() -> None:
    recipe = ClassificationRecipe(epochs=4, learning_rate=0.1, min_learning_rate=0.01, warmup_steps=10, warmup_learning_rate=0.0)
    factor = learning_rate_factor(recipe, 1.0, 25)
    rates = [0.1 * factor(step) for step in (0, 5, 10, 55, 100)]
    assert rates == pytest.approx([0.0, 0.05, 0.1, 0.055, 0.01])
    constant = dataclasses.replace(recipe, schedule="constant")
    assert [learning_rate_factor(constant, 1.0, 25)(step) for step in (5, 10, 99)] == [0.5, 1.0, 1.0]


def test_numbers_by_width_take_the_nearest() -> None:
    recipe = load_recipe("imagenet-256")
    assert recipe.at_width(recipe.learning_rate, 0.75) == 0.0090
    assert recipe.at_width(recipe.weight_decay, 1.1) == 0.013


@pytest.mark.parametrize(("recipe", "kind"), [("imagenet-256", "AdamW"), ("imagenet-384", "SGD")])
def test_one_dimensional_parameters_do_not_decay(recipe: str, kind: str) -> None:
    model = MobileViTV2ForImageClassification(small_config())
    loaded = load_recipe(recipe)
    optimizer = build_optimizer(model, loaded, 0.5)
    assert type(optimizer).__name__ == kind
    decays = {parameter: group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]}
    assert len(decays) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        expected = loaded.at_width(loaded.weight_decay, 0.5) if parameter.ndim > 1 else 0.0
        assert decays[parameter] == expected, name
    if kind == "AdamW":
        assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)
    else:
        assert optimizer.param_groups[0]["momentum"] == 0.9


def test_frozen_parameters_are_left_alone() -> None:
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    optimizer = build_optimizer(model, load_recipe("small"), 1.0)
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 0]
