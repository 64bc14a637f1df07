"""One tensor, three names: official (cvnets), timm and this package's, which are transformers' where transformers has the module.

A table of module paths; `#` stands for any number. Parameters behind a module path (weight, bias, running_mean, ...) have one name
everywhere. Number, shapes and values of the tensors are the same in all three formats, so a map of names is all it takes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Literal, NamedTuple

from mobilevitv2.errors import WeightsError

Format = Literal["official", "timm", "hf"]
FORMATS: tuple[Format, ...] = ("official", "timm", "hf")
FORMAT_TITLES = {"official": "official (cvnets)", "timm": "timm", "hf": "Hugging Face"}

PREFIXES: dict[Format, str] = {"official": "encoder.", "timm": "", "hf": "mobilevitv2."}
"""In front of backbone names, where the model has more than a backbone (official classifiers have none)."""

EXTRA_LAYER_STRIDES = (64, 128, 256)


class Module(NamedTuple):
    """One module's path in each format; timm has no dense tasks."""

    hf: str
    official: str
    timm: str | None
    in_backbone: bool

    def path(self, fmt: Format) -> str | None:
        """The module's path in one format."""
        return self.hf if fmt == "hf" else self.official if fmt == "official" else self.timm


def _conv(hf: str, official: str, timm: str | None = None, *, in_backbone: bool = False) -> Iterator[Module]:
    """A convolution alone; timm has it without a wrapper."""
    yield Module(f"{hf}.convolution", f"{official}.block.conv", timm, in_backbone)


def _conv_norm(hf: str, official: str, timm: str | None = None, *, in_backbone: bool = False) -> Iterator[Module]:
    """A convolution and its batch normalisation."""
    yield Module(f"{hf}.convolution", f"{official}.block.conv", timm and f"{timm}.conv", in_backbone)
    yield Module(f"{hf}.normalization", f"{official}.block.norm", timm and f"{timm}.bn", in_backbone)


def _backbone() -> Iterator[Module]:
    yield from _conv_norm("conv_stem", "conv_1", "stem", in_backbone=True)
    for stage in range(5):
        hf, official, timm = f"encoder.layer.{stage}", f"layer_{stage + 1}", f"stages.{stage}"
        first_hf, first = ("layer.#", "#") if stage < 2 else ("downsampling_layer", "0")
        for part, official_part, timm_part in (
            ("expand_1x1", "exp_1x1", "conv1_1x1"),
            ("conv_3x3", "conv_3x3", "conv2_kxk"),
            ("reduce_1x1", "red_1x1", "conv3_1x1"),
        ):
            yield from _conv_norm(
                f"{hf}.{first_hf}.{part}",
                f"{official}.{first}.block.{official_part}",
                f"{timm}.{first}.{timm_part}",
                in_backbone=True,
            )
        if stage >= 2:
            yield from _attention_stage(hf, f"{official}.1", f"{timm}.1")


def _attention_stage(hf: str, official: str, timm: str) -> Iterator[Module]:
    yield from _conv_norm(f"{hf}.conv_kxk", f"{official}.local_rep.0", f"{timm}.conv_kxk", in_backbone=True)
    yield from _conv(f"{hf}.conv_1x1", f"{official}.local_rep.1", f"{timm}.conv_1x1", in_backbone=True)
    layer, official_layer, timm_layer = f"{hf}.transformer.layer.#", f"{official}.global_rep.#", f"{timm}.transformer.#"
    yield Module(f"{layer}.layernorm_before", f"{official_layer}.pre_norm_attn.0", f"{timm_layer}.norm1", True)
    for part in ("qkv_proj", "out_proj"):
        yield from _conv(
            f"{layer}.attention.{part}", f"{official_layer}.pre_norm_attn.1.{part}", f"{timm_layer}.attn.{part}", in_backbone=True
        )
    yield Module(f"{layer}.layernorm_after", f"{official_layer}.pre_norm_ffn.0", f"{timm_layer}.norm2", True)
    for part, official_part, timm_part in (("conv1", "1", "fc1"), ("conv2", "3", "fc2")):
        yield from _conv(
            f"{layer}.ffn.{part}",
            f"{official_layer}.pre_norm_ffn.{official_part}",
            f"{timm_layer}.mlp.{timm_part}",
            in_backbone=True,
        )
    # The official code keeps the last normalisation in the same list as the layers, so its number is the count of layers.
    yield Module(f"{hf}.layernorm", f"{official}.global_rep.@", f"{timm}.norm", True)
    yield from _conv_norm(f"{hf}.conv_projection", f"{official}.conv_proj", f"{timm}.conv_proj", in_backbone=True)


def _heads() -> Iterator[Module]:
    yield Module("classifier", "classifier.1", "head.fc", False)
    hf, official = "segmentation_head", "seg_head"
    yield from _conv_norm(f"{hf}.aspp.convs.#", f"{official}.aspp.aspp_layer.convs.#")
    yield from _conv_norm(f"{hf}.aspp.convs.#.conv_1x1", f"{official}.aspp.aspp_layer.convs.#.aspp_pool.conv_1x1")
    yield from _conv_norm(f"{hf}.aspp.project", f"{official}.aspp.aspp_layer.project")
    yield from _conv_norm(f"{hf}.psp.branches.#", f"{official}.psp_layer.psp_branches.#.1")
    yield from _conv_norm(f"{hf}.psp.fusion", f"{official}.psp_layer.fusion.0")
    yield from _conv(f"{hf}.classifier", f"{official}.classifier")
    yield from _conv_norm(f"{hf}.auxiliary_head.conv", f"{official}.aux_head.0")
    yield from _conv(f"{hf}.auxiliary_head.classifier", f"{official}.aux_head.2")


