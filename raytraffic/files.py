"""Files on a local disk or in S3 behind one small class; a file is either wholly written or not there."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from s3fs import S3FileSystem

__all__ = ["Location", "parquet_bytes"]

_TEMPORARY = ".tmp-"


def parquet_bytes(table: pa.Table, *, row_group_rows: int | None = None, byte_split: Sequence[str] = ()) -> bytes:
    """A table as a zstd Parquet file; the float leaves named in `byte_split` are stored byte by byte, the others by dictionary."""
    sink = pa.BufferOutputStream()
    leaves = pq.ParquetFile(_footer_only(table)).schema
    dictionary = [leaves.column(i).path for i in range(len(leaves)) if leaves.column(i).path not in byte_split]
    pq.write_table(
        table,
        sink,
        compression="zstd",
        compression_level=3,
        row_group_size=row_group_rows,
        use_dictionary=dictionary,
        use_byte_stream_split=list(byte_split),
        write_statistics=False,
    )
    return bytes(sink.getvalue())


@dataclass(frozen=True, order=True)
class Location:
    """A file or folder: `path` is an absolute local path (`scheme` "file") or bucket/key (`scheme` "s3").

    S3 is reached through the usual AWS_* variables (AWS_ENDPOINT_URL included). Nothing is opened until it is used,
    so a Location can be sent to another process.
    """

    scheme: str
    path: str

    @classmethod
    def of(cls, path: str | Path | Location) -> Location:
        """The location a path or s3:// URL names; ValueError for any other scheme or an S3 URL without a bucket."""
        if isinstance(path, Location):
            return path
        text = str(path)
        if text.startswith("s3://"):
            key = text.removeprefix("s3://").strip("/")
            if not key:
                raise ValueError(f"path: {text!r} names no bucket, expected s3://bucket/key")
            return cls("s3", key)
        if "://" in text and not text.startswith("file://"):
            raise ValueError(f"path: {text!r}, expected a local path or an s3:// URL")
        return cls("file", os.path.abspath(os.path.expanduser(text.removeprefix("file://"))))

    def __str__(self) -> str:
        return f"s3://{self.path}" if self.scheme == "s3" else self.path

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rsplit("/", 1)[-1]

    def child(self, *parts: str) -> Location:
        """A location below this one; ValueError if a part is empty or leads out of it."""
        names = [name for part in parts for name in part.split("/")]
        if any(name in ("", ".", "..") for name in names):
            raise ValueError(f"{self}: part {'/'.join(parts)!r}, expected a relative path below it")
        return Location(self.scheme, "/".join([self.path.rstrip("/"), *names]))

    def exists(self) -> bool:
        """Whether a file or a folder is there."""
        return bool(self.filesystem().get_file_info(self.path).type != pafs.FileType.NotFound)

    def list(self) -> list[Location]:
        """What lies directly in this folder, sorted; empty when there is no such folder."""
        found = self.filesystem().get_file_info(pafs.FileSelector(self.path, allow_not_found=True))
        names = {info.path.rstrip("/").rsplit("/", 1)[-1] for info in found if info.path.rstrip("/") != self.path}
        return [self.child(name) for name in sorted(names) if not name.startswith(_TEMPORARY)]

    def delete(self) -> None:
        """Remove this file, or this folder with all in it; nothing happens when it is absent."""
        if self.scheme == "s3":
            if self.exists():
                _s3().rm(self.path, recursive=True)
        elif os.path.isdir(self.path):
            shutil.rmtree(self.path)
        else:
            Path(self.path).unlink(missing_ok=True)

    def read_bytes(self) -> bytes:
        """The file's content; FileNotFoundError when absent."""
        with self.filesystem().open_input_stream(self.path) as stream:
            return bytes(stream.read())

    def open_stream(self) -> BinaryIO:
        """The file from its beginning, decompressed where its name ends with .gz; FileNotFoundError when absent."""
        return io.BufferedReader(self.filesystem().open_input_stream(self.path))  # type: ignore[arg-type]  # a NativeFile is a raw stream

    def open_file(self) -> BinaryIO:
        """The file, to be read at any place; FileNotFoundError when absent."""
        return io.BufferedReader(self.filesystem().open_input_file(self.path))  # type: ignore[arg-type]  # as above

    def is_folder(self) -> bool:
        """Whether a folder is there."""
        return bool(self.filesystem().get_file_info(self.path).type == pafs.FileType.Directory)

    def write_bytes(self, data: bytes) -> None:
        """Write the file in one piece: a reader sees the old content or the new one, never a part."""
        if self.scheme == "s3":
            _s3().pipe_file(self.path, data)
            return
        folder = os.path.dirname(self.path)
        os.makedirs(folder, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=_TEMPORARY, dir=folder)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, self.path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def read_table(
        self, columns: Sequence[str] | None = None, row_groups: Sequence[int] | None = None, metadata: pq.FileMetaData | None = None
    ) -> pa.Table:
        """A Parquet file (or some of its columns and row groups); ValueError naming the file when it is truncated or corrupt."""
        with self._parquet(metadata) as file:
            groups = range(file.metadata.num_row_groups) if row_groups is None else row_groups
            return file.read_row_groups(list(groups), columns=None if columns is None else list(columns))

    def read_metadata(self) -> pq.FileMetaData:
        """A Parquet file's footer; ValueError naming the file when it is truncated or corrupt."""
        with self._parquet(None) as file:
            return file.metadata

    def write_table(self, table: pa.Table) -> None:
        """Write a table as a zstd Parquet file in one piece."""
        self.write_bytes(parquet_bytes(table))

    @contextmanager
    def _parquet(self, metadata: pq.FileMetaData | None) -> Iterator[pq.ParquetFile]:
        try:
            with (
                self.filesystem().open_input_file(self.path) as stream,
                pq.ParquetFile(stream, metadata=metadata, pre_buffer=True) as file,
            ):
                yield file
        except FileNotFoundError as error:
            raise ValueError(f"{self}: no such file, expected a Parquet file") from error
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{self}: truncated or corrupt ({error}), expected a whole Parquet file") from error

    def filesystem(self) -> pafs.FileSystem:
        """The Arrow filesystem that `path` is a path of."""
        return pafs.PyFileSystem(pafs.FSSpecHandler(_s3())) if self.scheme == "s3" else pafs.LocalFileSystem()


def _s3() -> S3FileSystem:
    """fsspec's own instance cache makes this cheap and safe after a fork; listings are not cached, so `exists` is never stale."""
    return S3FileSystem(
        endpoint_url=os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"),
        use_listings_cache=False,
        default_cache_type="none",  # Parquet asks for exact ranges; read-ahead would fetch megabytes around each
    )


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _footer_only(table: pa.Table) -> pa.BufferReader:
    """A file without rows, which is how the names of a table's leaf columns are learnt."""
    sink = pa.BufferOutputStream()
    pq.write_table(table.slice(0, 0), sink)
    return pa.BufferReader(sink.getvalue())
