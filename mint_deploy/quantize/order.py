"""A graph in the form that a file has to have: makers before readers, nothing that nobody reads."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Any

from mint_deploy.onnx_layers import subgraphs

__all__ = ["put_in_order_", "read_by"]


def put_in_order_(model: Any) -> None:
    """Sort the nodes so that each stands after those it reads from, and drop unread weights and shapes.

    Among nodes that could come next the first of the old order does: equal graphs, equal bytes.
    """
    graph = model.graph
    nodes = list(graph.node)
    makers = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    waits = [{makers[name] for name in read_by(node) if name in makers} for node in nodes]
    readers: list[list[int]] = [[] for _ in nodes]
    for i, needed in enumerate(waits):
        for j in needed:
            readers[j].append(i)
    left = [len(needed) for needed in waits]
    ready = [i for i, count in enumerate(left) if not count]
    order = []
    while ready:
        i = heapq.heappop(ready)
        order.append(nodes[i])
        for j in readers[i]:
            left[j] -= 1
            if not left[j]:
                heapq.heappush(ready, j)
    del graph.node[:]
    graph.node.extend(order)
    read = {name for node in order for name in read_by(node)} | {v.name for v in graph.output}
    for field, names in (("initializer", read), ("value_info", set(makers))):
        items = getattr(graph, field)
        kept = sorted((item for item in items if item.name in names), key=lambda v: str(v.name))
        del items[:]
        items.extend(kept)


def read_by(node: Any) -> Iterator[str]:
    """Yield the names that a node reads, those of the graphs it carries too."""
    yield from (name for name in node.input if name)
    for graph in subgraphs(node):
        made = {name for inner in graph.node for name in inner.output}
        for inner in graph.node:
            yield from (name for name in read_by(inner) if name not in made)
        yield from (value.name for value in graph.output if value.name not in made)
