"""The value types of the schema: strict scalars, durations, names. No torch here."""

import os
import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, Strict
from pydantic_core import PydanticCustomError, core_schema


def _whole_number(value: Any) -> Any:
    """YAML writes a million as 1e6, which is a float; a whole one is what the user meant."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Bool = Annotated[bool, Strict()]
Int = Annotated[int, Strict(), BeforeValidator(_whole_number), Field(lt=2**63)]
Float = Annotated[float, Strict()]
Positive = Annotated[Float, Field(gt=0)]
NonNegative = Annotated[Float, Field(ge=0)]
Fraction = Annotated[Float, Field(ge=0, le=1)]
Count = Annotated[Int, Field(ge=1)]


def _text(pattern: str, words: str, **more: Any) -> Any:
    """A text that matches a pattern. The words say so in error messages and in docs/config.md."""
    return Field(pattern=pattern, title=words, **more)


RUN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
_NAME_WORDS = "a name of letters, digits, '.', '_' and '-', beginning with a letter or digit, 100 at most"
RunName = Annotated[str, _text(RUN_NAME, _NAME_WORDS)]
"""A run's name is a folder's name, so it must not leave the run root or look like an option."""

_DOTTED = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*"
ImportPath = Annotated[str, _text(f"^{_DOTTED}:{_DOTTED}$", "package.module:Thing")]
"""`package.module:Thing`."""

UserPath = Annotated[str, AfterValidator(os.path.expanduser)]
"""A file or folder of the user's: a leading `~` is the home folder, which no shell expands after `data.root=`."""

Files = UserPath | Annotated[list[UserPath], Field(min_length=1)]
"""A pattern for files, or several."""

_BYTES = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
Bytes = Annotated[str, _text(r"^[0-9]{1,9}(\.[0-9]{1,3})? ?[kMGT]B$", "a size such as 20GB")]
"""A size in kB, MB, GB or TB."""


def in_bytes(size: str) -> int:
    """Of what `Bytes` takes."""
    return round(float(size[:-2]) * _BYTES[size[-2:]])


Extension = Annotated[str, AfterValidator(lambda name: name.lower().removeprefix("."))]
"""Of a file's name, in any case, with or without its dot."""

_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.@+-]*"
_NAMES_WORDS = "a name of letters, digits and '_.@+-', or several with commas between them"
SlurmNames = Annotated[str, _text(rf"^{_NAME}(,{_NAME})*$", _NAMES_WORDS, max_length=250)]
"""A partition, an account, or several with commas between them."""

_TIME_WORDS = "a time as SLURM writes it: 30 (minutes), 12:00:00, 2-00:00:00"
SlurmTime = Count | Annotated[str, _text(r"^([0-9]+-)?[0-9]{1,6}(:[0-9]{1,2}){0,2}$", _TIME_WORDS)]
"""Minutes, or `MM:SS`, `HH:MM:SS`, `DAYS-HH`, `DAYS-HH:MM`, `DAYS-HH:MM:SS`."""

SlurmMemory = Count | Annotated[str, _text(r"^[1-9][0-9]{0,11}[KMGT]?$", "a size such as 64G")]
"""MB, or a number with its unit: `64G`."""

_GPUS = r"^([A-Za-z0-9_][A-Za-z0-9_.-]{0,60}:)?[1-9][0-9]{0,4}$"
SlurmGpus = Count | Annotated[str, _text(_GPUS, "a type and a number such as a100:8")]
"""`8`, or with their type: `a100:8`."""

_CONSTRAINT_WORDS = "features such as a100&nvlink: letters, digits and '_.,:=&|*()[]-'"
SlurmConstraint = Annotated[str, _text(r"^[A-Za-z0-9_(\[][A-Za-z0-9_.,:=&|*()\[\]-]{0,250}$", _CONSTRAINT_WORDS)]
"""Features that nodes must have, as sbatch reads them: `a100&nvlink`."""

_RANGE = r"[0-9]{1,7}(-[0-9]{1,7}(:[1-9][0-9]{0,6})?)?"
_ARRAY = _text(rf"^{_RANGE}(,{_RANGE})*(%[1-9][0-9]{{0,5}})?$", "task numbers such as 0-7, 1,3,5 or 0-30:2%4")
SlurmArray = Int | Annotated[str, _ARRAY]
"""`0-7`, `1,3,5`, `0-30:2`, and `%4` behind it for four at a time."""

