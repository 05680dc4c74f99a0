"""A BERT classifier that takes its rows end to end, for export; see `ragged` for what that is good for.

It computes the same logits from the same weights as Transformers' own module, in another order of work: everything but
attention on the tokens alone, without padding; of the last layer only what the head reads, which is the first token of
each row.
"""

from __future__ import annotations

import math
from typing import Any

import torch
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
        self.layers = nn.ModuleList(_RaggedLayer(layer) for layer in layers)
        self.pooler, self.classifier = classifier.bert.pooler, classifier.classifier
        self.eval()

    def forward(  # noqa: PLR0917 - the exporter passes them by position
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        places: torch.Tensor,
        occupants: torch.Tensor,
        owners: torch.Tensor,
        rows: torch.Tensor,
        mask: torch.Tensor,
    ) -> torch.Tensor:
        """Logits, float32 [n, k], of a batch as `ragged.lay_out` gives it."""
        hidden = self.norm(self.words(ids) + self.positions[positions])[None]  # [1, t, width]
        # Rows that share a line of the rectangle do not see each other.
        bias = ((owners[:, :, None] != owners[:, None, :]).float() * MASKED)[:, None]
        for layer in self.layers[:-1]:
            hidden = layer(hidden, occupants, bias, places)
        hidden = self.layers[-1](hidden, rows, ((1.0 - mask.float()) * MASKED)[:, None, None, :])
        pooled = self.pooler.activation(self.pooler.dense(hidden[0]))
        logits: torch.Tensor = self.classifier(pooled)
        return logits


class _RaggedLayer(nn.Module):
    """One layer.

    Attention is written out, with a product each for queries, keys and values: engines know that form and compute it
    as one, without moving the heads in memory. Queries come scaled by one over the root of the head's size.

    Args:
        layer: Transformers' `BertLayer`.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        attention = layer.attention.self
        self.heads, self.head_size = attention.num_attention_heads, attention.attention_head_size
        self.query = _scaled(attention.query, 1.0 / math.sqrt(self.head_size))
        self.key, self.value = attention.key, attention.value
        self.attended, self.intermediate, self.output = layer.attention.output, layer.intermediate, layer.output

    def forward(
        self, hidden: torch.Tensor, occupants: torch.Tensor, bias: torch.Tensor, places: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The tokens after this layer, [1, t, width].

        Args:
            hidden: The tokens before, [1, t, width].
            occupants: Which of them stands at each place of the rectangle, [m, length].
            bias: Added to the scores, [m, 1, 1 or length, length].
            places: Where each token stands in the flat rectangle, [t]; without it only the first token of each line of
                the rectangle is asked for.
        """
        query, key, value = (self._heads(part(hidden), occupants) for part in (self.query, self.key, self.value))
        if places is None:
            query, hidden = query[:, :1], hidden[:, occupants[:, 0]]
        scores = query.permute(0, 2, 1, 3) @ key.permute(0, 2, 3, 1) + bias
        context = (torch.softmax(scores, dim=-1) @ value.permute(0, 2, 1, 3)).permute(0, 2, 1, 3)
        context = context.reshape(-1, self.heads * self.head_size)
        if places is not None:
            context = context.index_select(0, places)
        attended = self.attended(context[None], hidden)
        result: torch.Tensor = self.output(self.intermediate(attended), attended)
        return result

    def _heads(self, tokens: torch.Tensor, occupants: torch.Tensor) -> torch.Tensor:
        """Tokens [1, t, width] in the rectangle: [m, length, heads, head_size]."""
        lines, length = occupants.shape
        return tokens[0].index_select(0, occupants.reshape(-1)).view(lines, length, self.heads, self.head_size)


@torch.no_grad()
def _scaled(linear: nn.Linear, factor: float) -> nn.Linear:
    """A linear layer whose output is multiplied by the factor."""
    scaled = nn.Linear(linear.in_features, linear.out_features)
    scaled.weight.copy_(linear.weight * factor)
    scaled.bias.copy_(linear.bias * factor)
    return scaled
