"""Names of a model's classes, and the choice of some of them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

from mobilevitv2.errors import ConfigurationError

Class = str | int


def class_name(names: Mapping[int, str], index: int) -> str:
    """The name of a class, or a placeholder where the model has none."""
    return str(names.get(index, f"LABEL_{index}"))


def chosen_classes(names: Mapping[int, str], num_labels: int, classes: Iterable[Class] | None) -> frozenset[int] | None:
    """The indices of classes given by name (case does not matter) or index; None for all.

    Raises:
        ConfigurationError: a class that the model has not (the message has the nearest names), or an empty choice.
    """
    if classes is None:
        return None
    given = [classes] if isinstance(classes, str | int) else list(classes)
    if not given:
        raise ConfigurationError("classes is empty, so nothing could be answered; leave it out to have all.")
    by_name = {class_name(names, index).strip().casefold(): index for index in range(num_labels)}
    return frozenset(_chosen(each, by_name, num_labels, names) for each in given)


def _chosen(given: Class, by_name: dict[str, int], num_labels: int, names: Mapping[int, str]) -> int:
    name = str(given).strip().casefold()
    if name in by_name:
        return by_name[name]
    if name.lstrip("-").isdecimal():
        if 0 <= int(name) < num_labels:
            return int(name)
        raise ConfigurationError(f"class {given} is not among the model's, which are numbered from 0 to {num_labels - 1}.")
    near = [class_name(names, by_name[each]) for each in difflib.get_close_matches(name, by_name, n=3)]
    some = [class_name(names, index) for index in range(min(num_labels, 5))]
    all_of_them = ", ".join(some) + (f" and {num_labels - 5} more" if num_labels > 5 else "")
    hint = f"did you mean {' or '.join(near)}?" if near else f"it has {all_of_them}."
    raise ConfigurationError(f"the model has no class {given!r}; {hint}")