_OPTION_WORDS = "an option of sbatch such as --exclusive or --mail-type=END, without blanks and quotes"
SlurmOption = Annotated[str, _text(r"^--[a-z][a-z0-9-]{1,40}(=[A-Za-z0-9_.,:=@+/&|*()\[\]-]{1,250})?$", _OPTION_WORDS)]
"""One more of sbatch's options, as `--name=value`."""

_ONE_LINE = r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*$"
CommandWords = Annotated[str, _text(_ONE_LINE, "text in one line, without control characters")]
"""Text in one line."""

CommandPath = Annotated[CommandWords, AfterValidator(os.path.expanduser)]
"""A UserPath that goes into a script."""

_UNITS = {
    "step": "steps", "steps": "steps",
    "epoch": "epochs", "epochs": "epochs",
    "sample": "samples", "samples": "samples",
    "s": "s", "sec": "s", "second": "s", "seconds": "s",
    "min": "min", "minute": "min", "minutes": "min",
    "h": "h", "hour": "h", "hours": "h",
}  # fmt: skip
_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0}
_DURATION = re.compile(r"\s*([0-9][0-9_]*(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z]+)\s*")


@dataclass(frozen=True)
class Duration:
    """A length of training or of time, written with its unit: `2 epochs`, `500 steps`, `1e6 samples`, `30 min`."""

    value: float
    unit: str
    """steps, epochs, samples, s, min or h"""

    @property
    def is_time(self) -> bool:
        return self.unit in _SECONDS

    @property
    def seconds(self) -> float:
        """Length in seconds.

        Raises:
            ValueError: when the unit is steps, epochs or samples.
        """
        if not self.is_time:
            raise ValueError(f"{self} is no length of time")
        return self.value * _SECONDS[self.unit]

    def steps(self, steps_per_epoch: int, global_batch: int) -> int:
        """Length in optimizer steps, rounded up.

        Raises:
            ValueError: when the unit is one of time.
        """
        if self.is_time:
            raise ValueError(f"{self} has no fixed number of steps")
        per_unit = {"steps": 1.0, "epochs": float(steps_per_epoch), "samples": 1.0 / global_batch}[self.unit]
        return -int(-(self.value * per_unit) // 1)

    def __str__(self) -> str:
        number = str(int(self.value)) if float(self.value).is_integer() else repr(self.value)
        unit = self.unit[:-1] if number == "1" and not self.is_time else self.unit
        return f"{number} {unit}"

    @classmethod
    def parse(cls, text: Any) -> "Duration":
        if isinstance(text, cls):
            return text
        match = _DURATION.fullmatch(text) if isinstance(text, str) else None
        unit = _UNITS.get(match[2].lower()) if match else None
        if match is None or unit is None:
            raise PydanticCustomError(
                "value", "a duration is a number and a unit, such as 2 epochs, 500 steps, 1e6 samples or 30 min"
            )
        return cls(float(match[1].replace("_", "")), unit)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls.parse, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "pattern": r"^[0-9][0-9_.eE+-]*\s*[A-Za-z]+$"}


def _of_training(duration: Duration) -> Duration:
    if duration.is_time:
        raise PydanticCustomError("value", "give steps, epochs or samples: no result may depend on the clock")
    return duration


def _of_time(duration: Duration) -> Duration:
    if not duration.is_time:
        raise PydanticCustomError("value", "give a length of time: s, min or h")
    return duration


def _not_zero(duration: Duration) -> Duration:
    if duration.value == 0:
        raise PydanticCustomError("value", "must be greater than zero")
    return duration


_TRAINING_EXAMPLES = ["2 epochs", "500 steps", "1e6 samples"]
_TIME_EXAMPLES = ["30 min", "2 h"]

AnyDuration = Annotated[Duration, AfterValidator(_not_zero), Field(examples=[*_TRAINING_EXAMPLES, *_TIME_EXAMPLES])]
TrainingDurationOrZero = Annotated[Duration, AfterValidator(_of_training), Field(examples=_TRAINING_EXAMPLES)]
TrainingDuration = Annotated[TrainingDurationOrZero, AfterValidator(_not_zero)]
TimeDuration = Annotated[Duration, AfterValidator(_of_time), AfterValidator(_not_zero), Field(examples=_TIME_EXAMPLES)]
