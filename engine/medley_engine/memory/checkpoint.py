"""Read safetensors checkpoints straight into mapped pages: no torch, no copy in between where the types agree.

The format: eight bytes of header length, a JSON header {name: {dtype, shape, data_offsets}}, then the tensors' bytes.
A checkpoint is one such file or several with ``model.safetensors.index.json``.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medley_engine.layout import Item, Piece

_NUMPY: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}
_TARGET: dict[str, np.dtype[Any]] = {
    "float64": np.dtype("<f8"),
    "float32": np.dtype("<f4"),
    "bfloat16": np.dtype("<u2"),
}
_SAME = {("F64", "float64"), ("F32", "float32"), ("BF16", "bfloat16")}
_MAX_HEADER_BYTES = 100 * 1024 * 1024


class CheckpointError(ValueError):
    """The checkpoint is not what its header or the model's configuration says; the message names file and tensor."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where one tensor lies on disk."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int


def _read_header(path: Path) -> dict[str, TensorEntry]:
    with path.open("rb") as file:
        head = file.read(8)
        if len(head) < 8:
            raise CheckpointError(f"{path.name}: too short for a safetensors file")
        (length,) = struct.unpack("<Q", head)
        if length > min(_MAX_HEADER_BYTES, path.stat().st_size - 8):
            raise CheckpointError(f"{path.name}: header of {length} bytes does not fit the file")
        header = json.loads(file.read(length))
    start, end = 8 + length, path.stat().st_size
    entries = {}
    for name, raw in header.items():
        if name == "__metadata__":
            continue
        first, last = raw["data_offsets"]
        if not 0 <= first <= last <= end - start:
            raise CheckpointError(f"{path.name}: {name} lies outside the file")
        entries[name] = TensorEntry(path, raw["dtype"], tuple(raw["shape"]), start + first, last - first)
    return entries


class Checkpoint:
    """A folder with ``config.json`` and safetensors files. ``bytes_read`` counts what was read from them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.raw_config: Mapping[str, Any] = json.loads((folder / "config.json").read_text())
        index = folder / "model.safetensors.index.json"
        if index.exists():
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            files = [folder / Path(name).name for name in names]
        else:
            files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise CheckpointError(f"{folder.name}: no safetensors file")
        self.tensors: dict[str, TensorEntry] = {}
        for file in files:
            self.tensors.update(_read_header(file))
        self.bytes_read = 0
        self._fds: dict[Path, int] = {}

    def close(self) -> None:
        """Close the files."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()

    def read_item(self, item: Item, dtype: str, target: memoryview) -> None:
        """Fill an item's pages, converting the numeric type where the checkpoint has another one.

        Args:
            item: what to read.
            dtype: type of the elements in memory.
            target: writable bytes, at least ``item.size_bytes`` of them.
        """
        width = _TARGET[dtype].itemsize
        for piece in item.pieces:
            size = piece.elements * width
            self._read_piece(piece, dtype, target[piece.offset_bytes : piece.offset_bytes + size])

    def _entry(self, piece: Piece) -> TensorEntry:
        entry = self.tensors.get(piece.tensor)
        if entry is None:
            raise CheckpointError(f"{self.folder.name}: tensor {piece.tensor} is missing")
        whole = tuple(s * (piece.shards if d == piece.split_dim else 1) for d, s in enumerate(piece.shape))
        if entry.shape != whole:
            raise CheckpointError(f"{piece.tensor}: shape {list(entry.shape)} on disk, {list(whole)} by config.json")
        if entry.dtype not in _NUMPY:
            raise CheckpointError(f"{piece.tensor}: type {entry.dtype} is not supported")
        return entry

    def _read_piece(self, piece: Piece, dtype: str, target: memoryview) -> None:
        entry = self._entry(piece)
        rows = piece.split_dim in (None, 0)
        if rows and (entry.dtype, dtype) in _SAME:
            size = entry.size_bytes // piece.shards if piece.split_dim == 0 else entry.size_bytes
            self._read_into(entry, entry.offset + (piece.shard * size if piece.split_dim == 0 else 0), target)
            return
        source = np.memmap(entry.file, _NUMPY[entry.dtype], "r", entry.offset, entry.shape)
        if piece.split_dim is not None:
            size = piece.shape[piece.split_dim]
            cut = [slice(None)] * len(entry.shape)
            cut[piece.split_dim] = slice(piece.shard * size, (piece.shard + 1) * size)
            source = source[tuple(cut)]  # type: ignore[assignment]
        self.bytes_read += source.nbytes
        out = np.frombuffer(target, _TARGET[dtype]).reshape(piece.shape)
        out[...] = _convert(np.asarray(source), entry.dtype, dtype)

    def _read_into(self, entry: TensorEntry, offset: int, target: memoryview) -> None:
        if entry.file not in self._fds:
            self._fds[entry.file] = os.open(entry.file, os.O_RDONLY | os.O_CLOEXEC)
        done = 0
        while done < len(target):
            got = os.preadv(self._fds[entry.file], [target[done:]], offset + done)
            if got == 0:
                raise CheckpointError(f"{entry.file.name}: ended early")
            done += got
        self.bytes_read += done


def _convert(values: np.ndarray[Any, Any], source: str, target: str) -> np.ndarray[Any, Any]:
    """Change the numeric type; bfloat16 is the upper half of a float32, rounded to nearest even."""
    if source == "BF16":
        if target == "bfloat16":
            return values
        values = (values.astype(np.uint32) << 16).view(np.float32)
    if target != "bfloat16":
        return values.astype(_TARGET[target], copy=False)
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
