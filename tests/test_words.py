"""Ids of words that were met, against what the tokenizer itself gives."""

from __future__ import annotations

from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import pytest
import tokenizers

from madewithml import encoders, words
from tests.conftest import SAMPLE

HARD = [
    "",
    "\n",
    "\t",
    "\x00",
    "\u3000",
    "\u00a0",
    "É",
    "e\u0301",
    "\u0301",
    "ΑΣ",
    "日本語",
    "🚀",
    "x" * 150,
    "a-b",
    "##a",
]
PIECES = st.one_of(st.sampled_from([*HARD, " ", "  ", "Images", "the", "of", "[SEP]", "[unk]"]), st.text(max_size=8))


@pytest.fixture(scope="module", params=["own", "real"])
def backend(request: pytest.FixtureRequest, tiny_tokenizer: Path) -> tokenizers.Tokenizer:
    """Of a small tokenizer that was trained for these tests, and of the default encoder's."""
    real = request.param == "real"
    folder = encoders.find("sentence-transformers/all-MiniLM-L6-v2").folder if real else tiny_tokenizer
    found = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    found.no_padding()
    found.no_truncation()
    return found


@pytest.fixture(scope="module")
def known(backend: tokenizers.Tokenizer) -> words.Words:
    found = words.Words.of(backend)
    assert found is not None
    return found


@hypothesis.given(pieces=st.lists(PIECES, max_size=30), between=st.sampled_from(["", " "]))
def test_a_text_has_the_ids_that_the_tokenizer_gives_it(
    backend: tokenizers.Tokenizer, known: words.Words, pieces: list[str], between: str
) -> None:
    text = between.join(pieces)
    expected = backend.encode(text, add_special_tokens=False).ids
    for _ in range(2 + len(pieces) // words.NEW):  # new words, and known ones
        ids = known.ids(text)
        assert ids in (None, expected)
    assert (ids is None) == ("[SEP]" in text or too_long_to_keep(text) > words.NEW)


def too_long_to_keep(text: str) -> int:
    return sum(len(word) > words.LONGEST for word in set(text.split(" ")))


def test_so_has_every_text_of_the_sample_in_its_frame(backend: tokenizers.Tokenizer, known: words.Words) -> None:
    texts = [text for text in SAMPLE.read_text(encoding="utf-8").splitlines() if "[" not in text]
    for text in texts:
        ids = [found for _ in range(30) if (found := known.ids(text)) is not None]
        assert len(ids) > 5
        assert [*known.head, *ids[-1], *known.tail] == backend.encode(text).ids
    assert len(texts) > 400


def test_a_text_of_many_new_words_is_left_to_the_tokenizer_until_it_has_few(backend: tokenizers.Tokenizer) -> None:
    """One by one they would cost the event loop more than the whole text does."""
    known = words.Words.of(backend)
    assert known is not None
    text = " ".join(f"new{number}" for number in range(2 * words.NEW + 1))
    assert [known.ids(text) is None for _ in range(3)] == [True, True, False]


def test_words_that_are_met_again_and_again_cost_the_tokenizer_nothing(backend: tokenizers.Tokenizer) -> None:
    asked: list[str] = []

    class Spied:
        def encode_batch_fast(self, inputs: list[str], **options: bool) -> list[tokenizers.Encoding]:
            asked.extend(inputs)
            return backend.encode_batch_fast(inputs, **options)

    known = words.Words.of(backend)
    assert known is not None
    known._backend = Spied()
    for number in range(3 * words.GENERATION):
        known.ids(f"usual word{number}")
    assert asked.count("usual") == 1
    assert asked.count("word0") == 1
    known.ids("word0")
    assert asked.count("word0") == 2, "what was not met for long is forgotten"


def test_what_is_kept_is_bounded_in_number_and_in_length(backend: tokenizers.Tokenizer) -> None:
    known = words.Words.of(backend)
    assert known is not None
    for number in range(0, 3 * words.GENERATION, words.NEW):
        known.ids(" ".join(f"word{each}" for each in range(number, number + words.NEW)))
    known.ids("x" * (words.LONGEST + 1))
    kept = [*known._recent, *known._before]
    assert words.GENERATION <= len(kept) <= 2 * (words.GENERATION + words.NEW)
    assert max(map(len, kept)) <= words.LONGEST


class TestOtherTokenizers:
    """Those whose words depend on their neighbours are left to themselves."""

    def test_one_whose_spaces_belong_to_the_words(self) -> None:
        assert words.Words.of(tokenizers.ByteLevelBPETokenizer()._tokenizer) is None

    def test_one_with_a_token_that_is_looked_for_in_the_normalised_text(self, tiny_tokenizer: Path) -> None:
        backend = tokenizers.Tokenizer.from_file(str(tiny_tokenizer / "tokenizer.json"))
        backend.add_tokens(["two words"])
        assert words.Words.of(backend) is None
