"""Large delimited text files with or without a header, read in chunks: columns by name or number, and bad rows by their number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
from numpy.typing import NDArray

from raytraffic.files import Location

__all__ = ["Chunk", "Column", "Layout", "read_chunks"]

#: A column: its name in the header, or its number, from 1.
Column = int | str
#: Bytes of text that are parsed together.
CHUNK_BYTES = 4 << 20


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A text file: its name in a folder, what stands between its columns, and whether its first row names them."""

    file: str
    delimiter: str = "\t"
    header: bool = False

    def __post_init__(self) -> None:
        if not self.file:
            raise ValueError("file: '', expected the name of a file in the folder")
        if len(self.delimiter) != 1:
            raise ValueError(f"delimiter of {self.file!r}: {self.delimiter!r}, expected one character")

    def check(self, *columns: Column) -> None:
        """ValueError for a column that is named where there is no header, or numbered from less than 1."""
        for column in columns:
            if isinstance(column, int) and column < 1:
                raise ValueError(f"column of {self.file!r}: {column}, expected a number from 1 on")
            if isinstance(column, str) and not self.header:
                raise ValueError(f"column of {self.file!r}: {column!r}, expected a number, as the file has no header")


class Chunk:
    """Some rows (n,) of a file, as text by column; `first` is the number of the first, counted from 1 without the header."""

    def __init__(self, file: Location, first: int, texts: Mapping[Column, pa.Array]) -> None:
        self.file, self.first, self._texts = file, first, texts

    def __len__(self) -> int:
        return len(next(iter(self._texts.values())))

    def refuse(self, bad: NDArray[np.bool_], column: Column, expected: str) -> None:
        """ValueError for the first of the bad rows (n,), if any, that names file, row, column and value."""
        if bad.any():
            row = int(bad.argmax())
            value = self._texts[column][row].as_py()
            raise ValueError(f"{self.file}: row {self.first + row}, column {column!r}: {value!r}, expected {expected}")

    def coded(self, column: Column) -> tuple[NDArray[np.int64], list[str]]:
        """(n,) index of each text into the distinct ones; an empty one is refused."""
        encoded = self._texts[column].dictionary_encode()
        distinct = [text.strip() for text in encoded.dictionary.to_pylist()]
        codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        self.refuse(np.array([not text for text in distinct])[codes], column, "a value")
        return codes, distinct

    def whole(self, column: Column) -> NDArray[np.int64]:
        """(n,) whole numbers."""
        return np.asarray(self._numbers(column, pa.int64(), "a whole number"), dtype=np.int64)

    def amounts(self, column: Column) -> NDArray[np.float64]:
        """(n,) finite numbers of at least 0."""
        values = np.asarray(self._numbers(column, pa.float64(), "a number >= 0"), dtype=np.float64)
        self.refuse(~np.isfinite(values) | (values < 0), column, "a number >= 0")
        return values

    def _numbers(self, column: Column, kind: pa.DataType, expected: str) -> NDArray[np.generic]:
        texts = pc.utf8_trim_whitespace(self._texts[column])
        try:
            return np.asarray(texts.cast(kind).to_numpy(zero_copy_only=False))
        except pa.ArrowInvalid:
            self.refuse(np.array([not _casts(text, kind) for text in texts]), column, expected)
            raise  # a column of which every text is a number casts


def _casts(text: pa.Scalar, kind: pa.DataType) -> bool:
    try:
        text.cast(kind)
    except pa.ArrowInvalid:
        return False
    return True


def read_chunks(folder: Location, layout: Layout, columns: Sequence[Column]) -> Iterator[Chunk]:
    """The rows of these columns, some megabytes at a time; ValueError names the file and what is wrong with it.

    An empty file, a column that is not there, a row with more or fewer columns than the first and text that is not UTF-8 are refused.
    """
    file = folder.child(layout.file)
    first = 1
    try:
        names = _names(file, layout)
        chosen = {column: _name(file, column, names) for column in columns}
        with file.open_stream() as stream:
            reader = pa_csv.open_csv(
                stream,
                read_options=pa_csv.ReadOptions(
                    block_size=CHUNK_BYTES, use_threads=False, column_names=names, skip_rows=1 if layout.header else 0
                ),
                parse_options=pa_csv.ParseOptions(delimiter=layout.delimiter, quote_char=False),
                convert_options=pa_csv.ConvertOptions(
                    column_types=dict.fromkeys(chosen.values(), pa.string()), include_columns=sorted(set(chosen.values()))
                ),
            )
            for batch in reader:
                if len(batch):
                    yield Chunk(file, first, {column: batch.column(name) for column, name in chosen.items()})
                    first += len(batch)
    except FileNotFoundError as error:
        raise ValueError(f"{file}: no such file, expected a table of text") from error
    except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: cannot be read, expected a whole table with {layout.delimiter!r} between columns ({error})") from error
    if first == 1:
        raise ValueError(f"{file}: 0 rows, expected at least one")


def _names(file: Location, layout: Layout) -> list[str]:
    """The names in the header, or the columns' numbers where there is none."""
    with file.open_stream() as stream:
        cells = stream.readline().decode("utf-8-sig").rstrip("\r\n").split(layout.delimiter)
    if cells == [""]:
        raise ValueError(f"{file}: 0 rows, expected at least one")
    names = [cell.strip() for cell in cells] if layout.header else [str(number) for number in range(1, len(cells) + 1)]
    if len(set(names)) < len(names):
        raise ValueError(f"{file}: header {names}, expected every name once")
    return names


def _name(file: Location, column: Column, names: Sequence[str]) -> str:
    if isinstance(column, int) and column <= len(names):
        return names[column - 1]
    if column in names:
        return str(column)
    raise ValueError(f"{file}: no column {column!r}, expected it (it has {list(names)})")
