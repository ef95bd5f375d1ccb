"""Kernel matrices larger than memory: tiles on disk, computed on all devices and hosts, resumed after a kill.

A folder contains `config.json` (shape and identity of the kernel) and two zarr arrays: `kernel`, one chunk per tile
with its checksum, and `finished`, one entry per tile, set once the tile is on disk. Of a symmetric kernel only the
tiles on and above the diagonal are computed and stored.
"""

import json
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Float
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from threadpoolctl import threadpool_limits

from jaxinterp.checks import require
from jaxinterp.errors import ConfigError, DataError
from jaxinterp.files import write_text

Block = Callable[[slice, slice], Float[Array | np.ndarray, "_ _"]]
Terms = list[tuple[slice, np.ndarray]]  # rows of a product, and a tile's contribution to them
FORMAT = 2  # of the folder


class Tiles:
    """A kernel matrix on disk, K(x_i, x'_j), read and multiplied tile by tile."""

    def __init__(
        self,
        folder: str | Path,
        shape: tuple[int, int],
        *,
        tile_size: int = 2048,
        symmetric: bool = False,
        identity: Mapping[str, Any] | None = None,
        cache_bytes: int = 0,
    ) -> None:
        """Open the tiles of a folder, or create it.

        Args:
            folder: path.
            shape: rows and columns of the matrix.
            tile_size: rows and columns of a tile.
            symmetric: compute and store only half of a symmetric matrix.
            identity: JSON values that distinguish this kernel from others, such as architecture, data set and seeds.
            cache_bytes: memory for tiles that `product` has read, since reading one takes longer than multiplying.

        Raises:
            ConfigError: the folder is of another or of an unknown kernel.
            DataError: the folder's arrays are damaged, or cannot be created.
        """
        sizes = (*shape, tile_size)
        positive = all(isinstance(size, int) and size > 0 for size in sizes)
        require(positive, "shape, tile_size", sizes, "positive integers")
        require(not symmetric or shape[0] == shape[1], "shape", shape, "a square for a symmetric kernel")
        self.folder, self.shape, self.tile_size, self.symmetric = Path(folder), shape, tile_size, symmetric
        self.counts = tuple(math.ceil(size / tile_size) for size in shape)
        self._complete = False  # once seen to be
        self._cache_tiles, self._cache = cache_bytes // (4 * tile_size**2), dict[tuple[int, int], np.ndarray]()
        kind = {"format": FORMAT, "shape": shape, "tile": tile_size, "symmetric": symmetric}
        self._check_config(json.loads(json.dumps({**kind, "identity": dict(identity or {})})))
        # Entries never written, or lost, read as the fill value.
        self._kernel = self._open("kernel", "float32", shape, (tile_size, tile_size), "NaN")
        self._finished = self._open("finished", "uint8", self.counts, (1, 1), 0)

    def _check_config(self, config: dict[str, Any]) -> None:
        """Write config.json to a new folder; raise if the folder's differs."""
        path = self.folder / "config.json"
        begun = (self.folder / "kernel").exists()  # first, because another host may be writing both
        if path.exists():
            try:
                stored = json.loads(path.read_text(encoding="utf-8"))
                differences = _differences(stored, config)
                if differences and differences[0][0] == "identity":
                    differences = _differences(stored["identity"], config["identity"])
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise ConfigError(f"{path}: not the description of a kernel ({error})") from error
            for name, value, expected in differences[:1]:
                other = f"another kernel in {self.folder}: {name} is {value}"
                require(False, "folder", other, f"{expected}; remove it, or choose another folder")
        else:
            require(not begun, "folder", f"{self.folder} with tiles but no config.json", "another folder")
            if jax.process_index() == 0:
                write_text(path, json.dumps(config, indent=2) + "\n")
        if jax.process_count() > 1:  # config.json precedes all tiles
            multihost_utils.sync_global_devices("jaxinterp.gated.kernels.tiles.config")

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
        with _data_error(f"{path} cannot be opened as tiles"):
            return ts.open(spec, open=True, create=True).result()

    def _slices(self, i: int, j: int) -> tuple[slice, slice]:
        size, (rows, columns) = self.tile_size, self.shape
        return slice(i * size, min((i + 1) * size, rows)), slice(j * size, min((j + 1) * size, columns))

    def indices(self) -> Iterator[tuple[int, int]]:
        """Iterate over the indices of all tiles, of a symmetric matrix those on and above the diagonal."""
        for i in range(self.counts[0]):
            yield from ((i, j) for j in range(i if self.symmetric else 0, self.counts[1]))

    def unfinished(self) -> list[tuple[int, int]]:
        """Return the indices of the tiles that are not finished."""
        finished = self._read(self._finished, "the list of finished tiles")
        return [(i, j) for i, j in self.indices() if not finished[i, j]]

    def compute(self, block: Block, *, progress: bool = True) -> int:
        """Compute the unfinished tiles; return how many this process computed.

        Tiles are distributed over hosts, which share the folder and wait for one another at the end, and on each host
        over its devices, one tile ahead of each. A killed run loses only the tiles in progress.

        Args:
            block: (rows, columns) ↦ that part of the matrix, float32; called on the tile's device.
            progress: show a progress bar on the terminal.

        Raises:
            DataError: a tile is not finite or cannot be written (a full disk, say), on any host; finished tiles are
                kept.
        """
        # Distribute all tiles, since the unfinished ones may change while another host looks at them.
        assigned, unfinished = list(self.indices())[jax.process_index() :: jax.process_count()], set(self.unfinished())
        mine = [tile for tile in assigned if tile in unfinished]
        with self._together():
            self._compute(mine, block, progress)
        return len(mine)

    def _compute(self, mine: Sequence[tuple[int, int]], block: Block, progress: bool) -> None:
        devices, pending = jax.local_devices(), deque[tuple[int, int, Any]]()
        columns = TextColumn("tiles"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, disable=not progress) as bar:
            task = bar.add_task("", total=len(mine))
            for count, (i, j) in enumerate(mine):
                with jax.default_device(devices[count % len(devices)]):
                    pending.append((i, j, block(*self._slices(i, j))))
                while len(pending) > (len(devices) if count + 1 < len(mine) else 0):
                    self._write(*pending.popleft())
                    bar.advance(task)

    @contextmanager
    def _together(self) -> Iterator[None]:
        """Wait for the other hosts at the end; raise on all if one has failed, or the others would wait forever."""
        fault = None
        try:
            yield
        except DataError as error:
            fault = error
        if jax.process_count() > 1:
            failed = multihost_utils.process_allgather(np.uint8(fault is not None))
            if fault is None and failed.any():
                raise DataError(f"{self.folder}: host {int(failed.argmax())} could not read or write its tiles")
        if fault is not None:
            raise fault

    def _write(self, i: int, j: int, values: Any) -> None:
        rows, columns = self._slices(i, j)
        wide, shape = np.asarray(values), (rows.stop - rows.start, columns.stop - columns.start)
        if wide.shape != shape or not jnp.issubdtype(wide.dtype, jnp.floating):
            raise DataError(f"tile ({i}, {j}): got {wide.dtype}{wide.shape}, expected floating {shape}")
        with np.errstate(over="ignore"):
            tile = wide.astype(np.float32)
        if not np.isfinite(tile).all():
            raise DataError(f"tile ({i}, {j}): expected finite float32 values, got NaN or infinity")
        with _data_error(f"tile ({i}, {j}) could not be written to {self.folder}"):
            self._kernel[rows, columns].write(tile).result()
            self._finished[i, j].write(np.uint8(1)).result()

    def _read(self, stored: Any, name: str) -> np.ndarray:
        with _data_error(f"{self.folder}: {name} is damaged"):
            return np.asarray(stored.read().result())

    def _tile(self, i: int, j: int) -> Float[np.ndarray, "_ _"]:
        tile = self._read(self._kernel[self._slices(i, j)], f"tile ({i}, {j})")
        if np.isnan(tile[0, 0]):
            raise DataError(f"{self.folder}: tile ({i}, {j}) is lost; remove the folder, and compute it again")
        return tile

    def __getitem__(self, index: tuple[int, int]) -> Float[np.ndarray, "_ _"]:
        """Read the finished tile (i, j), also below the diagonal of a symmetric matrix."""
        i, j = index
        if not (0 <= i < self.counts[0] and 0 <= j < self.counts[1]):
            raise IndexError(f"index: got {index}, expected less than {self.counts}")
        mirrored = self.symmetric and i > j
        i, j = (j, i) if mirrored else (i, j)
        if not self._read(self._finished[i, j], "the list of finished tiles"):
            raise DataError(f"{self.folder}: tile ({i}, {j}) is not finished")
        tile = self._tile(i, j)
        return tile.T if mirrored else tile

    def read(self) -> Float[np.ndarray, "rows columns"]:
        """Read the matrix into memory."""
        return np.block([[self[i, j] for j in range(self.counts[1])] for i in range(self.counts[0])])

    def product(self, y: Float[np.ndarray, "columns k"]) -> Float[np.ndarray, "rows k"]:
        """Compute K y in y's type, reading every stored tile once, as many at a time as there are cores.

        Hosts share the tiles as in `compute`. Their terms are added in the order of the tiles, so that the sum is the
        one of a single host bit by bit.

        Raises:
            DataError: a tile is not finished, damaged or lost, on any host.
        """
        fits = y.ndim == 2 and len(y) == self.shape[1] and np.issubdtype(y.dtype, np.floating)
        require(fits, "y", f"{y.dtype}{y.shape}", f"floating ({self.shape[1]}, k)")
        if not self._complete and (missing := self.unfinished()):
            raise DataError(f"{self.folder}: tile {missing[0]} is not finished")
        self._complete = True
        total, hosts = np.zeros((self.shape[0], y.shape[1]), y.dtype), jax.process_count()
        mine = self._terms(list(self.indices())[jax.process_index() :: hosts], y)
        for terms in mine if hosts == 1 else self._exchanged(mine, y):
            for rows, term in terms:
                total[rows] += term
        return total

    def _mirrored(self, i: int, j: int) -> bool:
        """Tell whether a tile also stands for the one on the other side of the diagonal."""
        return self.symmetric and i != j

    def _terms(self, indices: Sequence[tuple[int, int]], y: np.ndarray) -> Iterator[Terms]:
        """Yield the contributions of tiles to a product, in order; the first tiles stay in memory."""

        def multiply(i: int, j: int, cached: bool) -> Terms:
            rows, columns = self._slices(i, j)
            tile = self._cache[i, j] if (i, j) in self._cache else self._tile(i, j)
            if cached:
                self._cache[i, j] = tile
            terms = [(rows, tile @ y[columns])]
            return terms + ([(columns, tile.T @ y[rows])] if self._mirrored(i, j) else [])

        # One core per tile: a product with few columns is too short to share.
        cores, pending = os.cpu_count() or 1, deque[Future[Terms]]()
        with threadpool_limits(1), ThreadPoolExecutor(cores) as pool:
            for number, index in enumerate(indices):
                pending.append(pool.submit(multiply, *index, number < self._cache_tiles))
                while len(pending) > (2 * cores if number + 1 < len(indices) else 0):
                    yield pending.popleft().result()

    def _exchanged(self, mine: Iterator[Terms], y: np.ndarray) -> Iterator[Terms]:
        """Yield the terms of all hosts' tiles, in order, from this host's."""
        indices, hosts = list(self.indices()), jax.process_count()
        own = np.zeros((math.ceil(len(indices) / hosts), 2, self.tile_size, y.shape[1]), y.dtype)
        with self._together():
            for place, terms in zip(own, mine, strict=False):
                for row, (_, term) in zip(place, terms, strict=False):
                    row[: len(term)] = term
        gathered = multihost_utils.process_allgather(own.view(np.uint8))  # bytes, which JAX leaves as they are
        every = gathered.view(y.dtype)
        for number, index in enumerate(indices):
            slices = self._slices(*index)[: 1 + self._mirrored(*index)]
            found = zip(slices, every[number % hosts, number // hosts], strict=False)
            yield [(rows, term[: rows.stop - rows.start]) for rows, term in found]


def _differences(stored: Mapping[str, Any], expected: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """List name, stored and expected value wherever two descriptions differ."""
    pairs = [(name, stored.get(name, "absent"), expected.get(name, "absent")) for name in {**expected, **stored}]
    return [(name, value, wanted) for name, value, wanted in pairs if value != wanted]


@contextmanager
def _data_error(fault: str) -> Iterator[None]:
    """Raise tensorstore's errors as DataError, without the description of the array that follows their message."""
    try:
        yield
    except (ValueError, OSError) as error:
        message = str(error).splitlines()[0].split(" [tensorstore_spec=")[0].split(" [source locations=")[0]
        raise DataError(f"{fault}: {message}") from error
