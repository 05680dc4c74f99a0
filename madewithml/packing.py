"""Packing: a folder with model and tokenizer becomes a checkpoint, with a default decision and golden rows."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from madewithml import checkpoint, decision, engines, tokenization

GOLDEN_ROWS = 16


def finish(folder: Path, metadata: checkpoint.Metadata, texts: Sequence[str]) -> checkpoint.Checkpoint:
    """Complete a folder that holds model and tokenizer: metadata, default decision, golden rows.

    Args:
        folder: The folder.
        metadata: What `checkpoint.json` is to say.
        texts: Texts to take golden rows from, long ones and short ones; may be empty.
    """
    written = checkpoint.write(folder, metadata)
    written.write_decision(decision.DecisionPolicy(abstain_label=metadata.abstain_label).to_dict())
    if texts:
        by_length = sorted(texts, key=len)
        chosen = [by_length[i] for i in sorted({*np.linspace(0, len(texts) - 1, GOLDEN_ROWS).astype(int).tolist()})]
        engine = engines.load(written, name="torch")
        rows = [tokens.ids for tokens in written.tokenizer().encode(chosen)]
        logits = [engine.logits(*tokenization.pad([row], pad_id=metadata.pad_id))[0] for row in rows]
        written.write_golden(chosen, np.stack(logits))
    return written


def library_versions() -> dict[str, str]:
    """Versions of what wrote a checkpoint."""
    names = ("madewithml", "torch", "transformers", "tokenizers")
    found = {name: importlib.metadata.version(name) for name in names}
    return {"python": platform.python_version(), **found}
