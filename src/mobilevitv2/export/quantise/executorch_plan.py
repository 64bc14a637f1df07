"""What of an exported program is quantised for XNNPACK under ExecuTorch, and what stays float: the lists of `plan`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

aten = torch.ops.aten
CONVOLUTION, LINEAR = aten.conv2d.default, aten.linear.default
WEIGHTED = frozenset({CONVOLUTION, LINEAR})
RECTIFIED = frozenset({aten.relu.default, aten.relu_.default})
MOVES = frozenset({aten.reshape.default, aten.view.default, aten.permute.default, aten.flatten.using_ints, aten.unflatten.int})
"""They only move values: integer where their neighbours are."""
SIGMOID, MULTIPLY, ADD, JOIN = aten.sigmoid.default, aten.mul.Tensor, aten.add.Tensor, aten.cat.default
FLOAT_PARTS = ("attention.key", "layernorm_before", "layernorm_after", "layernorm")
"""Ends of names of modules that stay float: the key of attention, and the means of norms, which are linear layers here."""
POOLING = "PoolingByMatrix"

Node = torch.fx.Node


def integer_nodes(graph: torch.fx.Graph) -> set[Node]:
    """The calls that read and write integers."""
    calls = [node for node in graph.nodes if node.op == "call_function"]
    followed = _followed(calls)
    kept = {node for node in calls if node.target in WEIGHTED and node in followed and not _stays_float(node)}
    for node in calls:
        gate = node.target is SIGMOID and any(each.target is MULTIPLY for each in node.users)
        gated = node.target is MULTIPLY and any(each.target is SIGMOID for each in sources(node))
        if gate or gated:
            kept.add(node)
    kept |= {node for node in calls if _joins_maps(node, kept)}
    return kept | _moves_between(calls, kept)


def sources(node: Node) -> list[Node]:
    """What the node reads, weights and constants included."""
    return [each for each in node.all_input_nodes if isinstance(each, torch.fx.Node)]


def module_of(node: Node) -> tuple[str, str]:
    """The path and the class of the innermost module that the call came from."""
    stack: dict[str, tuple[str, Any]] = node.meta.get("nn_module_stack") or {}
    path, kind = list(stack.values())[-1] if stack else ("", "")
    return path, kind if isinstance(kind, str) else kind.__qualname__


def _followed(calls: Iterable[Node]) -> set[Node]:
    """Calls that another one with weights comes behind: the last answers leave the network, and stay float."""
    found: set[Node] = set()
    waiting = [sources(node)[0] for node in calls if node.target in WEIGHTED]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += sources(node)
    return found


def _stays_float(node: Node) -> bool:
    path, kind = module_of(node)
    return path.endswith(FLOAT_PARTS) or (node.target is LINEAR and kind.endswith(POOLING))


def _joins_maps(node: Node, kept: set[Node]) -> bool:
    """An addition of an inverted residual, or the concatenation of a head's branches: of maps, outside transformers."""
    if node.target not in (ADD, JOIN) or node.meta["val"].ndim != 4 or module_of(node)[0].endswith(FLOAT_PARTS):
        return False
    parts = [sources(each)[0] if each.target in RECTIFIED else each for each in sources(node)]
    return len(parts) > 1 and all(each in kept or each.target in (MULTIPLY, ADD) for each in parts)


def _moves_between(calls: Iterable[Node], integer: Iterable[Node]) -> set[Node]:
    """What only moves values and has integers behind it, or before it and further moves behind."""
    kept, added = set(integer), True
    moves = [node for node in calls if node.target in MOVES]
    while added:
        added = False
        for node in moves:
            source = sources(node)[0]
            before = source in kept or (source.target in RECTIFIED and source.args[0] in kept)
            into = bool(node.users) and all(each in kept for each in node.users)
            onward = before and any(each in kept or each.target in MOVES for each in node.users)
            if node not in kept and (into or onward):
                kept.add(node)
                added = True
    return kept & set(moves)
