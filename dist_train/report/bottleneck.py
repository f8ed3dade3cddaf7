"""What a training loses its time to, in one sentence, with the one thing to try. No torch here."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from dist_train.config.schema import RunConfig
from dist_train.config.types import Duration
from dist_train.report.budget import OF_A_STEP, Budget
from dist_train.report.late import Late

WORTH_NAMING = 0.15
"""The share of the time that must be lost to something before that is called the bottleneck."""
RARE_ENOUGH = 0.05
"""The share that evaluations or saves may take once advice was followed."""
BYTES_PER_S = 2e8
"""That an exchange moves at least. What it takes longer, with small batches, each costs, however small it is."""
MOSTLY_FIXED = 1 / 3
"""The part of forward and backward that does not grow with the batch, above which batches are small."""
MOST_WORKERS = 16


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a session runs with, as far as advice depends on it.

    Attributes:
        cores: of a rank, for itself and its loading processes.
        workers: its loading processes.
        floor: seconds that forward and backward of a microbatch take at least, however few samples it has.
        parameters: numbers that are exchanged in each step.
        on_gpu: whether the ranks compute on GPUs.
        bf16: whether they compute on processors that have instructions for it.
    """

    cores: int
    workers: int
    floor: float
    parameters: int
    on_gpu: bool
    bf16: bool = False

    @classmethod
    def from_row(cls, row: Any) -> "Setting | None":
        """Of `setting` in metrics.jsonl, which somebody may have written by hand."""
        wanted = cls.__annotations__.keys()
        is_one = isinstance(row, dict) and wanted - {"bf16"} <= row.keys() <= wanted  # earlier versions lack that one
        return cls(**row) if is_one and all(isinstance(value, int | float) for value in row.values()) else None


@dataclass(frozen=True, kw_only=True)
class Bottleneck:
    """What the time is lost to.

    Attributes:
        kind: input, late, exchange, small batch, evaluation or save; balanced where it is nothing of that.
        stage: of the input: read, decode or augment.
        seconds: that were lost.
        share: of the time.
        sentence: for people.
    """

    kind: str
    seconds: float
    share: float
    sentence: str
    stage: str = ""


