"""The graph that peers would have exported themselves: same model, same precision, in batches that are padded.

The graph of `madewithml optimize` holds no padding where the model is a BERT. Peers are measured with that, and the
best of them with this as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from limit import Engine

from madewithml import checkpoint, graphs

READ_BY_PEERS = ("checkpoint.json", "tokenizer.json")


def write(ours: Engine, texts: Sequence[str], folder: Path) -> None:
    """Write the graph, and what else peers read of a checkpoint.

    Args:
        ours: The engine as `optimize` chose it.
        texts: The dataset's, by which weights are rounded.
        folder: Empty; becomes the checkpoint folder.

    Raises:
        SystemExit: It cannot be made.
    """
    source = checkpoint.read(ours.checkpoint)
    for name in READ_BY_PEERS:
        (folder / name).symlink_to(source.folder / name)
    target = folder / checkpoint.ENGINES
    target.mkdir()
    rows = [encoded.ids for encoded in source.tokenizer().encode(texts)]
    failed = graphs.Graphs(source, target, rows=rows, may_be_ragged=False).write()
    if ours.file is None or ours.file in failed:
        raise SystemExit(f"no padded graph: {failed.get(str(ours.file), 'this engine reads none')}")
