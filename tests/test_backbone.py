from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from small_models import pictures, randomise, small_config
from torch import Tensor
from transformers.backbone_utils import BackboneMixin

from mobilevitv2.backbone import MobileViTV2Backbone, MobileViTV2Model
from mobilevitv2.classification import MobileViTV2ForImageClassification
from mobilevitv2.errors import ConfigurationError, ImageError

ALL_STAGES = ["stem", "stage1", "stage2", "stage3", "stage4", "stage5"]


def trunk(*, expand_output: bool = True, **options: Any) -> MobileViTV2Model:
    torch.manual_seed(0)
    return randomise(MobileViTV2Model(small_config(**options), expand_output=expand_output))


def backbone(**options: Any) -> MobileViTV2Backbone:
    torch.manual_seed(0)
    return randomise(MobileViTV2Backbone(small_config(**options)))


# ---- MobileViTV2Model -------------------------------------------------------------------------------------------------------


def test_last_map_and_its_mean() -> None:
    output = trunk()(pictures(2, height=128, width=192))
    assert output.last_hidden_state.shape == (2, 256, 4, 6)
    assert torch.equal(output.pooler_output, output.last_hidden_state.mean(dim=(2, 3)))
    assert output.hidden_states is None


def test_last_of_the_five_hidden_states_is_the_last_map() -> None:
    output = trunk()(pictures(), output_hidden_states=True)
    assert len(output.hidden_states) == 5
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)


def test_maps_of_odd_sides_leave_as_whole_patches() -> None:
    """As the official code does: 224 pixels give 7x7, which is stretched to 8x8 and stays so."""
    sizes = [tuple(x.shape[2:]) for x in trunk()(pictures(height=224, width=225), output_hidden_states=True).hidden_states]
    assert sizes == [(112, 113), (56, 57), (28, 30), (14, 16), (8, 8)]


@pytest.mark.parametrize("hidden", [True, False])
@pytest.mark.parametrize("expand_output", [True, False])
def test_tuples_are_laid_out_as_transformers_has_them(hidden: bool, expand_output: bool) -> None:
    ours = trunk(expand_output=expand_output)
    config = transformers.MobileViTV2Config(**ours.config.to_dict())
    theirs = transformers.MobileViTV2Model(config, expand_output=expand_output).eval()
    theirs.load_state_dict(ours.state_dict())
    found = ours(pictures(), output_hidden_states=hidden, return_dict=False)
    expected = theirs(pictures(), output_hidden_states=hidden, return_dict=False)
    assert len(found) == len(expected) == 1 + expand_output + hidden
    for mine, other in zip(found, expected, strict=True):
        for a, b in zip(*((m,) if isinstance(m, Tensor) else m for m in (mine, other)), strict=True):
            assert torch.allclose(a, b, atol=1e-4)


def test_without_expanding_there_is_no_pooled_output() -> None:
    assert trunk(expand_output=False)(pictures()).pooler_output is None


def test_configuration_sets_what_forward_gives() -> None:
    last, pooled, hidden_states = trunk(output_hidden_states=True, return_dict=False)(pictures())
    assert (last.ndim, pooled.ndim, len(hidden_states)) == (4, 2, 5)


def test_documented_example() -> None:
    from mobilevitv2 import MobileViTV2Config

    configuration = MobileViTV2Config()
    model = MobileViTV2Model(configuration)
    assert model.config is configuration


def test_dummy_inputs_go_through() -> None:
    model = trunk(image_size=(64, 96), num_channels=1)
    assert model(**model.dummy_inputs).last_hidden_state.shape[0] == 1


def test_compiles_whole() -> None:
    torch._dynamo.reset()
    model = trunk()
    with torch.no_grad():
        found = torch.compile(model, fullgraph=True, backend="eager")(pictures(), output_hidden_states=True)
        assert torch.allclose(found.pooler_output, model(pictures()).pooler_output, atol=1e-6)


def test_pictures_do_not_mix_within_a_batch() -> None:
    model, x = trunk(), pictures(3)
    for i in range(3):
        assert torch.allclose(model(x).pooler_output[i], model(x[i : i + 1]).pooler_output[0], atol=1e-5)


def test_channels_last_gives_the_same() -> None:
    model, x = trunk(), pictures(2)
    expected = model(x).last_hidden_state
    found = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last)).last_hidden_state
    assert torch.allclose(found, expected, atol=1e-5)