@dataclass(frozen=True, kw_only=True)
class Account:
    """The intervals of a session, or of a run.

    Attributes:
        total: of all intervals.
        late: by rank, where it was late last, and the seconds that it has cost in all of them.
    """

    config: RunConfig
    setting: Setting
    total: Budget
    late: dict[int, Late]

    @classmethod
    def of(
        cls, config: RunConfig, setting: Setting, intervals: Sequence[tuple[Budget, Sequence[Late]]]
    ) -> "Account | None":
        """None where there is no interval."""
        total = Budget.sum(budget for budget, _ in intervals)
        if total is None:
            return None
        late: dict[int, Late] = {}
        for budget, ranks in intervals:
            for one in ranks:
                before = late[one.rank].seconds if one.rank in late else 0.0
                late[one.rank] = replace(one, seconds=before + one.seconds * budget.steps)
        return cls(config=config, setting=setting, total=total, late=late)

    @property
    def late_by_step(self) -> list[Late]:
        """With the seconds that each has cost in the mean step."""
        return [replace(one, seconds=one.seconds / self.total.steps) for one in self.late.values()]

    @property
    def _microbatches(self) -> int:
        """In a step of all ranks; a config that was not written by a run may leave it open."""
        given = self.config.batch.microbatches
        return given if isinstance(given, int) else len(self.total.ranks)

    @property
    def bottleneck(self) -> Bottleneck:
        """What most of the time is lost to. Of the phases, it is those of the rank that the others wait for."""
        spent, seconds, steps = self.total.critical, self.total.seconds or 1.0, self.total.steps
        ranks = len(self.total.ranks)
        microbatches = -(-self._microbatches // ranks)
        computing = spent["forward"] + spent["backward"]
        # Cores that are shared make everything longer, and what computing costs by itself is what counts here.
        own = sum(self.total.sums[phase] for phase in OF_A_STEP if phase != "exchange")
        running = max(0.05, 1 - self.total.queued / own) if own else 1.0
        fixed = min(1.0, self.setting.floor * microbatches * steps / (running * computing or 1.0))
        lost = {name: spent[name] for name in ("input", "evaluation", "save")}
        lost["exchange"] = min(spent["exchange"], self.total.exchanging)
        if fixed >= MOSTLY_FIXED:
            moving = min(lost["exchange"], steps * 4 * self.setting.parameters / BYTES_PER_S)
            lost["small batch"] = fixed * computing + spent["other"] + spent["optimizer"] + lost["exchange"] - moving
            lost["exchange"] = moving
        worst = max(self.late.values(), key=lambda one: one.seconds, default=None)
        kind = max(lost, key=lost.__getitem__)
        if worst is not None and worst.seconds >= max(lost[kind] / 2, WORTH_NAMING * seconds):
            return self._found("late", worst.seconds, self._late(worst, worst.seconds / seconds))
        if lost[kind] < WORTH_NAMING * seconds:
            share = 100 * computing / seconds
            said = f"balanced: forward and backward have {share:.0f} % of the time, and nothing else stands out"
            if self.setting.bf16 and self.config.train.precision == "fp32":
                said += "; this processor multiplies in bf16 as well: try train.precision=bf16"
            return self._found("balanced", 0.0, said)
        says = {
            "input": self._input,
            "exchange": self._exchange,
            "small batch": self._small_batch,
            "evaluation": lambda share: self._often("evaluation", "eval.every", self.config.eval.every, share),
            "save": lambda share: self._often("saving", "checkpoint.every", self.config.checkpoint.every, share),
        }
        found = self._found(kind, lost[kind], says[kind](lost[kind] / seconds))
        return replace(found, stage=self._stage) if kind == "input" else found

    def _found(self, kind: str, lost: float, sentence: str) -> Bottleneck:
        return Bottleneck(kind=kind, seconds=lost, share=lost / (self.total.seconds or 1.0), sentence=sentence)

    def _late(self, one: Late, share: float) -> str:
        each = replace(one, seconds=one.seconds / self.total.steps, share=share)
        return f"{str(each).partition(';')[0]}, and the others wait for it; try dist-train doctor on its host"

    @property
    def _stage(self) -> str:
        loading = self.total.loading
        return max(loading, key=loading.__getitem__) if loading else "decode"

    def _input(self, share: float) -> str:
        stage, loading, data = self._stage, self.total.loading, self.config.data
        own, size = data.name.partition(":")[2], getattr(data, "image_size", None)
        what = f"{own}.__getitem__" if own and stage == "decode" else stage
        unit = "process" if stage == "read" else "core"
        rate = f"{1 / loading[stage]:,.0f} samples/s a {unit}" if loading.get(stage) else "slow"
        wait = f"input-bound: ranks wait {100 * share:.0f} % of the time for samples; {what} is the stage ({rate})"
        spent, steps, workers = self.total.critical, self.total.steps, self.setting.workers
        samples = self.config.batch.global_size / len(self.total.ranks)
        rest = max(1e-6, (sum(spent.values()) - spent["input"]) / steps)
        needed = max(workers + 1, math.ceil(sum(loading.values()) * samples / rest))
        if stage != "augment" and (cache := self._cache) is not None:
            return f"{wait}; try {cache}, which reads and decodes each file once"
        if stage == "read":  # a process that waits needs no core
            most, else_ = MOST_WORKERS, "try a faster disk, or fewer and larger files (data.name=shards)"
        else:
            most = self.setting.cores - (0 if self.setting.on_gpu else 1)
            less = f"files no larger than data.image_size={size}" if size else "more cores"
            less = "a cheaper augment" if stage == "augment" else less
            else_ = f"no core is free for more loader.workers: try {less}"
        if workers < most:
            return f"{wait}; try loader.workers={min(needed, most)}"
        return f"{wait}; {else_}"

    @property
    def _cache(self) -> str | None:
        """What switches the cache of decoded images on, where there can be one and is none."""
        data, names = self.config.data, [item.name for item in self.config.augment]
        images = {"image_folder": True, "shards": getattr(data, "decode", None) is None, "huggingface": bool(names)}
        if not images.get(data.name) or getattr(data, "cache", None) is not None:
            return None
        size = getattr(data, "image_size", 0)
        return f"data.cache.side={size * 8 // 7}" if "random_resized_crop" in names else "data.cache=disk"

    def _exchange(self, share: float) -> str:
        return (
            f"exchange-bound: ranks wait {100 * share:.0f} % of the time for the sums of {self.setting.parameters:,} "
            f"gradients; try batch.global_size={2 * self.config.batch.global_size}, which exchanges half as often"
        )

    def _small_batch(self, share: float) -> str:
        batch, ranks = self.config.batch, len(self.total.ranks)
        spent, steps = self.total.critical, self.total.steps
        microbatches = -(-self._microbatches // ranks)
        took = 1000 * (spent["forward"] + spent["backward"]) / steps / microbatches
        samples = batch.global_size // self._microbatches
        size = f"{samples} sample{'s' * (samples > 1)}"
        said = (
            f"small batches: {100 * share:.0f} % of the time is what each step costs however few samples it has; a "
            f"microbatch of {size} takes {took:.2g} ms"
        )
        fewer = next((n for n in (ranks, 2 * ranks) if n < self._microbatches and batch.global_size % n == 0), None)
        if fewer is not None:
            return f"{said}; try batch.microbatches={fewer}, which cuts a batch into larger ones"
        return f"{said}; try batch.global_size={8 * batch.global_size}"

    def _often(self, what: str, key: str, every: Duration, share: float) -> str:
        times = math.ceil(share / max(0.01, 1 - share) / RARE_ENOUGH)
        rarer = Duration(every.value * times, every.unit)
        return f"{what} takes {100 * share:.0f} % of the time, every {every}; try {key}='{rarer}'"
