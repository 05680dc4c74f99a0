"""Bulk scoring: a file of rows in, the same rows with answers out, in order and in constant memory.

    file -> Ray Data blocks -> a pool of predictor actors -> blocks in order -> file, written as they arrive

The output has the input's columns and those of an answer; `probabilities` is a JSON object in CSV and one number
column per class (`probability_<class>`) in Parquet, so that both stay readable by anything.
"""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pandas as pd

from madewithml import checkpoint, cluster, data, errors, host, predict
from madewithml import progress as progress_

if TYPE_CHECKING:
    import ray.data

# Rows that travel together, and bytes: enough that Ray's cost for each block vanishes, and few, because a member of the
# pool that has the last block keeps all others waiting. Ray's own blocks are a tenth of the file.
BLOCK_ROWS = 512
BLOCK_BYTES = 2**18


class _Scorer:
    """A pool member: one predictor, one thread each."""

    def __init__(self, folder: str, engine: str, threshold: float | None, threads: int) -> None:
        self.predictor = predict.Predictor.from_checkpoint(folder, engine=engine, threshold=threshold, threads=threads)

    def __call__(self, batch: pd.DataFrame) -> pd.DataFrame:
        table = data.as_text(batch)
        given = self.predictor.predict(data.as_rows(batch))
        candidates = [json.dumps(answer.pop("candidates")) if "candidates" in answer else "" for answer in given]
        answers = pd.DataFrame(given, index=table.index)
        answers["probabilities"] = answers["probabilities"].map(json.dumps)
        if self.predictor.policy.candidate_quantile is not None:  # all blocks have the same columns
            answers["candidates"] = candidates
        clash = [name for name in answers.columns if name in table.columns]
        return pd.concat([table.drop(columns=clash), answers], axis=1)


class _Writer(Protocol):
    def write(self, table: pd.DataFrame) -> None: ...


class _TextWriter:
    """Appends CSV or JSON Lines."""

    def __init__(self, path: Path, kind: str) -> None:
        self._file, self._kind, self._first = path.open("w", encoding="utf-8", newline=""), kind, True

    def write(self, table: pd.DataFrame) -> None:
        if self._kind == "csv":
            table.to_csv(self._file, index=False, header=self._first, lineterminator="\n")
        else:
            shaped = table.assign(probabilities=table["probabilities"].map(json.loads))
            if "candidates" in table:
                shaped["candidates"] = table["candidates"].map(lambda text: json.loads(text) if text else None)
            shaped.to_json(self._file, orient="records", lines=True, force_ascii=False)
        self._first = False

    def close(self) -> None:
        self._file.close()


