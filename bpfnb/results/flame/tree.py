"""Stacks as a tree of functions: who called whom.

A tree only grows: nodes are numbered as they come, callers before those they call, so that a live view can send what is
new. What is counted at each node is not of the tree: values are arrays beside it, by node.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from bpfnb.results.flame.fold import Folded, Values
from bpfnb.results.flame.kinds import GROUP, kinds_of, shown

__all__ = ["FlameTree", "own_values", "totals"]

Ints = npt.NDArray[np.int32]


class FlameTree:
    """A tree of functions. Node 0 is the root, which stands for all stacks and is its own parent.

    ``names``    functions, each once: nodes have numbers of names
    ``groups``   how many levels below the root are no functions, but what stacks were grouped by
    """

    def __init__(self, groups: int = 0) -> None:
        self.groups = groups
        self.names: list[str] = [""]
        self._kinds: list[int] = [GROUP]
        self._numbers: dict[tuple[bool, str], int] = {}  # a process may be called as a function is
        self._parents: list[int] = [0]
        self._name_of: list[int] = [0]
        self._depths: list[int] = [0]
        self._children: list[dict[int, int]] = [{}]
        self._leaves: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._parents)

    def add(self, stacks: Iterable[str]) -> npt.NDArray[np.int64]:
        """Return the node of each stack's innermost function. Those not yet in the tree are added."""
        return np.fromiter((self._leaves.get(stack) or self._add(stack) for stack in stacks), np.int64)

    def _add(self, stack: str) -> int:
        node = 0
        for depth, name in enumerate(stack.split(";"), 1):
            number = self._number(name, depth <= self.groups)
            children = self._children[node]
            if (child := children.get(number)) is None:
                child = children[number] = len(self._parents)
                self._parents.append(node)
                self._name_of.append(number)
                self._depths.append(depth)
                self._children.append({})
            node = child
        self._leaves[stack] = node
        return node

    def _number(self, name: str, group: bool) -> int:
        number = self._numbers.get((group, name))
        if number is None:
            number = self._numbers[group, name] = len(self.names)
            self.names.append(name)
            self._kinds.append(GROUP if group else int(kinds_of([name])[0]))
        return number

    def parents(self, begin: int = 0) -> Ints:
        """Return the caller's node of each node from ``begin`` on."""
        return np.array(self._parents[begin:], np.int32)

    def name_numbers(self, begin: int = 0) -> Ints:
        """Return the number of each node's name."""
        return np.array(self._name_of[begin:], np.int32)

    def kinds(self, begin: int = 0) -> npt.NDArray[np.uint8]:
        """Return the kind of each name from ``begin`` on: a number in kinds.KINDS."""
        return np.array(self._kinds[begin:], np.uint8)

    def depths(self) -> Ints:
        return np.array(self._depths, np.int32)

    def path(self, node: int) -> list[str]:
        """Return the names from the outermost to this node."""
        path = []
        while node:
            path.append(self.names[self._name_of[node]])
            node = self._parents[node]
        return path[::-1]

    def frame(self, own: Values) -> pd.DataFrame:
        """Return the tree as a DataFrame, a row a node: ``node``, ``parent``, ``depth`` (int32), ``name``, ``self``,
        ``total``, ``share``."""
        total = totals(self, own)
        return pd.DataFrame(
            {
                "node": np.arange(len(self), dtype=np.int32),
                "parent": self.parents(),
                "depth": self.depths(),
                "name": [shown(self.names[number]) for number in self._name_of],
                "self": own,
                "total": total,
                "share": total / max(total[0], 1),
            }
        )

    def hottest(self, own: Values, most: int = 10) -> list[tuple[list[str], Any]]:
        """Return the stacks at which most was counted: names from the outermost on, and how much."""
        order = np.argsort(-own, kind="stable")[:most]
        return [(self.path(int(node)), own[node].item()) for node in order if own[node] > 0]


def own_values(tree: FlameTree, folded: Folded) -> Values:
    """Return what was counted at each node itself, not in what it called. Adds the stacks to the tree."""
    leaves = tree.add(folded.stacks)
    own: Values = np.zeros(len(tree), folded.values.dtype)
    np.add.at(own, leaves, folded.values)
    return own


def totals(tree: FlameTree, own: Values) -> Values:
    """Return what was counted at each node and in all that it called."""
    total = own.copy()
    parents, depths = tree.parents()[: len(own)], tree.depths()[: len(own)]
    order = np.argsort(depths, kind="stable")
    levels = np.split(order, np.searchsorted(depths[order], np.arange(1, depths.max(initial=0) + 1)))
    for level in levels[:0:-1]:
        np.add.at(total, parents[level], total[level])
    return total
