"""A BERT classifier that takes its rows end to end, for export; see `ragged` for what that is good for.

It computes the same logits from the same weights as Transformers' own module, in another order of work: everything but
attention on the tokens alone, without padding; queries, keys and values in one product; of the last layer only what the
head reads, which is the first token of each row.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

MASKED = -1e9  # added to the score of a place without a token


def suits(classifier: Any) -> bool:
    """Whether the classifier is a BERT that this module can stand in for."""
    config = classifier.config
    plain = getattr(config, "model_type", None) == "bert" and not config.is_decoder
    return plain and getattr(classifier, "bert", None) is not None and classifier.bert.pooler is not None


class RaggedBert(nn.Module):
    """A BERT classifier on ragged batches.

    Args:
        classifier: Transformers' `BertForSequenceClassification`, in evaluation mode; its weights are shared.
    """

    def __init__(self, classifier: Any) -> None:
        super().__init__()
        embeddings, layers = classifier.bert.embeddings, classifier.bert.encoder.layer
        self.words, self.norm = embeddings.word_embeddings, embeddings.LayerNorm
        # Every token is of type 0, so its type's vector can be added to that of its position once and for all.
        with torch.no_grad():
            positions = embeddings.position_embeddings.weight + embeddings.token_type_embeddings.weight[0]
        self.positions = nn.Parameter(positions)
        self.layers = nn.ModuleList(_RaggedLayer(layer, only_first=layer is layers[-1]) for layer in layers)
        self.pooler, self.classifier = classifier.bert.pooler, classifier.classifier
        self.eval()

    def forward(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        places: torch.Tensor,
        slots: torch.Tensor,
        mask: torch.Tensor,
    ) -> torch.Tensor:
        """Logits, float32 [n, k], of a batch as `ragged.lay_out` gives it."""
        hidden = self.norm(self.words(ids) + self.positions[positions])[None]  # [1, t, width]
        bias = ((1.0 - mask.float()) * MASKED)[:, None, None, :]
        for layer in self.layers:
            hidden = layer(hidden, places, slots, bias)
        pooled = self.pooler.activation(self.pooler.dense(hidden[0]))
        logits: torch.Tensor = self.classifier(pooled)
        return logits


class _RaggedLayer(nn.Module):
    """One layer.

    Args:
        layer: Transformers' `BertLayer`.
        only_first: Whether only the first token of each row is asked for.
    """

    def __init__(self, layer: Any, *, only_first: bool) -> None:
        super().__init__()
        attention = layer.attention.self
        parts = (attention.query, attention.key, attention.value)
        self.heads, self.head_size = attention.num_attention_heads, attention.attention_head_size
        self.only_first = only_first
        self.together = nn.Linear(parts[0].in_features, 3 * attention.all_head_size)
        self.together.weight = nn.Parameter(torch.cat([part.weight.detach() for part in parts]))
        self.together.bias = nn.Parameter(torch.cat([part.bias.detach() for part in parts]))
        self.attended, self.intermediate, self.output = layer.attention.output, layer.intermediate, layer.output

    def forward(
        self, hidden: torch.Tensor, places: torch.Tensor, slots: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        rows, length = slots.shape
        rectangle = self.together(hidden)[0].index_select(0, slots.reshape(-1))
        query, key, value = rectangle.view(rows, length, 3, self.heads, self.head_size).permute(2, 0, 3, 1, 4).unbind(0)
        if self.only_first:
            query, hidden = query[:, :, :1], hidden[:, slots[:, 0]]
        context = F.scaled_dot_product_attention(query, key, value, attn_mask=bias).transpose(1, 2)
        context = context.reshape(-1, self.heads * self.head_size)
        if not self.only_first:
            context = context.index_select(0, places)
        attended = self.attended(context[None], hidden)
        result: torch.Tensor = self.output(self.intermediate(attended), attended)
        return result
