"""Text to token ids, by the `tokenizers` library alone: no Transformers, no torch.

texts -> Tokenizer.encode -> list[Tokens] -> pad -> ids, mask [n, longest]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import tokenizers

from madewithml import errors, words

Ints = npt.NDArray[np.int64]

# A text is cut here before it is tokenised, so that ten megabytes in one cell cost no more than a page. It is far
# above what fits a model: 512 tokens of English are about 2,500 characters.
MAX_CHARACTERS = 100_000
# Of a longer text its beginning alone is tokenised, if that fills the model already: so many characters for each token
# that fits. English has about five; where this is not enough, all of it is tokenised.
PREFIX_CHARACTERS = 16
USUAL_CHARACTERS = 4  # of a token, the space before it not counted
# Tokens that must come after those that fit: what stands at the end of the beginning cannot change these any more.
MARGIN_TOKENS = 8


class Tokens(NamedTuple):
    """One tokenised text: its ids, special tokens included, and whether it was cut to fit the model."""

    ids: list[int]
    truncated: bool


@dataclass(frozen=True)
class Tokenizer:
    """A checkpoint's tokenizer.

    Attributes:
        backend: The `tokenizers` object, set to truncate and not to pad.
        pad_id: Id that fills short rows.
        max_length: Tokens that fit the model, special tokens included.
        known: Words that it has met; None if a word of it depends on its neighbours.
    """

    backend: tokenizers.Tokenizer
    pad_id: int
    max_length: int
    known: words.Words | None = None

    @classmethod
    def from_file(cls, path: Path, *, max_length: int, pad_id: int) -> Tokenizer:
        """Read a `tokenizer.json`.

        Args:
            path: The file.
            max_length: Tokens that fit the model, special tokens included.
            pad_id: Id that fills short rows.

        Raises:
            CheckpointError: The file is not a tokenizer.
        """
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as err:  # the library raises bare Exception for every fault
            raise errors.CheckpointError(f"{str(path)!r} is not a tokenizer file: {err}") from err
        backend.no_padding()
        backend.enable_truncation(max_length)
        return cls(backend, pad_id, max_length, words.Words.of(backend))

    @property
    def prefix(self) -> int:
        """Characters of a text's beginning that are tokenised first; see `PREFIX_CHARACTERS`."""
        return PREFIX_CHARACTERS * self.max_length

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        """Tokenise texts; each one alone, so that a text's ids never depend on its neighbours."""
        by_words = [self._by_words(text) for text in texts]
        others = [text for text, tokens in zip(texts, by_words, strict=True) if tokens is None]
        rest = iter(self._by_backend(others) if others else [])
        return [tokens or next(rest) for tokens in by_words]

    def _by_words(self, text: str) -> Tokens | None:
        """A text word by word; None if it is too long for that, or no such text."""
        if self.known is None or len(text) > self.prefix:
            return None
        ids = self.known.ids(text)
        if ids is None:
            return None
        head, tail = self.known.head, self.known.tail
        room = self.max_length - len(head) - len(tail)
        return Tokens([*head, *ids[:room], *tail], truncated=len(ids) > room)

    def _by_backend(self, texts: Sequence[str]) -> list[Tokens]:
        encodings = self.backend.encode_batch_fast([self._beginning(text) for text in texts])
        return [
            Tokens(encoding.ids, truncated=bool(encoding.overflowing))
            if len(text) <= self.prefix or _fills(encoding)
            else self._encode_whole(text)
            for encoding, text in zip(encodings, texts, strict=True)
        ]

    def estimate(self, texts: Sequence[str]) -> list[int]:
        """About how many tokens each text has, by its length alone."""
        return [min(self.max_length, len(text) // USUAL_CHARACTERS + 2) for text in texts]

    def _beginning(self, text: str) -> str:
        """The text, or as much of it as most likely fills the model; no word is cut in two."""
        if len(text) <= self.prefix:
            return text
        head, _, _ = text[: self.prefix].rpartition(" ")
        return head

    def _encode_whole(self, text: str) -> Tokens:
        encoding = self.backend.encode(text[:MAX_CHARACTERS])
        return Tokens(encoding.ids, truncated=bool(encoding.overflowing) or len(text) > MAX_CHARACTERS)


def _fills(encoding: tokenizers.Encoding) -> bool:
    """Whether a beginning has more tokens than fit, and some to spare."""
    return sum(len(rest.ids) for rest in encoding.overflowing) >= MARGIN_TOKENS


def pad(rows: Sequence[Sequence[int]], *, pad_id: int) -> tuple[Ints, Ints]:
    """Rows of ids to one rectangle.

    Returns:
        ids and mask, both int64 [n, longest row]; the mask is 1 where there is a token.
    """
    longest = max(map(len, rows))
    ids = np.full((len(rows), longest), pad_id, dtype=np.int64)
    mask = np.zeros((len(rows), longest), dtype=np.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
        mask[index, : len(row)] = 1
    return ids, mask
