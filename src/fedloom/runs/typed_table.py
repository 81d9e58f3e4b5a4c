"""Tables of frozen rows: what a run found, for Python."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, Generic, TypeVar, overload

from fedloom.config.validation_errors import unknown_name
from fedloom.system.errors import UserError

Row = TypeVar("Row")


class Table(Sequence[Row], Generic[Row]):
    """An immutable sequence of rows of one dataclass.

    Args:
        kind: The dataclass of the rows.
        rows: The rows.

    Example:
        >>> from fedloom.runs.finished_run import Score
        >>> table = Table(Score, [Score("fedavg", "both", "accuracy", 0.5), Score("local", "both", "accuracy", 0.25)])
        >>> table.where(method="local")[0].value
        0.25
    """

    def __init__(self, kind: type[Row], rows: Iterable[Row]) -> None:
        self.kind, self._rows = kind, tuple(rows)

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns."""
        return tuple(field.name for field in fields(self.kind))  # type: ignore[arg-type]

    def where(self, **values: Any) -> Table[Row]:
        """Return the rows that have these values.

        Args:
            **values: Column → value.

        Raises:
            UserError: There is no such column.
        """
        for name in values:
            if name not in self.columns:
                raise UserError(unknown_name("column", name, self.columns))
        return Table(
            self.kind,
            (row for row in self._rows if all(getattr(row, name) == one for name, one in values.items())),
        )

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return each row as a dict; a mapping in a row becomes one entry for each of its keys, such as "scores.fedavg"."""
        return [_flat({name: getattr(row, name) for name in self.columns}) for row in self._rows]

    def to_pandas(self) -> Any:
        """Return a pandas DataFrame; see `to_dicts`.

        Raises:
            UserError: pandas is not installed.
        """
        try:
            import pandas  # type: ignore[import-not-found]
        except ImportError:
            raise UserError(
                "pandas is not installed; install it with `pip install pandas`, or use .to_dicts()"
            ) from None
        return pandas.DataFrame(self.to_dicts())

    @overload
    def __getitem__(self, place: int) -> Row: ...
    @overload
    def __getitem__(self, place: slice) -> Table[Row]: ...
    def __getitem__(self, place: int | slice) -> Row | Table[Row]:
        if isinstance(place, slice):
            return Table(self.kind, self._rows[place])
        return self._rows[place]

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows)

    def __repr__(self) -> str:
        return f"Table of {len(self)} × {self.kind.__name__}({', '.join(self.columns)})"


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    flat = dict[str, Any]()
    for name, value in row.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{key}": inner for key, inner in value.items()}
        else:
            flat[name] = value
    return flat
