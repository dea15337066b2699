"""Pictures from Ray Data: decoded on any CPUs of the cluster, streamed to one training worker.

Each worker runs its own pipeline over its own portions. Ray Train's usual design, one pipeline whose blocks go to the
first worker that asks, distributes the rows differently in each run and drops those that do not divide evenly
(`streaming_split(equal=True)`). Here every row is seen once per epoch, and a resumed run sees the same batches as an
uninterrupted one. All epochs form one stream, so no epoch waits for a pipeline to start.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from raymotion.batch.memory import keep_freed_memory
from raymotion.errors import RunFailed
from raymotion.models.inputs.reading import Pictures, Reader
from raymotion.train.pictures import Portion

# Rows per task: a few tenths of a second of decoding, so that Ray's overhead of milliseconds per task is negligible.
TASK_ROWS = 64
# Upper limit of a block, because several blocks wait in the object store at a time.
TASK_BYTES = 32 * 1024**2
# Tasks per pipeline. A longer stream uses several pipelines: the input of all tasks would fill the object store.
PIPELINE_TASKS = 1000
# Bookkeeping columns of a block; all others are the reader's arrays.
COLUMNS = ("portion", "row", "status", "reason")


def read_with_ray(
    portions: Sequence[Portion],
    addresses: Sequence[Any],
    reader: Reader,
    *,
    tasks: int,
    cpus_per_task: float,
) -> Iterator[tuple[Portion, Pictures]]:
    """Yields the portions in order, decoded by Ray Data tasks.

    Args:
        tasks: number of concurrent tasks.
        cpus_per_task: logical CPUs per task.
    """
    inputs: list[list[int]] = []
    enough = max(1, min(TASK_ROWS, TASK_BYTES // reader.row_bytes))
    rows = enough
    for number, portion in enumerate(portions):
        if rows >= enough:
            inputs.append([])
            rows = 0
        inputs[-1].append(number)
        rows += len(portion.rows)
    for start in range(0, len(inputs), PIPELINE_TASKS):
        some = inputs[start : start + PIPELINE_TASKS]
        blocks = [
            pa.concat_tables([_table(portions[i], i, addresses, reader.address_type) for i in numbers])
            for numbers in some
        ]
        yield from _assembled(_stream(blocks, reader, tasks, cpus_per_task), portions, some[0][0])


def _table(portion: Portion, number: int, addresses: Sequence[Any], kind: pa.DataType) -> pa.Table:
    n = len(portion.rows)
    return pa.table(
        {
            "portion": pa.array(np.full(n, number, np.int32)),
            "row": pa.array(portion.rows.astype(np.int32)),
            "epoch": pa.array(np.full(n, portion.epoch, np.int32)),
            "training": pa.array(np.full(n, portion.training)),
            "address": pa.array([addresses[row] for row in portion.rows], kind),
        }
    )


class _Decode:
    """The only step of the pipeline: decodes addresses to pixels."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores the reader in the decoding process."""
        self.__dict__.update(state)
        keep_freed_memory()

    def __call__(self, batch: pa.Table) -> dict[str, np.ndarray]:
        addresses, rows = batch.column("address").to_pylist(), batch.column("row").to_pylist()
        parts = []
        # A block may hold portions of two epochs.
        numbers = batch.column("portion").to_numpy()
        edges = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
        for a, b in itertools.pairwise(edges):
            epoch, training = batch.column("epoch")[a].as_py(), batch.column("training")[a].as_py()
            parts.append(self.reader.read_all(addresses[a:b], rows[a:b], epoch, training))
        reasons = {row: reason for part in parts for row, reason in part.reasons.items()}
        return {
            "portion": numbers,
            "row": np.array(rows, dtype=np.int32),
            **{name: _joined([part.arrays[name] for part in parts]) for name in parts[0].arrays},
            "status": np.concatenate([part.status for part in parts]),
            "reason": np.array([reasons.get(row, "") for row in rows]),
        }


def _stream(
    blocks: Sequence[pa.Table], reader: Reader, tasks: int, cpus_per_task: float
) -> Iterator[dict[str, np.ndarray]]:
    import ray
    from ray.data import DataContext, TaskPoolStrategy
    from ray.exceptions import RayError

    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    context.raise_original_map_exception = True  # keeps the exception type, for example of a denied permission
    with DataContext.current(context):
        dataset = ray.data.from_arrow(list(blocks)).map_batches(
            _Decode(reader),
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            num_cpus=cpus_per_task,
            compute=TaskPoolStrategy(size=tasks),
        )
        try:
            # One split only, because its scheduler then runs in its own process. As a thread of this process it would
            # hold the GIL while the training step waits (190 against 245 images/s on two cores).
            (pictures,) = dataset.streaming_split(1, equal=False)
            yield from pictures.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=2)
        except RayError as error:
            cause = _own_error(error)
            if cause is not None:
                raise cause from error
            raise RunFailed(f"Ray ended the stream of pictures: {str(error).strip().splitlines()[-1]}") from error


def _own_error(error: BaseException) -> Exception | None:
    """Returns the exception that our own code raised in the task, for example for a denied permission."""
    from ray.exceptions import RayError

    from raymotion.errors import InputError, RaymotionError

    seen: Any = error
    while seen is not None:
        # Ray's wrapper has both classes, with a traceback as its message, and adds its own advice to the inner error.
        if isinstance(seen, RaymotionError) and not isinstance(seen, RayError):
            if isinstance(seen, InputError):
                return type(seen)(seen.reason, path=seen.path, row=seen.row, remedy=seen.remedy)
            return seen
        seen = getattr(seen, "cause", None) or seen.__cause__
    return None


def _assembled(
    blocks: Iterator[dict[str, np.ndarray]], portions: Sequence[Portion], number: int
) -> Iterator[tuple[Portion, Pictures]]:
    """Reassembles portions from blocks that arrive in order but may be cut anywhere."""
    held: list[dict[str, np.ndarray]] = []
    count = 0
    for block in blocks:
        start, length = 0, len(block["row"])
        while start < length:
            wanted = len(portions[number].rows) - count
            piece = {name: values[start : start + wanted] for name, values in block.items()}
            held.append(piece)
            count += len(piece["row"])
            start += len(piece["row"])
            if count == len(portions[number].rows):
                yield portions[number], _pictures(held, portions[number])
                held, count, number = [], 0, number + 1


def _pictures(pieces: list[dict[str, np.ndarray]], portion: Portion) -> Pictures:
    joined = {name: _joined([piece[name] for piece in pieces]) for name in pieces[0]}
    if not np.array_equal(joined["row"], portion.rows):
        raise RunFailed("Ray Data gave the pictures in another order than they were asked for")
    reasons = {int(joined["row"][i]): str(joined["reason"][i]) for i in np.flatnonzero(joined["reason"] != "")}
    arrays = {name: values for name, values in joined.items() if name not in COLUMNS}
    return Pictures(arrays, joined["status"], reasons)


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
