"""Kernel matrices larger than memory: tiles on disk, computed on all devices and hosts, and gone on with after a kill.

A folder holds `config.json` (what the kernel is of) and two zarr arrays: `kernel`, one chunk per tile with its
checksum, and `finished`, one entry per tile, set when the tile is on disk. Of a symmetric kernel only the tiles on and
above the diagonal are computed and stored.
"""

import json
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Float
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from threadpoolctl import threadpool_limits

from jaxinterp.errors import ConfigError, DataError
from jaxinterp.files import write_text

Block = Callable[[slice, slice], Float[Array | np.ndarray, "_ _"]]
Shares = Future[list[tuple[slice, np.ndarray]]]  # rows of a product, and what a tile adds to them
FORMAT = 2  # of the folder


class Tiles:
    """A kernel matrix on disk, K(x_i, x'_j), read and multiplied tile by tile."""

    def __init__(
        self,
        folder: str | Path,
        shape: tuple[int, int],
        *,
        tile: int = 2048,
        symmetric: bool = False,
        identity: Mapping[str, Any] | None = None,
        keep: int = 0,
    ) -> None:
        """Open the tiles of a folder, or make an empty one.

        Args:
            folder: where they are.
            shape: rows and columns of the matrix, Python integers.
            tile: rows and columns of a tile.
            symmetric: the matrix is; only half of it is computed and stored.
            identity: JSON values that tell this kernel from others, such as architecture, data set and seeds; a
                folder of another one is refused.
            keep: bytes of tiles that products leave in memory once they have read them; reading and checking a tile
                takes longer than multiplying with it.

        Raises:
            ConfigError: a size that is not a positive integer, a symmetric matrix that is not square, or a folder that
                holds another kernel, or tiles and nothing that says of what.
            DataError: the folder's arrays are damaged, or cannot be made.
        """
        if not all(isinstance(size, int) and size > 0 for size in (*shape, tile)):
            raise ConfigError(f"shape, tile: got {shape}, {tile}, expected positive integers")
        if symmetric and shape[0] != shape[1]:
            raise ConfigError(f"shape: got {shape}, expected a square for a symmetric kernel")
        self.folder, self.shape, self.tile, self.symmetric = Path(folder), shape, tile, symmetric
        self._whole = False  # once seen
        self._room, self._held = keep // (4 * tile**2), dict[tuple[int, int], np.ndarray]()
        self.counts = tuple(math.ceil(size / tile) for size in shape)
        config = {
            "format": FORMAT,
            "shape": list(shape),
            "tile": tile,
            "symmetric": symmetric,
            "identity": dict(identity or {}),
        }
        config = json.loads(json.dumps(config))
        path = self.folder / "config.json"
        begun = (self.folder / "kernel").exists()  # looked at first: another host may be writing both
        if path.exists():
            try:
                held = json.loads(path.read_text(encoding="utf-8"))
                differing = _differences(held, config)
                if differing and differing[0][0] == "identity":
                    differing = _differences(held["identity"], config["identity"])
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise ConfigError(f"{path}: not the description of a kernel ({error})") from error
            if differing:
                name, had, asked = differing[0]
                raise ConfigError(
                    f"{self.folder} holds another kernel: {name} is {had}, expected {asked}; remove it, or use another"
                )
        elif begun:
            raise ConfigError(f"{self.folder} holds tiles, but no config.json that says of what; use another folder")
        elif jax.process_index() == 0:
            write_text(path, json.dumps(config, indent=2) + "\n")
        if jax.process_count() > 1:  # no tiles before what says of what they are
            multihost_utils.sync_global_devices("jaxinterp.gated.kernels.tiles.config")
        # What was never written, or was lost, reads as the fill value.
        self._kernel = self._open("kernel", "float32", shape, (tile, tile), "NaN")
        self._finished = self._open("finished", "uint8", self.counts, (1, 1), 0)

    def _open(self, name: str, dtype: str, shape: tuple[int, ...], chunks: tuple[int, int], fill: Any) -> Any:
        import tensorstore as ts

        path = (self.folder / name).absolute()
        metadata = {
            "data_type": dtype,
            "shape": list(shape),
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunks)}},
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
            "fill_value": fill,
        }
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}, "metadata": metadata}
        try:
            return ts.open(spec, open=True, create=True).result()
        except (ValueError, OSError) as error:
            raise DataError(f"{path} cannot be opened as tiles: {_first_words(error)}") from error

    def _slices(self, i: int, j: int) -> tuple[slice, slice]:
        return tuple(  # type: ignore[return-value]
            slice(k * self.tile, min((k + 1) * self.tile, size)) for k, size in zip((i, j), self.shape, strict=True)
        )

    def wanted(self) -> Iterator[tuple[int, int]]:
        """Indices of all tiles; of a symmetric matrix those on and above the diagonal."""
        for i in range(self.counts[0]):
            yield from ((i, j) for j in range(i if self.symmetric else 0, self.counts[1]))

    def open_tiles(self) -> list[tuple[int, int]]:
        """Indices of the tiles that are not finished.

        Raises:
            DataError: the list of finished tiles is damaged.
        """
        finished = self._read(self._finished, "the list of finished tiles")
        return [(i, j) for i, j in self.wanted() if not finished[i, j]]

    def compute(self, block: Block, *, show: bool = True) -> int:
        """Compute what is not there yet; a run that was killed loses no more than its open tiles.

        Tiles are dealt out to hosts, and on each host to its devices, one tile ahead of each; every tile is on disk
        before it counts as finished. Hosts share the folder, and wait for one another at the end.

        Args:
            block: (rows, columns) ↦ that part of the matrix, float32; called on the tile's device.
            show: progress and remaining time on the terminal.

        Returns:
            How many tiles this process computed.

        Raises:
            DataError: a tile is not finite or has another shape, or it could not be written, for a full disk say;
                finished tiles are kept.
        """
        # Dealt out of all tiles, not of the open ones: those may change while another host looks at them.
        dealt, unfinished = list(self.wanted())[jax.process_index() :: jax.process_count()], set(self.open_tiles())
        mine = [tile for tile in dealt if tile in unfinished]
        devices, under_way = jax.local_devices(), deque[tuple[int, int, Any]]()
        columns = TextColumn("tiles"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, disable=not show) as bar:
            task = bar.add_task("", total=len(mine))
            for count, (i, j) in enumerate(mine):
                with jax.default_device(devices[count % len(devices)]):
                    under_way.append((i, j, block(*self._slices(i, j))))
                if len(under_way) > len(devices):
                    self._keep(*under_way.popleft())
                    bar.advance(task)
            for open_tile in under_way:
                self._keep(*open_tile)
                bar.advance(task)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("jaxinterp.gated.kernels.tiles")
        return len(mine)

    def _keep(self, i: int, j: int, values: Any) -> None:
        rows, columns = self._slices(i, j)
        found, shape = np.asarray(values), (rows.stop - rows.start, columns.stop - columns.start)
        if found.shape != shape or not jnp.issubdtype(found.dtype, jnp.floating):
            raise DataError(f"tile ({i}, {j}): got {found.dtype}{found.shape}, expected floating {shape}")
        with np.errstate(over="ignore"):
            tile = found.astype(np.float32)
        if not np.isfinite(tile).all():
            raise DataError(f"tile ({i}, {j}): expected finite float32 values, got NaN or infinity")
        try:
            self._kernel[rows, columns].write(tile).result()
            self._finished[i, j].write(np.uint8(1)).result()
        except (ValueError, OSError) as error:
            raise DataError(f"tile ({i}, {j}) could not be written to {self.folder}: {_first_words(error)}") from error

    def _read(self, stored: Any, name: str) -> np.ndarray:
        try:
            return np.asarray(stored.read().result())
        except (ValueError, OSError) as error:
            raise DataError(f"{self.folder}: {name} is damaged: {_first_words(error)}") from error

    def _tile(self, i: int, j: int) -> Float[np.ndarray, "_ _"]:
        tile = self._read(self._kernel[self._slices(i, j)], f"tile ({i}, {j})")
        if np.isnan(tile[0, 0]):
            raise DataError(f"{self.folder}: tile ({i}, {j}) is lost; remove the folder, and compute it again")
        return tile

    def __getitem__(self, index: tuple[int, int]) -> Float[np.ndarray, "_ _"]:
        """The finished tile (i, j), also below the diagonal of a symmetric matrix.

        Raises:
            DataError: it is not finished, damaged or lost.
            IndexError: there is no such tile.
        """
        i, j = index
        if not (0 <= i < self.counts[0] and 0 <= j < self.counts[1]):
            raise IndexError(f"index: got {index}, expected less than {self.counts}")
        mirrored = self.symmetric and i > j
        if mirrored:
            i, j = j, i
        if not self._read(self._finished[i, j], "the list of finished tiles"):
            raise DataError(f"{self.folder}: tile ({i}, {j}) is not finished")
        tile = self._tile(i, j)
        return tile.T if mirrored else tile

    def read(self) -> Float[np.ndarray, "rows columns"]:
        """The whole matrix, in memory."""
        return np.block([[self[i, j] for j in range(self.counts[1])] for i in range(self.counts[0])])

    def product(self, y: Float[np.ndarray, "columns k"]) -> Float[np.ndarray, "rows k"]:
        """K y, with every stored tile used once, as many at a time as there are cores; sums are in y's type.

        Raises:
            DataError: a tile is not finished, damaged or lost.
            ValueError: y is not (columns, k) of a floating type.
        """
        if y.shape[:1] != self.shape[1:] or y.ndim != 2 or not np.issubdtype(y.dtype, np.floating):
            raise ValueError(f"y: got {y.dtype}{y.shape}, expected floating ({self.shape[1]}, k)")
        if not self._whole and (missing := self.open_tiles()):
            raise DataError(f"{self.folder}: tile {missing[0]} is not finished")
        self._whole = True
        found = np.zeros((self.shape[0], y.shape[1]), y.dtype)

        def share(i: int, j: int, held: bool) -> list[tuple[slice, np.ndarray]]:
            rows, columns = self._slices(i, j)
            tile = self._held[i, j] if (i, j) in self._held else self._tile(i, j)
            if held:
                self._held[i, j] = tile
            parts = [(rows, tile @ y[columns])]
            return parts + ([(columns, tile.T @ y[rows])] if self.symmetric and i != j else [])

        def add(shares: Shares) -> None:
            for rows, part in shares.result():
                found[rows] += part

        # One core a tile: a product with few columns is too short to be worth sharing.
        cores, under_way = os.cpu_count() or 1, deque[Shares]()
        with threadpool_limits(1), ThreadPoolExecutor(cores) as pool:
            for number, index in enumerate(self.wanted()):
                under_way.append(pool.submit(share, *index, number < self._room))
                if len(under_way) > 2 * cores:
                    add(under_way.popleft())
            for shares in under_way:
                add(shares)
        return found


def _differences(held: Mapping[str, Any], asked: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Name, value held and value asked for, wherever two descriptions differ."""
    pairs = [(name, held.get(name, "absent"), asked.get(name, "absent")) for name in {**asked, **held}]
    return [(name, had, wanted) for name, had, wanted in pairs if had != wanted]


def _first_words(error: Exception) -> str:
    """What a library says, without the description of its arrays that follows."""
    return str(error).splitlines()[0].split(" [tensorstore_spec=")[0].split(" [source locations=")[0]
