"""CSV and Parquet → a table of texts and plain JSON values.

CSV has no types: a column is text, and becomes numbers or booleans only where every cell of it is
one and stays what it was, so "007" and a telephone number keep their zeros. An empty cell is
absent; "NA" and "None" are texts, as a country and a name may be called so.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from apex_dagster.extraction.decode import decode
from apex_dagster.extraction.parse import PARQUET, TSV
from apex_dagster.extraction.prepared import Refused

if TYPE_CHECKING:  # importing pandas takes longer than reading most files
    import pandas as pd

# A small Parquet file can unpack to any size; its footer says to which.
PARQUET_BYTES_MAX = 512 * 1024 * 1024
PARQUET_ROWS_MAX = 1_000_000
SEPARATORS = ",;\t"  # ";" is what spreadsheets write where the comma is the decimal sign

# Up to 15 digits a float is exact, up to 18 a number fits into a store's 64 bits.
_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,14})(\.[0-9]+)?([eE][-+]?[0-9]{1,2})?")
_BOOLEAN = re.compile(r"true|false", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Table:
    """The rows of a file that are not empty."""

    frame: pd.DataFrame  # the index is the row's number, from 1 below the header
    is_typed: bool  # False: all cells are texts
    faults: Mapping[int, str]  # row number → why that row cannot be used

    @property
    def names(self) -> list[str]:
        return list(self.frame.columns)

    def texts(self, name: str) -> list[str | None]:
        """A column as texts, None where there is none. Raises Refused for lists and objects."""
        return [_text(cell, name) for cell in self._cells(name)]

    def values(self, name: str) -> list[Any]:
        """A column as JSON values, None where there is none. Raises Refused for bytes."""
        cells = self._cells(name)
        if self.is_typed:
            return [_plain(cell, name) for cell in cells]
        convert = _type_of([cell for cell in cells if cell is not None])
        return [None if cell is None else convert(cell) for cell in cells]

    def is_scalar(self, name: str) -> bool:
        """Whether each cell holds one value, rather than a list, an object or bytes."""
        return not any(isinstance(cell, list | dict | bytes) for cell in self._cells(name))

    def _cells(self, name: str) -> list[Any]:
        column = self.frame[name]
        with _errors_as_refusals(f"column {name!r}"):
            cells = zip(column.tolist(), column.isna().tolist(), strict=True)
            return [None if missing or _is_absent(cell) else cell for cell, missing in cells]


def read_table(content: bytes, kind: str) -> Table:
    """The table in a file of media type `kind`. Raises Refused, with the reason and the fix."""
    with _errors_as_refusals("the table"):
        table = _read_parquet(content) if kind == PARQUET else _read_csv(decode(content), kind)
    if not table.names:
        raise Refused("the table has no columns: the first line of a CSV file names them")
    doubled = sorted({name for name in table.names if table.names.count(name) > 1})
    if doubled:
        raise Refused(f"the columns {', '.join(doubled)} are there more than once: rename them")
    return table


def _read_csv(text: str, kind: str) -> Table:
    import pandas as pd

    text = text.lstrip("\r\n")
    header = text.partition("\n")[0]
    separator = "\t" if kind == TSV else max(SEPARATORS, key=header.count)
    options: Any = {"sep": separator, "dtype": str, "keep_default_na": False, "na_values": [""]}
    if not text.strip():
        return Table(frame=pd.DataFrame(), is_typed=False, faults={})
    names = pd.read_csv(io.StringIO(text), header=None, nrows=1, **options).iloc[0].tolist()
    width = len(names)
    # One column more than there are names, under a header of our own. To a row with too many
    # fields pandas knows two answers: refuse the file, or leave the row out. This shows the row.
    columns = [str(number) for number in range(width + 1)]
    widened = io.StringIO(f"{separator.join(columns)}\n{text}")
    frame = pd.read_csv(widened, usecols=columns, index_col=False, **options)
    frame = frame.iloc[1:].dropna(how="all")
    reason = f"it has more fields than the {width} columns: quote a field that holds {separator!r}"
    faults = dict.fromkeys(frame.index[frame.iloc[:, width].notna()].tolist(), reason)
    if len(frame) == len(faults) > 1:
        raise Refused(f"each row has more fields than the {width} columns: name them all")
    named = [n for n, name in enumerate(names) if isinstance(name, str) and name.strip()]
    frame = frame.iloc[:, named]
    return Table(
        frame=frame.set_axis([str(names[n]).strip() for n in named], axis="columns"),
        is_typed=False,
        faults=faults,
    )


def _read_parquet(content: bytes) -> Table:
    import pandas as pd
    from pyarrow.parquet import ParquetFile

    footer = ParquetFile(io.BytesIO(content)).metadata
    size = sum(footer.row_group(n).total_byte_size for n in range(footer.num_row_groups))
    if size > PARQUET_BYTES_MAX or footer.num_rows > PARQUET_ROWS_MAX:
        raise Refused(
            f"the table has {footer.num_rows:,} rows and {size:,} bytes unpacked, the limits are"
            f" {PARQUET_ROWS_MAX:,} and {PARQUET_BYTES_MAX:,}: split it"
        )
    # Arrow's types, as NumPy's have no missing integer: 1999 would become 1999.0 beside one.
    frame = pd.read_parquet(io.BytesIO(content), dtype_backend="pyarrow")
    if any(name is not None for name in frame.index.names):
        frame = frame.reset_index()
    frame = frame.set_axis([str(name) for name in frame.columns], axis="columns")
    frame = frame.set_axis(range(1, len(frame) + 1), axis="index").dropna(how="all")
    return Table(frame=frame, is_typed=True, faults={})


@contextmanager
def _errors_as_refusals(what: str) -> Iterator[None]:
    """Of all that pandas and Arrow raise for a damaged file, nothing may fail the run, which would
    take along the other files of its batch."""
    try:
        yield
    except Refused:
        raise
    except Exception as error:
        detail = " ".join(str(error).split())[:300]
        raise Refused(f"{what} cannot be read ({detail}): correct it, or write it anew") from error


def _is_absent(cell: Any) -> bool:
    """NaN, an infinite number, or nothing but white space."""
    if isinstance(cell, str):
        return not cell.strip()
    return cell is None or (isinstance(cell, float | Decimal) and not math.isfinite(cell))


def _type_of(cells: Sequence[str]) -> Callable[[str], Any]:
    """What every one of these texts can be written as."""
    if all(map(_INTEGER.fullmatch, cells)):
        return int
    if all(map(_NUMBER.fullmatch, cells)):
        return float
    if all(map(_BOOLEAN.fullmatch, cells)):
        return lambda cell: cell.lower() == "true"
    return str


def _plain(cell: Any, name: str) -> Any:
    """A value of Arrow's as JSON has it: times in ISO 8601, decimals as numbers."""
    if isinstance(cell, list | tuple):
        return [_plain(part, name) for part in cell]
    if isinstance(cell, dict):
        return {str(key): _plain(part, name) for key, part in cell.items()}
    if _is_absent(cell):
        return None
    if isinstance(cell, str | bool | int | float):
        return cell
    if isinstance(cell, Decimal):
        return float(cell)
    if hasattr(cell, "isoformat"):  # a date, a time, a timestamp or a duration
        return cell.isoformat()
    if hasattr(cell, "item"):  # one of NumPy's numbers
        return _plain(cell.item(), name)
    raise Refused(f"column {name!r} holds {type(cell).__name__}, which JSON has not: leave it out")


def _text(cell: Any, name: str) -> str | None:
    if isinstance(cell, bytes):
        return decode(cell)
    value = _plain(cell, name)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list | dict):
        raise Refused(f"column {name!r} holds lists or objects: name a column of texts instead")
    # A column of whole numbers in which some were missing when it was written.
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
