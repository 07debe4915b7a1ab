"""What a run's files hold, for the report. Damaged rows and fields are left out and counted.

A disk, an editor or a copy may damage a file. The rest of it is still worth a report.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from srt_fast.files import Row, parse_json, read_sound_rows

LARGEST = 1e39
"""The largest size of a number, above fp32's. Figures overflow on much larger ones."""
Number = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=-LARGEST, le=LARGEST)]
Seconds = Annotated[Number, Field(ge=0)]
Ratio = Annotated[Number, Field(ge=0)]
Count = Annotated[int, Field(strict=True, ge=0, le=2**53)]


class _Row(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)
    step: Count


class _FigureRow(_Row):
    __pydantic_extra__: dict[str, Number | None]
    kind: Literal["train", "eval", "monitor"]
    time: Number
    seconds: Seconds | None = None
    seconds_sample: Seconds | None = None
    seconds_reward: Seconds | None = None
    seconds_score: Seconds | None = None
    seconds_train: Seconds | None = None
    seconds_sync: Seconds | None = None
    sample_limit_seconds: Seconds | None = None
    sample_mfu: Ratio | None = None
    score_mfu: Ratio | None = None
    train_mfu: Ratio | None = None


class _EventRow(_Row):
    __pydantic_extra__: dict[str, Number | bool | str | None]
    kind: Literal["event"]
    time: Number
    event: str


class _TurnRow(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)
    question: str
    completion: str
    reward: Number | None = None


class _SampleRow(_Row):
    prompt: str
    completion: str
    answer: str | None = None
    majority: bool | None = None
    correct: bool | None = None
    turns: list[_TurnRow] = Field(default_factory=list)


class _AuditRow(_Row):
    groups: Count
    pairs: Count
    false_merges: Count
    false_splits: Count
    failures: Count
    dropped: Count
    examples: list[Annotated[list[str], Field(min_length=3, max_length=3)]]


class _Config(BaseModel):
    recipe: str = ""
    train: dict[str, Any] = Field(default_factory=dict)


class _Summary(BaseModel):
    recipe: str = ""
    seed: Count = 0
    steps: Count = 0
    seconds: Seconds = 0.0
    run_dir: str = ""
    pass1_start: Number | None = None
    pass1_end: Number | None = None
    maj_start: Number | None = None
    maj_end: Number | None = None


_METRICS: TypeAdapter = TypeAdapter(Annotated[_FigureRow | _EventRow, Field(discriminator="kind")])
_SAMPLES: TypeAdapter = TypeAdapter(_SampleRow)
_AUDIT: TypeAdapter = TypeAdapter(_AuditRow)


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The files of a run's folder. Files that do not exist are empty here."""

    metrics: list[Row]
    samples: list[Row]
    audit: list[Row]
    config: Row
    summary: Row
    damage: list[str]  # what was left out: ["2 rows of samples.jsonl", "seconds of summary.json"]


def read_record(folder: Path) -> RunRecord:
    """Read a run's folder. Raises ValueError if it has no metrics.jsonl."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected a run's folder, got none")
    if not (folder / "metrics.jsonl").is_file():
        raise ValueError(f"{folder}: expected a run's folder with a metrics.jsonl, got none in it")
    damage: list[str] = []
    return RunRecord(
        metrics=_read_rows(folder / "metrics.jsonl", _METRICS, damage),
        samples=_read_rows(folder / "samples.jsonl", _SAMPLES, damage),
        audit=_read_rows(folder / "audit.jsonl", _AUDIT, damage),
        config=_read_table(folder / "config.json", _Config, damage),
        summary=_read_table(folder / "summary.json", _Summary, damage),
        damage=damage,
    )


def _read_rows(path: Path, row_type: TypeAdapter, damage: list[str]) -> list[Row]:
    if not path.is_file():
        return []
    rows, damaged = read_sound_rows(path, lambda row: _fits(row, row_type))
    if damaged:
        damage.append(f"{damaged} {'row' if damaged == 1 else 'rows'} of {path.name}")
    return rows


def _read_table(path: Path, table: type[BaseModel], damage: list[str]) -> Row:
    """A JSON file with a table. `table` has the fields that the report computes with."""
    if not path.is_file():
        return {}
    try:
        values = parse_json(path.read_bytes())
    except ValueError:
        values = None
    if not isinstance(values, dict):
        damage.append(path.name)
        return {}
    try:
        table.model_validate(values)
    except ValidationError as error:
        damaged = sorted({str(problem["loc"][0]) for problem in error.errors()})
        damage += [f"{name} of {path.name}" for name in damaged]
        values = {name: value for name, value in values.items() if name not in damaged}
    return values


def _fits(row: Row, row_type: TypeAdapter) -> bool:
    try:
        row_type.validate_python(row)
    except ValidationError:
        return False
    return True
