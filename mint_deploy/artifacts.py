"""The values that flow between the stages: frozen, keyword-only, each of them also a file.

    sample  -> Moments          moments.npz
    score   -> Importance       scores.npz
    plan    -> PruningPlan      plan.json
    cut     -> (model, plan)    slim.safetensors
    export  -> ExportedModel    model.onnx, deploy.json
    build   -> Engine           engine.plan, engine.json
    bench   -> Measurement      measurements.jsonl

Standard library and numpy only: this file travels to the board. How a value becomes JSON or
npz stands in :mod:`mint_deploy.files`.

History of the formats (``schema`` in every file):
    1  first
    2  measurements: figures, layers, states, gpu_bytes, task.streams; files of schema 1 are read without them
"""

from __future__ import annotations

from mint_deploy.values.basic import Cost, TensorSpec
from mint_deploy.values.delivery import Accuracy, Engine, ExportedModel
from mint_deploy.values.measuring import (
    Comparison,
    LayerTime,
    Machine,
    MachineState,
    Measurement,
    TaskSpec,
)
from mint_deploy.values.planning import (
    Constant,
    Member,
    PlanGroup,
    PlanLayer,
    Positions,
    PruningPlan,
    ScaleFold,
    Statistic,
)
from mint_deploy.values.scoring import (
    ConsumerMoments,
    Floats,
    GroupImportance,
    Importance,
    Ints,
    Moments,
    PooledRows,
)

__all__ = [
    "SCHEMA",
    "Accuracy",
    "Comparison",
    "Constant",
    "ConsumerMoments",
    "Cost",
    "Engine",
    "ExportedModel",
    "Floats",
    "GroupImportance",
    "Importance",
    "Ints",
    "LayerTime",
    "Machine",
    "MachineState",
    "Measurement",
    "Member",
    "Moments",
    "PooledRows",
    "PlanGroup",
    "PlanLayer",
    "Positions",
    "PruningPlan",
    "ScaleFold",
    "Statistic",
    "TaskSpec",
    "TensorSpec",
]

SCHEMA = 2