# ---- MobileViTV2Backbone ----------------------------------------------------------------------------------------------------


def test_backbone_has_the_interface_of_transformers() -> None:
    model = backbone()
    assert isinstance(model, BackboneMixin)
    assert (model.out_features, model.out_indices, model.channels, model.strides) == (["stage5"], [5], [256], [32])
    assert model.stage_names == ALL_STAGES
    assert model.out_feature_channels == dict(zip(ALL_STAGES, [16, 32, 64, 128, 192, 256], strict=True))


@pytest.mark.parametrize("chosen", [{"out_features": ["stage2", "stage3", "stage5"]}, {"out_indices": [2, 3, 5]}])
def test_chosen_stages_with_their_channels_and_strides(chosen: dict[str, Any]) -> None:
    model = backbone(**chosen)
    assert (model.out_features, model.out_indices) == (["stage2", "stage3", "stage5"], [2, 3, 5])
    maps = model(pictures(2, height=128)).feature_maps
    assert [x.shape[1] for x in maps] == model.channels == [64, 128, 256]
    assert [128 // x.shape[2] for x in maps] == model.strides == [4, 8, 32]


@pytest.mark.parametrize(("output_stride", "strides"), [(8, [2, 2, 4, 8, 8, 8]), (16, [2, 2, 4, 8, 16, 16])])
def test_strides_follow_the_output_stride(output_stride: int, strides: list[int]) -> None:
    model = backbone(output_stride=output_stride, out_features=ALL_STAGES)
    assert model.strides == strides
    assert [128 // x.shape[3] for x in model(pictures(height=128)).feature_maps] == strides


def test_chosen_stages_may_change_later() -> None:
    model = backbone()
    model.out_features = ["stage1"]
    assert (model.out_indices, model.channels) == ([1], [32])
    assert [x.shape[1] for x in model(pictures()).feature_maps] == [32]


def test_feature_maps_are_the_trunks() -> None:
    model = backbone(out_features=ALL_STAGES)
    same = MobileViTV2Model(model.config).eval()
    same.load_state_dict(model.state_dict())
    for mine, other in zip(
        model(pictures()).feature_maps[1:], same(pictures(), output_hidden_states=True).hidden_states, strict=True
    ):
        assert torch.equal(mine, other)


def test_backbone_tuple_hidden_states_and_attention_argument() -> None:
    model = backbone(out_features=["stage4", "stage5"])
    output = model(pictures(), output_hidden_states=True, output_attentions=True)
    assert (len(output.feature_maps), len(output.hidden_states), output.attentions) == (2, 6, None)
    feature_maps, hidden_states = model(pictures(), output_hidden_states=True, return_dict=False)
    assert (len(feature_maps), len(hidden_states)) == (2, 6)
    assert len(model.forward_with_filtered_kwargs(pictures(), output_attentions=True, output_hidden_states=False).feature_maps) == 2


def test_backbone_takes_a_classifiers_folder(tmp_path: Path) -> None:
    classifier = randomise(MobileViTV2ForImageClassification(small_config()))
    classifier.save_pretrained(tmp_path)
    model = MobileViTV2Backbone.from_pretrained(tmp_path, out_features=["stage3", "stage5"])
    expected = classifier(pictures(), output_hidden_states=True).hidden_states
    found = model(pictures()).feature_maps
    assert torch.equal(found[0], expected[2]) and torch.equal(found[1], expected[4])


def test_backbone_saves_its_choice(tmp_path: Path) -> None:
    model = backbone(out_features=["stage2", "stage4"])
    model.save_pretrained(tmp_path)
    again = MobileViTV2Backbone.from_pretrained(tmp_path)
    assert again.out_features == ["stage2", "stage4"]
    assert torch.equal(again(pictures()).feature_maps[1], model(pictures()).feature_maps[1])


def test_backbone_names_bad_pictures() -> None:
    with pytest.raises(ImageError, match="shape"):
        backbone()(pictures()[0])
    with pytest.raises(ImageError, match="You have to specify pixel_values"):
        backbone()()


def test_backbone_learns_under_checkpointing() -> None:
    from small_models import checkpoint_activations

    model = backbone().train()
    checkpoint_activations(model)
    model(pictures(2)).feature_maps[0].sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_saving_where_a_file_is_says_so(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(ConfigurationError, match="is a file"):
        MobileViTV2Model(small_config()).save_pretrained(tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "mine"
