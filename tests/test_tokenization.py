from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tokenizers
import transformers

from madewithml import errors, tokenization
from tests.conftest import MAX_TOKENS


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer: Path) -> tokenization.Tokenizer:
    return tokenization.Tokenizer.from_file(tiny_tokenizer / "tokenizer.json", max_length=MAX_TOKENS, pad_id=0)


def test_ids_are_those_that_transformers_gives(tokenizer: tokenization.Tokenizer, tiny_tokenizer: Path) -> None:
    reference = transformers.AutoTokenizer.from_pretrained(tiny_tokenizer)
    inputs = ["Images with CNNs", "", "ünïcode 🚀 and a\nline break", "word " * 500]
    expected = reference(inputs, truncation=True)["input_ids"]
    assert [tokens.ids for tokens in tokenizer.encode(inputs)] == expected


def test_a_text_that_fits_is_whole_and_one_token_more_is_cut(tokenizer: tokenization.Tokenizer) -> None:
    room = MAX_TOKENS - 2  # [CLS] and [SEP]
    fits, cut = tokenizer.encode(["the " * room, "the " * (room + 1)])
    assert (len(fits.ids), fits.truncated) == (MAX_TOKENS, False)
    assert (len(cut.ids), cut.truncated) == (MAX_TOKENS, True)


def test_a_texts_ids_do_not_depend_on_its_neighbours(tokenizer: tokenization.Tokenizer) -> None:
    alone = tokenizer.encode(["a short text"])[0]
    assert tokenizer.encode(["word " * 500, "a short text", ""])[1] == alone


WORDS = st.sampled_from(
    ["the", "word", "images", "é", "e\u0301", "\u0301", "日本語", "🚀", "a-b", "x" * 150, "\n", "\t", "", "1,000.5"]
)


@hypothesis.given(st.lists(WORDS, max_size=60), st.integers(1, 40), st.sampled_from([" ", "  ", "", "\n"]))
def test_the_beginning_of_a_long_text_gives_what_all_of_it_gives(
    tokenizer: tokenization.Tokenizer, words: list[str], times: int, between: str
) -> None:
    text = between.join(words * times)
    whole = tokenizer.backend.encode(text)
    tokens = tokenizer.encode([text])[0]
    assert (tokens.ids, tokens.truncated) == (whole.ids, bool(whole.overflowing))


def test_of_a_long_text_the_beginning_alone_is_tokenised(
    tokenizer: tokenization.Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    class Backend:
        def encode_batch_fast(self, inputs: list[str]) -> list[tokenizers.Encoding]:
            seen.extend(map(len, inputs))
            return tokenizer.backend.encode_batch_fast(inputs)

    spied = dataclasses.replace(tokenizer, backend=Backend())
    assert spied.encode(["word " * 50_000])[0].truncated
    assert seen[0] <= tokenizer.prefix


def test_how_long_a_text_is_in_tokens_is_guessed_by_its_characters(tokenizer: tokenization.Tokenizer) -> None:
    assert tokenizer.estimate(["", "word " * 8, "word " * 10_000]) == [2, 12, MAX_TOKENS]


def test_ten_megabytes_cost_no_more_than_a_page(tokenizer: tokenization.Tokenizer) -> None:
    start = time.process_time()
    tokens = tokenizer.encode(["word " * 2_000_000])[0]
    assert (len(tokens.ids), tokens.truncated) == (MAX_TOKENS, True)
    assert time.process_time() - start < 5.0


def test_a_long_run_of_blanks_is_reported_as_cut(tokenizer: tokenization.Tokenizer) -> None:
    tokens = tokenizer.encode([" " * tokenization.MAX_CHARACTERS + "word"])[0]
    assert (tokens.truncated, len(tokens.ids)) == (True, 2)


def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    with pytest.raises(errors.CheckpointError, match=r"tokenizer\.json' is not a tokenizer file: "):
        tokenization.Tokenizer.from_file(path, max_length=8, pad_id=0)


def test_short_rows_are_filled_and_masked() -> None:
    ids, mask = tokenization.pad([[5, 6, 7], [8], []], pad_id=9)
    assert ids.tolist() == [[5, 6, 7], [8, 9, 9], [9, 9, 9]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0], [0, 0, 0]]
    assert (ids.dtype, mask.dtype) == (np.int64, np.int64)
