"""The embedding store: the vectors of sites' images and texts in Parquet, found by content, and an index from site to content.

    store.json                 the encoder's content address and the vectors' dimension: a store is of one encoder
    shards/<address>.parquet   key, image, text: vectors (d,) float32; named by the keys they hold, each written once and in one piece
    sites.parquet              site, key, shard, request: which content a site has, and what was asked for when it was looked at

A key is the SHA-256 of the encoder's content address, the image's pixels and the text: equal content is embedded once, however many sites
show it, whatever they are called. Both vectors are kept, so that their fusion (LSDM, Eq. 9) is chosen by the reader.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raytraffic.environment.tiles import RgbImage
from raytraffic.files import Location, parquet_bytes

__all__ = ["EmbeddingStore", "Entry", "content_key"]

Vectors = NDArray[np.float32]

_FACTS, _SITES, _SHARDS = "store.json", "sites.parquet", "shards"
_INDEX = pa.schema([(name, pa.string()) for name in ("site", "key", "shard", "request")])
_READERS = 16


def content_key(encoder: str, image: RgbImage, text: str) -> str:
    """The key of an image (h, w, 3) and a text under an encoder's content address."""
    digest = hashlib.sha256(json.dumps([encoder, image.shape, text]).encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A site's row of the index."""

    key: str
    shard: str
    request: str


@dataclass(frozen=True)
class EmbeddingStore:
    """An open store; it can be sent to another process. One process at a time may call `record`."""

    location: Location
    encoder: str
    dimension: int

    @classmethod
    def create(cls, location: Location, encoder: str, dimension: int) -> EmbeddingStore:
        """A new store, or the one of this encoder that is there; ValueError where it is of another."""
        if location.child(_FACTS).exists():
            store = cls.open(location)
            if store.encoder != encoder:
                found = f"encoder {store.encoder[:16]}"
                raise ValueError(f"{location}: its vectors are of {found}, expected {encoder[:16]}; give another folder")
            return store
        facts = {"encoder": encoder, "dimension": dimension}
        location.child(_FACTS).write_bytes((json.dumps(facts, indent=1) + "\n").encode())
        return cls(location, encoder, dimension)

    @classmethod
    def open(cls, location: Location | str) -> EmbeddingStore:
        """The store in a folder or under an s3:// URL; ValueError where there is none."""
        location = Location.of(location)
        try:
            facts = json.loads(location.child(_FACTS).read_bytes())
            return cls(location, str(facts["encoder"]), int(facts["dimension"]))
        except FileNotFoundError:
            raise ValueError(f"{location}: no {_FACTS}, expected an embedding store") from None
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{location.child(_FACTS)}: {error}, expected the facts of an embedding store") from None

    def keys(self) -> dict[str, str]:
        """All content there is: the shard of each key. A shard that is damaged counts as not there, and is made again when it is missed."""
        files = self.location.child(_SHARDS).list()
        with ThreadPoolExecutor(_READERS) as pool:
            found = list(pool.map(_keys_of, files))
        return {key: file.name for file, keys in zip(reversed(files), reversed(found), strict=True) for key in keys}

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Those of the keys that are not there, each once, in their order."""
        known = self.keys()
        return [key for key in dict.fromkeys(keys) if key not in known]

    def write(self, keys: Sequence[str], images: Vectors, texts: Vectors) -> str:
        """Writes the vectors (n, d) of n keys, all different, as a shard, and returns its name: the same keys have the same one."""
        assert len(set(keys)) == len(keys) > 0 and images.shape == texts.shape == (len(keys), self.dimension)
        table = pa.table({"key": pa.array(keys, pa.string()), "image": self._column(images), "text": self._column(texts)})
        name = f"{hashlib.sha256(json.dumps(list(keys)).encode()).hexdigest()[:32]}.parquet"
        split = [f"{column}.list.element" for column in ("image", "text")]
        self.location.child(_SHARDS, name).write_bytes(parquet_bytes(table, byte_split=split))
        return name

    def index(self) -> dict[str, Entry]:
        """The sites there are."""
        file = self.location.child(_SITES)
        if not file.exists():
            return {}
        columns = file.read_table().to_pydict()
        rows = zip(columns["site"], columns["key"], columns["shard"], columns["request"], strict=True)
        return {site: Entry(key=key, shard=shard, request=request) for site, key, shard, request in rows}

    def record(self, entries: Mapping[str, Entry], without: Iterable[str] = ()) -> None:
        """Adds sites to the index or replaces them, and drops those `without` content; a reader sees all of it or nothing."""
        gone = set(without)
        rows = sorted((item for item in {**self.index(), **entries}.items() if item[0] not in gone), key=lambda item: item[0])
        columns = [
            [site for site, _ in rows],
            [entry.key for _, entry in rows],
            [entry.shard for _, entry in rows],
            [entry.request for _, entry in rows],
        ]
        self.location.child(_SITES).write_table(pa.table(columns, schema=_INDEX))

    def read(self, sites: Sequence[str], alpha: float = 0.5, beta: float = 0.5) -> Vectors:
        """(n, d) alpha z_I + beta z_T of sites (LSDM, Eq. 9); ValueError naming those that have none, or a shard that is damaged."""
        images, texts = self.read_both(sites)
        return np.float32(alpha) * images + np.float32(beta) * texts

    def read_both(self, sites: Sequence[str]) -> tuple[Vectors, Vectors]:
        """(n, d) the vectors of the sites' images and (n, d) those of their texts; ValueError as of `read`."""
        index = self.index()
        absent = [site for site in dict.fromkeys(sites) if site not in index]
        if absent:
            named = ", ".join(absent[:5]) + (f" and {len(absent) - 5} more" if len(absent) > 5 else "")
            raise ValueError(f"{self.location}: no embedding of {named}, expected one of every site; embed them first")
        wanted: dict[str, list[int]] = {}
        for i, site in enumerate(sites):
            wanted.setdefault(index[site].shard, []).append(i)
        images, texts = (np.empty((len(sites), self.dimension), dtype=np.float32) for _ in range(2))

        def fill(shard: str) -> None:
            table = self._shard(shard)
            row = {key: number for number, key in enumerate(table.column("key").to_pylist())}
            at = wanted[shard]
            rows = [row[index[sites[i]].key] for i in at]
            images[at], texts[at] = self._array(table, "image")[rows], self._array(table, "text")[rows]

        with ThreadPoolExecutor(_READERS) as pool:
            list(pool.map(fill, sorted(wanted)))
        return images, texts

    def _shard(self, name: str) -> pa.Table:
        try:
            return self.location.child(_SHARDS, name).read_table()
        except ValueError as error:
            raise ValueError(f"{error}; delete it and embed with --refetch") from None

    def _column(self, vectors: Vectors) -> pa.Array:
        flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1))
        return pa.FixedSizeListArray.from_arrays(flat, self.dimension)

    def _array(self, table: pa.Table, column: str) -> Vectors:
        values: Vectors = table.column(column).combine_chunks().flatten().to_numpy()
        return values.reshape(-1, self.dimension)


def _keys_of(file: Location) -> list[str]:
    try:
        keys: list[str] = file.read_table(["key"]).column("key").to_pylist()
    except ValueError:
        return []
    return keys