class _ParquetWriter:
    """Appends row groups."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: Any = None

    def write(self, table: pd.DataFrame) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        probabilities = pd.DataFrame(table["probabilities"].map(json.loads).tolist(), index=table.index)
        shaped = pd.concat([table.drop(columns="probabilities"), probabilities.add_prefix("probability_")], axis=1)
        # Columns of a block may be all empty, and then say nothing of their type.
        arrow = pa.Table.from_pandas(shaped.astype({"reason": "string", "threshold": float}), preserve_index=False)
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, arrow.schema)
        self._writer.write_table(arrow.cast(self._writer.schema))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def predict_file(
    folder: Path,
    *,
    dataset_loc: str,
    output_loc: str,
    engine: str = "auto",
    threshold: float | None = None,
    num_workers: int | None = None,
) -> int:
    """Score a file.

    Args:
        folder: Checkpoint folder.
        dataset_loc: CSV, JSON Lines or Parquet file with the text fields as columns.
        output_loc: File to write, in the format of its ending; replaced only when all is done.
        engine: What computes logits.
        threshold: Replaces the recorded threshold.
        num_workers: Actors in the pool; None means one per core.

    Returns:
        Number of rows written.

    Raises:
        CheckpointError: The checkpoint is damaged.
        InputError: A file or column is missing or cannot be read, or scoring failed; nothing is written then.
    """
    target, kind = Path(output_loc), data.file_format(output_loc)
    if not target.parent.is_dir():
        raise errors.InputError(f"no folder {str(target.parent)!r} to write {target.name!r} into")
    found = checkpoint.read(folder)
    found.verify()
    predict.policy_of(found, threshold=threshold)
    fields = found.metadata.text_fields
    if data.file_format(dataset_loc) != "parquet":  # what is wrong with it is said before anything is started
        _require_fields(data.first_rows(dataset_loc, count=BLOCK_ROWS).columns, fields, location=dataset_loc)
    workers = num_workers or host.available_cores()
    partial = target.with_name(f".{target.name}.partial")
    with cluster.session(), progress_.track("scoring", total=None) as bar, _writer(partial, kind) as writer:
        dataset = _dataset(dataset_loc, fields)
        count = 0
        for table in _scored(dataset, folder, engine=engine, threshold=threshold, workers=workers):
            writer.write(table)
            count += len(table)
            bar.advance(len(table))
        if not count:
            raise errors.InputError(f"{dataset_loc!r} has no rows")
    partial.replace(target)
    return count


@contextmanager
def _writer(path: Path, kind: str) -> Iterator[_Writer]:
    writer = _ParquetWriter(path) if kind == "parquet" else _TextWriter(path, kind)
    try:
        yield writer
    except BaseException:
        writer.close()
        path.unlink(missing_ok=True)
        raise
    writer.close()


def _dataset(location: str, fields: list[str]) -> ray.data.Dataset:
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it tells of every plan and execution, at a level of its own
    context = ray.data.DataContext.get_current().copy()
    context.target_max_block_size = BLOCK_BYTES
    context.execution_options.preserve_order = True
    kind = data.file_format(location)
    try:
        with ray.data.DataContext.current(context):  # a dataset keeps that in which it was made
            if kind != "parquet":
                return _read_text(location, kind)
            dataset = ray.data.read_parquet(location)
            schema = dataset.schema()
    except FileNotFoundError as err:
        raise errors.InputError(f"no file {location!r}: check --dataset-loc") from err
    except Exception as err:  # Ray wraps whatever pyarrow says in errors of its own
        raise errors.InputError(f"{location!r} cannot be read as {kind}: {_cause(err)}") from err
    if schema is None:
        raise errors.InputError(f"{location!r} has no rows")
    _require_fields(schema.names, fields, location=location)
    return dataset


def _require_fields(columns: Iterable[str], fields: Sequence[str], *, location: str) -> None:
    hint = f"The model reads {', '.join(map(repr, fields))}: rename the file's columns."
    data.require_columns(columns, fields, location=location, hint=hint)


def _read_text(location: str, kind: str) -> ray.data.Dataset:
    """CSV or JSON Lines, read as `data.read_table` reads them, a block at a time.

    Ray's own readers guess types ("007" would become 7, a date a number) and do not tell what is wrong with a file.
    """
    import ray.data.datasource

    class Blocks(ray.data.datasource.FileBasedDatasource):  # type: ignore[misc]  # Ray is untyped
        def _read_stream(self, f: Any, path: str) -> Iterator[pd.DataFrame]:  # noqa: ARG002 - Ray passes it
            text = io.TextIOWrapper(f, encoding="utf-8", newline="")
            yield from data.blocks(text, kind, rows=BLOCK_ROWS)

    return ray.data.read_datasource(Blocks(location), override_num_blocks=1)  # or it would cut the blocks up anew


def _scored(
    dataset: ray.data.Dataset, folder: Path, *, engine: str, threshold: float | None, workers: int
) -> Iterator[pd.DataFrame]:
    import ray.data
    import ray.exceptions

    scored = dataset.map_batches(
        _Scorer,
        fn_constructor_args=(str(folder), engine, threshold, 1),
        batch_format="pandas",
        batch_size=BLOCK_ROWS,
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=0,  # a pool that reserves every core leaves none to the tasks that read, and both wait for ever
    )
    try:
        yield from scored.iter_batches(batch_size=None, batch_format="pandas")
    except ray.exceptions.RayError as err:  # from a row that cannot be read, or from a pool member
        raise errors.InputError(f"scoring failed: {_cause(err)}") from err


def _cause(err: BaseException) -> str:
    """The error that a worker began with: Ray's message is a traceback, the innermost cause first, and advice."""
    first = re.search(r"^[A-Za-z_][\w.]*: (\S.*)$", str(err), re.MULTILINE)
    return first[1] if first else errors.in_one_line(err)
