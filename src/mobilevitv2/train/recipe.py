"""Recipes: every number of a training run, as a small commented YAML file over typed defaults."""

from __future__ import annotations

import difflib
import os
import types
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from mobilevitv2.errors import ConfigurationError, MissingDependency
from mobilevitv2.train.settings import ByWidth, ClassificationRecipe, DetectionRecipe, Recipe, SegmentationRecipe

__all__ = [
    "ClassificationRecipe",
    "DetectionRecipe",
    "Recipe",
    "SegmentationRecipe",
    "load_recipe",
    "recipe_names",
    "recipe_of",
    "save_recipe",
]

KINDS: dict[str, type[Recipe]] = {kind.task: kind for kind in (ClassificationRecipe, SegmentationRecipe, DetectionRecipe)}
AnyRecipe = TypeVar("AnyRecipe", bound=Recipe)


def recipe_names(task: str | None = None) -> list[str]:
    """The recipes that come with the package, of one task or of all."""
    names = sorted(entry.name.removesuffix(".yaml") for entry in _folder().iterdir() if entry.name.endswith(".yaml"))
    return names if task is None else [name for name in names if _task_of(_read_yaml(name), name) == task]


def load_recipe(name: str | os.PathLike[str], overrides: dict[str, str] | None = None) -> Recipe:
    """A recipe by name, or from a YAML file, with some of its settings replaced; its `task:` line says of which kind it is.

    Args:
        name: one of `recipe_names()`, or a path that ends in .yaml or .yml.
        overrides: settings as text, as the command line gives them: {"epochs": "30", "crop_scale": "0.2,1.0"}.

    Raises:
        ConfigurationError: an unknown recipe or setting (the nearest right one is named), or a value that does not fit.
    """
    values = _read_yaml(name)
    kind = KINDS[_task_of(values, name)]
    values.pop("task", None)
    values.update(_parse(overrides or {}))
    types_of = get_type_hints(kind)
    types_of.pop("task")
    unknown = [key for key in values if key not in types_of]
    if unknown:
        raise ConfigurationError(f"Unknown setting {unknown[0]!r}; {_nearest(unknown[0], list(types_of))}")
    label = os.fspath(name) if Path(name).suffix in (".yaml", ".yml") else str(name)
    return kind(**{"name": label, **{key: _fit(key, value, types_of[key]) for key, value in values.items()}})


def recipe_of(kind: type[AnyRecipe], recipe: str | os.PathLike[str] | Recipe, overrides: dict[str, str] | None = None) -> AnyRecipe:
    """A recipe of one task: itself, or by its name or file.

    Raises:
        ConfigurationError: as `load_recipe`; a recipe of another task; overrides of a recipe that is no name.
    """
    if isinstance(recipe, Recipe):
        if overrides:
            raise ConfigurationError("Overrides go with a recipe's name; change a recipe object with dataclasses.replace.")
        loaded, told = recipe, f"A {type(recipe).__name__}"
    else:
        values, told = _read_yaml(recipe), f"Recipe {os.fspath(recipe)}"
        found = _task_of(values, recipe)
        loaded = load_recipe(recipe, overrides if found == kind.task else None)
    if not isinstance(loaded, kind):
        raise ConfigurationError(
            f"{told} is one for --task {loaded.task}, not {kind.task}; recipes for {kind.task}: "
            f"{', '.join(recipe_names(kind.task))}."
        )
    return loaded


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write a recipe so that `load_recipe` gives it back."""
    import yaml

    from mobilevitv2.weights.writing import write_whole

    values = {key: list(value) if isinstance(value, tuple) else value for key, value in recipe.to_dict().items()}
    write_whole(path, yaml.safe_dump(values, sort_keys=False).encode())


def _folder() -> Any:
    return resources.files("mobilevitv2.train") / "recipes"


def _task_of(values: dict[str, Any], name: str | os.PathLike[str]) -> str:
    task = values.get("task", "classify")
    if task not in KINDS:
        raise ConfigurationError(f"Recipe {os.fspath(name)} has task: {task}; use one of {', '.join(KINDS)}.")
    return str(task)


def _read_yaml(name: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        import yaml
    except ImportError as error:
        raise MissingDependency("Recipes need pyyaml: pip install 'mobilevitv2[train]'.") from error
    if Path(name).suffix in (".yaml", ".yml"):
        if not Path(name).is_file():
            raise ConfigurationError(f"There is no recipe file {name}.")
        text = Path(name).read_text(encoding="utf-8")
    elif str(name) in recipe_names():
        text = (_folder() / f"{name}.yaml").read_text(encoding="utf-8")
    else:
        raise ConfigurationError(f"Unknown recipe {str(name)!r}; {_nearest(str(name), recipe_names())}")
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ConfigurationError(f"Recipe {name} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigurationError(f"Recipe {name} must be a list of `setting: value` lines.")
    return values


def _parse(overrides: dict[str, str]) -> dict[str, Any]:
    import yaml

    parsed: dict[str, Any] = {}
    for key, text in overrides.items():
        try:
            parsed[key] = [yaml.safe_load(part) for part in text.split(",")] if "," in text else yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigurationError(f"{key}={text} cannot be read: {error}") from error
    return parsed


def _nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(repr(c) for c in close)}?" if close else f"known: {', '.join(known)}."


def _fit(key: str, value: Any, kind: Any) -> Any:
    """The value in the type of its setting; numbers that YAML reads as text (1e-3) among them."""
    for part in get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,):
        try:
            return _as(part, value)
        except (TypeError, ValueError):
            continue
    wanted = getattr(kind, "__name__", str(kind)) if kind in (bool, int, float, str) else str(kind)
    raise ConfigurationError(f"{key}={value!r} does not fit; it takes {wanted}.")


def _as(kind: Any, value: Any) -> Any:
    """ValueError or TypeError where the value is of another kind."""
    if get_origin(kind) is tuple:
        parts = get_args(kind)
        if isinstance(value, str) or len(value) != len(parts):
            raise ValueError(value)
        return tuple(_as(part, each) for part, each in zip(parts, value, strict=True))
    if kind == ByWidth:
        return {float(width): float(each) for width, each in value.items()} if isinstance(value, dict) else _as(float, value)
    if (kind is bool) != isinstance(value, bool) or (kind is str and not isinstance(value, str)):
        raise ValueError(value)
    if kind is int and float(value) != int(value):
        raise ValueError(value)
    return kind(value)
