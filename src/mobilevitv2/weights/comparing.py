"""Two lists of tensors side by side, and a message that names every difference."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mobilevitv2.weights.shapes import Shape

FEW = 8
"""Up to this many names are listed one by one."""


def compare(expected: Mapping[str, Shape], found: Mapping[str, Shape]) -> str | None:
    """What keeps `found` from being `expected`, or None if nothing does.

    Misshapen tensors come first, then missing ones, then those that have no place in the model. All are named; where they are many,
    names with a common beginning are folded as a shell would unfold them: `layer.{0,1}.{weight,bias}`.
    """
    shared = [name for name in expected if name in found]
    misshapen = [name for name in shared if tuple(expected[name]) != tuple(found[name])]
    parts = [
        _shape_part(misshapen, expected, found),
        _name_part([name for name in expected if name not in found], "missing from the file"),
        _name_part([name for name in found if name not in expected], "without a place in the model"),
    ]
    told = [part for part in parts if part]
    return "\n".join(told) if told else None


def _shape_part(names: list[str], expected: Mapping[str, Shape], found: Mapping[str, Shape]) -> str:
    if not names:
        return ""
    lines = [f"  {name}: {tuple(found[name])} in the file, {tuple(expected[name])} in the model" for name in names]
    return "\n".join([f"{_count(names)} of another shape:", *lines])


def _name_part(names: list[str], what: str) -> str:
    if not names:
        return ""
    lines = names if len(names) <= FEW else _fold_by_prefix(names)
    return "\n".join([f"{_count(names)} {what}:", *(f"  {line}" for line in lines)])


def _count(names: list[str]) -> str:
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''}"


def _fold_by_prefix(names: list[str]) -> list[str]:
    """A line for each part of the model: its folded names and how many they are."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        pieces = name.split(".")
        # Cut behind the first number, which tells stages, layers and levels apart; else behind the first piece.
        cut = next(
            (i for i, piece in enumerate(pieces[:-1]) if piece.lstrip("-").isdigit() or ("_" in piece and piece[-1].isdigit())), 0
        )
        groups.setdefault(tuple(pieces[: cut + 1]), []).append(name)
    return [f"{fold(group)} ({len(group)})" for group in groups.values()]


def fold(names: Iterable[str]) -> str:
    """Names as one line with braces; a shell's brace expansion gives them back."""
    tree: dict[str, Any] = {}
    for name in names:
        node = tree
        for piece in name.split("."):
            node = node.setdefault(piece, {})
        node[""] = {}  # a name ends here, even if longer ones go on
    return _fold(tree)


def _fold(tree: dict[str, Any]) -> str:
    """One level of names: pieces with the same continuation share it."""
    by_rest: dict[str, list[str]] = {}
    for piece, below in tree.items():
        if piece:
            by_rest.setdefault(_continuation(below), []).append(piece)
    return _braces([_braces(pieces) + rest for rest, pieces in by_rest.items()])


def _continuation(tree: dict[str, Any]) -> str:
    """What follows a piece: nothing, more pieces, or either."""
    if list(tree) == [""]:
        return ""
    rest = f".{_fold(tree)}"
    return _braces(["", rest]) if "" in tree else rest


def _braces(items: list[str]) -> str:
    return items[0] if len(items) == 1 else "{" + ",".join(items) + "}"
