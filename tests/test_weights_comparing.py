"""The message about differences: complete, and the most telling difference first."""

from __future__ import annotations

import itertools
import re

from hypothesis import given
from hypothesis import strategies as st

from mobilevitv2.weights import Architecture, compare, expected_shapes
from mobilevitv2.weights.comparing import fold

CLASSIFIER = expected_shapes(Architecture(task="classify", width=0.5))


def unfold(text: str) -> list[str]:
    """Brace expansion as a shell does it."""
    start = text.find("{")
    if start < 0:
        return [text]
    depth, pieces, piece = 0, [], ""
    for end, letter in enumerate(text[start:], start):
        depth += (letter == "{") - (letter == "}")
        if depth == 0:
            break
        if letter == "," and depth == 1:
            pieces.append(piece)
            piece = ""
        elif end > start:
            piece += letter
    pieces.append(piece)
    middles = itertools.chain.from_iterable(unfold(piece) for piece in pieces)
    return [text[:start] + middle + rest for middle, rest in itertools.product(list(middles), unfold(text[end + 1 :]))]


def named_in(message: str) -> set[str]:
    lines = (re.sub(r" \(\d+\)$", "", line.strip()) for line in message.splitlines() if line.startswith("  "))
    return {name for line in lines for name in unfold(line)}


def test_equal_lists_have_no_message() -> None:
    assert compare(CLASSIFIER, dict(reversed(CLASSIFIER.items()))) is None


def test_shapes_come_first_then_missing_then_extra() -> None:
    message = compare({"a": (1, 2), "b": (3,), "c": ()}, {"a": (1, 3), "c": (), "d": (4,)})
    assert message == (
        "1 tensor of another shape:\n  a: (1, 3) in the file, (1, 2) in the model\n"
        "1 tensor missing from the file:\n  b\n"
        "1 tensor without a place in the model:\n  d"
    )


def test_a_long_list_is_folded_and_complete() -> None:
    message = compare(CLASSIFIER, {})
    assert message is not None
    assert message.startswith("269 tensors missing from the file:")
    assert len(message) < 3000
    assert "transformer.layer.{0,1,2,3}." in message
    assert named_in(message) == set(CLASSIFIER)


def test_every_misshapen_tensor_has_its_line() -> None:
    message = compare(CLASSIFIER, {name: (*shape, 7) for name, shape in CLASSIFIER.items()})
    assert message is not None
    assert message.count(" in the file, ") == len(CLASSIFIER)


@given(st.sets(st.lists(st.sampled_from("abc01"), min_size=1, max_size=5).map(".".join), min_size=1, max_size=40))
def test_folding_loses_and_adds_nothing(names: set[str]) -> None:
    unfolded = unfold(fold(sorted(names)))
    assert sorted(unfolded) == sorted(names)


@given(st.sets(st.sampled_from(sorted(CLASSIFIER)), min_size=1))
def test_every_missing_name_can_be_read(names: set[str]) -> None:
    message = compare(CLASSIFIER, {name: shape for name, shape in CLASSIFIER.items() if name not in names})
    assert message is not None
    assert named_in(message) == names
