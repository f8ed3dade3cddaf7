"""The table: every animal of the zoo, and what is right for it."""

from typing import Any

from tests.exactness.zoo import Animal, behaviour, buffers, parameters, parts

SMALL: dict[str, Any] = {
    "name": "run",
    "data": {"name": "synthetic", "shape": [3, 4, 4], "classes": 4, "size": 26, "eval_size": 9},
    "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9},
    "batch": {"microbatches": 6, "global_size": 12},
    "train": {"duration": "4 steps"},
    "eval": {"every": "2 steps", "batch_size": 4},
    "checkpoint": {"every": "2 steps"},
    "loader": {"workers": 0},
    "distributed": {"bucket_mb": 0.0001},
    "tracking": {"samples": True, "wandb": {"mode": "disabled"}},
}
"""Six microbatches: of two ranks, none's share is one node of the tree. Two epochs. Small buckets:
the first one leaves while most of the backward is still to come."""

MUST_BE_EQUAL: dict[str, tuple[type, ...]] = {
    "buffers": (
        buffers.Running, buffers.RunningFloat64, buffers.RunningBfloat16, buffers.RunningMixed, buffers.RunningScalar,
        buffers.CountOfNoDimension, buffers.CountOfOne, buffers.CountOfSamples, buffers.Observer, buffers.FirstBatch,
        buffers.StaysNone, buffers.Constant, buffers.ConstantNotSaved, buffers.MaskOfInfinities, buffers.MaskOfLargest,
        buffers.NotANumber, buffers.Expanded, buffers.Transposed,
    ),
    "parameters": (
        parameters.Tied, parameters.SharedModule, parameters.Frozen, parameters.Double, parameters.Bfloat16,
        parameters.Scalar, parameters.Transposed, parameters.ChannelsLast, parameters.Permuted,
        parameters.OldWeightNorm, parameters.WeightNorm, parameters.OldSpectralNorm, parameters.SpectralNorm,
        parameters.Lists, parameters.FrozenBatchNorm, parameters.KeepsEvalMode, parameters.FrozenDropout,
        parameters.TogglesInside,
    ),
    "behaviour": (
        behaviour.DrawsPython, behaviour.DrawsNumpy, behaviour.DrawsTorch, behaviour.DrawsInEvaluation,
        behaviour.DropsOutAlways, behaviour.StoresFeatures, behaviour.Journal, behaviour.StoresByHook, behaviour.Hooks,
        behaviour.CheckpointedReentrant, behaviour.CheckpointedNot, behaviour.ExtraState, behaviour.OwnFunction,
    ),
}  # fmt: skip
"""Nothing of these may be refused."""

MAY_BE_REFUSED: dict[type, str] = {
    buffers.RunningComplex: "mean",
    buffers.RunningNotSaved: "mean",
    buffers.Reassigned: "mean",
    buffers.ReassignedCount: "seen",
    buffers.Histogram: "histogram",
    buffers.ChangesInEvaluation: "mean",
    buffers.ReassignedInEvaluation: "seen",
    buffers.Late: "mean",
    buffers.NoneAtFirst: "mean",
    buffers.Shared: "mean|again",
    buffers.Cache: "cache",
    buffers.Bools: "active",
    parameters.MaxNorm: "table",
    parameters.ActNorm: "shift|begun",
    parameters.Teacher: "teacher",
    parameters.Unused: "idle",
    parameters.Complex: "phase",
    parameters.Sparse: "table",
    parameters.Lazy: "inner",
    parameters.Toggles: "drop",
    behaviour.OwnTorchGenerator: "generator",
    behaviour.OwnTorchGeneratorInEvaluation: "generator",
    behaviour.OwnPythonRandom: "random",
    behaviour.OwnPythonRandomInEvaluation: "random",
    behaviour.OwnNumpyGenerator: "rng",
    behaviour.OwnNumpyGeneratorInEvaluation: "rng",
    behaviour.CountsForwards: "calls",
    behaviour.CountsSteps: "calls",
    behaviour.RunningAttribute: "mean",
    behaviour.RunningList: "last_seen|RunningList",
    behaviour.CountingHook: "backwards",
    behaviour.ExtraTensors: "ExtraTensors|extra state",
    behaviour.ExtraStateOneWay: "ExtraStateOneWay|extra state",
    behaviour.ExtraStateChanging: "steps|extra state",
    behaviour.SavesAndDoesNotLoad: "version",
    behaviour.ChangesInBackward: "size",
}
"""Right is the same bits, or a refusal that says this name."""


def named(room: str, kind: type) -> str:
    """What an animal is called."""
    return f"{room} {kind.__name__}"


def _model(kind: type) -> dict[str, Any]:
    return {"name": f"{kind.__module__}:{kind.__name__}"}


def _optimizer(kind: type) -> dict[str, Any]:
    return {"name": f"{kind.__module__}:{kind.__name__}", "lr": 0.1}


def _others() -> dict[str, Animal]:
    """Those whose habit is not the model's."""
    plain = {"model": _model(buffers.Running)}
    optimizers = {
        parts.DoubleState: None,
        parts.HalfState: None,
        parts.Noisy: "Noisy",
        parts.CountsInAttribute: "steps",
        parts.CountsInGroups: "k",
        parts.CountsInState: "all|steps",
        parts.OwnGenerator: "generator",
        parts.SlowWeights: "slow",
    }
    data = {
        parts.Caches: None,
        parts.OwnGeneratorData: "rng|OwnGeneratorData",
        parts.OwnTorchGeneratorData: "rng|OwnTorchGeneratorData",
        parts.CountsReads: "reads|CountsReads",
    }
    tasks = {
        parts.DrawsInLoss: None,
        parts.CountsCalls: "the loss|calls",
        parts.OwnTorchGeneratorTask: "the loss|generator",
    }
    found = {f"optimizer {k.__name__}": Animal(config={**plain, "optimizer": _optimizer(k)}, refused=name)
             for k, name in optimizers.items()}  # fmt: skip
    found |= {f"data {k.__name__}": Animal(config={**plain, "data": _model(k)}, refused=name)
              for k, name in data.items()}  # fmt: skip
    found |= {f"task {k.__name__}": Animal(config={**plain, "task": _model(k)}, refused=name)
              for k, name in tasks.items()}  # fmt: skip
    text = {"model": _model(behaviour.ReadsText), "data": _model(parts.Captions)}
    several = {"model": _model(behaviour.SeveralOutputs), "task": _model(parts.OfSeveralOutputs)}
    averaged = {"model": _model(buffers.RunningMixed), "train": {"duration": "4 steps", "ema_decay": 0.9}}
    return found | {
        "text in a batch": Animal(config=text),
        "several outputs": Animal(config=several),
        "averaged weights": Animal(config=averaged),
    }


def herd(*kinds: type) -> Animal:
    """All of them in one model, which may not be refused."""
    names = [_model(kind)["name"] for kind in kinds]
    return Animal(config={"model": {"name": "tests.exactness.zoo.herd:Herd", "args": {"kinds": names}}})


def animals() -> dict[str, Animal]:
    """All of them, by name."""
    found = {}
    for room, kinds in MUST_BE_EQUAL.items():
        found |= {named(room, kind): Animal(config={"model": _model(kind)}) for kind in kinds}
    for kind, name in MAY_BE_REFUSED.items():
        room = kind.__module__.rpartition(".")[2]
        found[named(room, kind)] = Animal(config={"model": _model(kind)}, refused=name)
    return found | _others()
