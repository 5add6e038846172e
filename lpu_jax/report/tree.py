"""Costs rolled up by the user's names: module path, then source line."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from lpu_jax.report.events import UNIT_KINDS


@dataclasses.dataclass(frozen=True, slots=True)
class Node:
    """A module, a source line, or the whole program.

    Invariant: wall_cycles and busy_cycles are the sums of the children's, where there are any.

    Attributes:
      wall_cycles: cycles of the program that belong to this node and to no other one.
      busy_cycles: unit cycles by kind of unit, all units of a kind together (index as in UNIT_KINDS).
    """

    name: str
    wall_cycles: int
    busy_cycles: tuple[int, ...]
    children: tuple[Node, ...] = ()

    def walk(self, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Node]]:
        """(path, node) of this node and of all below it, parents first."""
        here = (*path, self.name)
        yield here, self
        for child in self.children:
            yield from child.walk(here)

    def find(self, *path: str) -> Node:
        """The node under names below this one.

        Raises:
          KeyError: there is none.
        """
        node = self
        for name in path:
            found = next((child for child in node.children if child.name == name), None)
            if found is None:
                raise KeyError(f"{name!r} is not below {node.name!r}; there: {[c.name for c in node.children]}")
            node = found
        return node


def roll_up(name: str, leaves: list[tuple[tuple[str, ...], int, tuple[int, ...]]]) -> Node:
    """A tree from (path, wall cycles, busy cycles) of leaves; equal paths are added, children sorted by wall cycles."""
    inner: dict[str, list[tuple[tuple[str, ...], int, tuple[int, ...]]]] = {}
    own_wall, own_busy = 0, (0,) * len(UNIT_KINDS)
    for path, wall, busy in leaves:
        if path:
            inner.setdefault(path[0], []).append((path[1:], wall, busy))
        else:
            own_wall, own_busy = own_wall + wall, _add(own_busy, busy)
    children = [roll_up(child, below) for child, below in inner.items()]
    if children and (own_wall or any(own_busy)):  # a name that is a leaf of one path and a module of another
        children.append(Node("(itself)", own_wall, own_busy))
    children.sort(key=lambda node: (-node.wall_cycles, -sum(node.busy_cycles), node.name))
    if not children:
        return Node(name, own_wall, own_busy)
    busy = (0,) * len(UNIT_KINDS)
    for child in children:
        busy = _add(busy, child.busy_cycles)
    return Node(name, sum(child.wall_cycles for child in children), busy, tuple(children))


def _add(first: tuple[int, ...], second: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(a + b for a, b in zip(first, second, strict=True))


def tree_records(tree: Node) -> list[dict[str, Any]]:
    """One flat record per node, parents first: path, depth, wall cycles, their share, busy cycles by kind of unit."""
    total = max(1, tree.wall_cycles)
    return [
        {
            "path": "/".join(path[1:]),
            "name": node.name,
            "depth": len(path) - 1,
            "is_leaf": not node.children,
            "wall_cycles": node.wall_cycles,
            "wall_share": node.wall_cycles / total,
            **{f"busy_{k.replace(' ', '_')}": b for k, b in zip(UNIT_KINDS, node.busy_cycles, strict=True)},
        }
        for path, node in tree.walk()
    ]
