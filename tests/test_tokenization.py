from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
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