def _detector() -> Iterator[Module]:
    for index, stride in enumerate(EXTRA_LAYER_STRIDES):
        yield from _conv_norm(f"extra_layers.{index}.depthwise", f"extra_layers.os_{stride}.dw_conv")
        yield from _conv_norm(f"extra_layers.{index}.pointwise", f"extra_layers.os_{stride}.pw_conv")
    yield from _conv("extra_layers.3", "extra_layers.os_-1.1")
    for level in range(6):
        hf, official = f"detection_head.levels.{level}", f"ssd_heads.{level}"
        yield from _conv_norm(f"{hf}.projection", f"{official}.proj_layer")
        if level < 5:
            yield from _conv_norm(f"{hf}.depthwise", f"{official}.loc_cls_layer.dw_conv")
            yield from _conv(f"{hf}.pointwise", f"{official}.loc_cls_layer.pw_conv")
        else:
            yield from _conv(f"{hf}.pointwise", f"{official}.loc_cls_layer")


MODULES: tuple[Module, ...] = (*_backbone(), *_heads(), *_detector())


@cache
def _patterns(fmt: Format) -> tuple[tuple[re.Pattern[str], Module], ...]:
    """Each module's path in one format as a pattern: the numbers, then the parameter's own name."""
    found = []
    for module in MODULES:
        path = module.path(fmt)
        if path is not None:
            digits = re.escape(path).replace(re.escape("#"), r"(\d+)").replace(re.escape("@"), r"\d+")
            found.append((re.compile(rf"{digits}\.(weight|bias|running_mean|running_var|num_batches_tracked)"), module))
    return tuple(found)


def _find(name: str, fmt: Format) -> tuple[Module, tuple[str, ...]] | None:
    for pattern, module in _patterns(fmt):
        match = pattern.fullmatch(name)
        if match is not None:
            return module, match.groups()
    return None


def _locate(name: str, fmt: Format) -> tuple[Module, tuple[str, ...]] | None:
    """The module and the numbers behind a name, with or without the backbone's prefix."""
    bare = name.removeprefix(PREFIXES[fmt])
    found = _find(bare, fmt)
    return None if found is not None and bare != name and not found[0].in_backbone else found


def _fill(path: str, parts: tuple[str, ...], *, layers: int) -> str:
    *numbers, parameter = parts
    for number in numbers:
        path = path.replace("#", number, 1)
    return f"{path.replace('@', str(layers))}.{parameter}"


def names_to_ours(names: Iterable[str], *, source: Format) -> dict[str, str]:
    """{name in the source format: our name} for all names that the source format has; others are left out.

    Backbone names get the prefix `mobilevitv2.` if any of the names belongs to a head, as in the models.
    """
    found = {name: located for name in names if (located := _locate(name, source)) is not None}
    prefix = PREFIXES["hf"] if any(not module.in_backbone for module, _ in found.values()) else ""
    return {
        name: (prefix if module.in_backbone else "") + _fill(module.hf, parts, layers=0) for name, (module, parts) in found.items()
    }


def names_from_ours(names: Iterable[str], *, target: Format) -> dict[str, str]:
    """{our name: name in the target format}, for all names.

    Raises:
        WeightsError: a name that this package does not have, or that the target format has no place for.
    """
    names = list(names)
    found = {name: located for name in names if (located := _locate(name, "hf")) is not None}
    unknown = [name for name in names if name not in found]
    if unknown:
        raise WeightsError(
            f"{', '.join(unknown)}: no tensor of a MobileViTV2 model in this package's names; use names_to_ours first."
        )
    homeless = [name for name, (module, _) in found.items() if module.path(target) is None]
    if homeless:
        raise WeightsError(
            f"timm has no segmentation or detection models, so {len(homeless)} tensors have no place there, {homeless[0]} first; "
            "convert to 'hf' or 'official'."
        )
    prefix, layers = _prefix(found.values(), target), _layer_counts(names)
    result = {}
    for name, (module, parts) in found.items():
        stage = name.removeprefix(PREFIXES["hf"]).split(".")[2] if module.in_backbone and "layer" in name else ""
        path = module.path(target) or ""
        result[name] = (prefix if module.in_backbone else "") + _fill(path, parts, layers=layers.get(stage, 0))
    return result


def _prefix(found: Iterable[tuple[Module, tuple[str, ...]]], target: Format) -> str:
    heads = {module.hf for module, _ in found if not module.in_backbone}
    bare = not heads or (target == "official" and heads == {"classifier"})
    return "" if bare else PREFIXES[target]


def _layer_counts(names: Iterable[str]) -> dict[str, int]:
    """Attention layers of each stage."""
    counts: dict[str, int] = {}
    for name in names:
        match = re.search(r"encoder\.layer\.(\d+)\.transformer\.layer\.(\d+)\.", name)
        if match is not None:
            counts[match[1]] = max(counts.get(match[1], 0), int(match[2]) + 1)
    return counts
