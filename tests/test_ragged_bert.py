from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from madewithml import checkpoint, engines, models, ragged, ragged_bert, tokenization
from tests.conftest import TOKEN_ROWS


@pytest.fixture(scope="module")
def classifier(checkpoint_folder: Path) -> Any:
    return models.from_folder(checkpoint_folder).eval()


def test_it_gives_the_logits_of_the_classifier_it_was_made_from(classifier: Any, checkpoint_folder: Path) -> None:
    ids, mask = tokenization.pad(TOKEN_ROWS, pad_id=0)
    expected = engines.load(checkpoint.read(checkpoint_folder), name="torch", threads=1).logits(ids, mask)
    batch = {name: torch.from_numpy(values) for name, values in ragged.lay_out(ids, mask).items()}
    with torch.inference_mode():
        actual = ragged_bert.RaggedBert(classifier)(**batch)
    torch.testing.assert_close(actual, torch.from_numpy(expected), atol=1e-5, rtol=0)


def test_of_the_last_layer_only_the_first_token_of_each_row_is_computed(classifier: Any) -> None:
    seen: list[torch.Size] = []
    module = ragged_bert.RaggedBert(classifier)
    for layer in module.layers:
        layer.intermediate.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].shape))
    batch = ragged.lay_out(*tokenization.pad(TOKEN_ROWS, pad_id=0))
    with torch.inference_mode():
        module(**{name: torch.from_numpy(values) for name, values in batch.items()})
    assert [shape[1] for shape in seen] == [len(batch["ids"]), len(TOKEN_ROWS)]


def test_the_classifier_itself_stays_as_it_was(classifier: Any) -> None:
    before = copy.deepcopy(classifier.state_dict())
    ragged_bert.RaggedBert(classifier)
    assert all(torch.equal(before[name], value) for name, value in classifier.state_dict().items())


def test_only_a_plain_bert_suits(classifier: Any) -> None:
    small = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "num_hidden_layers": 1}
    roberta = transformers.RobertaForSequenceClassification(transformers.RobertaConfig(**small))
    assert (ragged_bert.suits(classifier), ragged_bert.suits(roberta)) == (True, False)
