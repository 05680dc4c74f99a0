"""Token ids of words that were met before: most of any text, for a fraction of the tokenizer's time.

    text -> words (between spaces) -> ids of each, kept or computed -> ids of the text

Only for tokenizers of BERT's kind, which end a word at every space: what is between two spaces becomes the same ids
whatever stands around it. The tokenizer itself computes them, once for each word that is met.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

# Words in a generation, of which there are two: those that were met of late, and those before them. A word that is not
# met while a generation fills is forgotten: two megabytes are kept of plain text, eight of whatever is sent.
GENERATION = 4096
LONGEST = 24  # characters of a word that is kept
# New words of a text that are learned from it. By themselves they cost the tokenizer three times what they cost among
# others, so a text with more of them is left to it.
NEW = 16
ANY_WORD = "a"


class Words:
    """The words that were met of late, with their ids.

    Args:
        backend: The tokenizer; it computes the ids of words that are new.
        specials: Tokens that mean something else inside a text; a text with one of them is not cut into words.

    Attributes:
        head: Ids that stand before those of a text.
        tail: Ids that stand after them.
    """

    def __init__(self, backend: tokenizers.Tokenizer, specials: Sequence[str]) -> None:
        self._backend = backend
        self._specials = tuple(specials)
        self.head, self.tail = _frame(backend)
        self._recent: dict[str, list[int]] = {}
        self._before: dict[str, list[int]] = {}

    @classmethod
    def of(cls, backend: tokenizers.Tokenizer) -> Words | None:
        """The words of a tokenizer, none of them met yet; None if a word's ids may depend on its neighbours."""
        added = backend.get_added_tokens_decoder().values()
        ends_at_spaces = (
            isinstance(backend.normalizer, normalizers.BertNormalizer)
            and isinstance(backend.pre_tokenizer, pre_tokenizers.BertPreTokenizer)
            and isinstance(backend.model, models.WordPiece)
            # One that is looked for in the normalised text cannot be found in the text as it came.
            and not any(token.normalized for token in added)
        )
        return cls(backend, [token.content for token in added]) if ends_at_spaces else None

    def ids(self, text: str) -> list[int] | None:
        """Ids of a text, not cut and not framed; None if it holds a special token or too many new words."""
        if any(special in text for special in self._specials):
            return None
        words = text.split(" ")
        found = list(map(self._recent.get, words))
        if None in found:
            missing = dict.fromkeys(word for word, ids in zip(words, found, strict=True) if ids is None)
            known = {word: ids for word in missing if (ids := self._before.get(word)) is not None}
            new = [word for word in missing if word not in known]
            known |= self._computed(new[:NEW])
            self._keep(known)
            if len(new) > NEW:
                return None
            found = [known[word] if ids is None else ids for word, ids in zip(words, found, strict=True)]
        return list(itertools.chain.from_iterable(found))  # type: ignore[arg-type]  # no None is left

    def _computed(self, words: Sequence[str]) -> dict[str, list[int]]:
        if not words:
            return {}
        encodings = self._backend.encode_batch_fast(list(words), add_special_tokens=False)
        return {word: encoding.ids for word, encoding in zip(words, encodings, strict=True)}

    def _keep(self, known: Mapping[str, list[int]]) -> None:
        if len(self._recent) >= GENERATION:
            self._recent, self._before = {}, self._recent
        self._recent.update((word, ids) for word, ids in known.items() if len(word) <= LONGEST)


def _frame(backend: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
    """The ids that a tokenizer puts before and after those of a text."""
    bare, framed = backend.encode(ANY_WORD, add_special_tokens=False).ids, backend.encode(ANY_WORD).ids
    start = next(start for start in range(len(framed)) if framed[start : start + len(bare)] == bare)
    return framed[:start], framed[start + len(bare) :]
