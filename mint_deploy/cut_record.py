"""``cut.json``: what was cut, what the gate found, and what every layer became."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mint_deploy.files import encode

if TYPE_CHECKING:
    from mint_deploy.artifacts import PruningPlan
    from mint_deploy.graph import Graph
    from mint_deploy.lossless import Lossless
    from mint_deploy.verify import Proof

__all__ = ["cut_body"]


def cut_body(
    graph: Graph, made: PruningPlan, proof: Proof, lossless: Lossless | None = None
) -> dict[str, Any]:
    """Return the body of cut.json for a plan as it was carried out, with its proof.

    ``lossless``: what of it was dead, so that its removal costs nothing.
    """
    sizes = graph.sizes({g.name: g.keep for g in made.groups})
    before, after = graph.layer_macs(graph.shapes), graph.layer_macs(sizes)
    return {
        "cost_before": graph.cost,
        "cost_after": graph.cost_of({g.name: g.keep for g in made.groups}),
        "seconds": {"gate": proof.seconds},
        "max_error": proof.max_error,
        "zero_difference": proof.zero_difference,
        "groups": {
            name: {
                "size": g.size,
                "kept": g.kept,
                "layers": g.layers,
                "permutation": max(proof.permutation, proof.permutation_redrawn),
                "restriction": max(proof.restriction, proof.restriction_redrawn),
                "power": "not sampled" if g.power is None else g.power,
                "status": g.status,
                "reason": g.reason,
                "restricted": g.restricted and g.kept < g.size,
            }
            for name, g in proof.groups.items()
        },
        "frozen": made.frozen,
        "lossless": lossless and {**encode(lossless), "text": str(lossless)},
        "layers": [
            {
                "name": layer.name,
                "kind": layer.kind,
                "before": graph.shapes[weight][layer.out_dim],
                "after": sizes[weight][layer.out_dim],
                "macs_before": before[weight],
                "macs_after": after[weight],
            }
            for weight, layer in graph.layers.items()
        ],
    }
