"""Request and response as pydantic models, for the peers whose documentation asks for them."""

from __future__ import annotations

from pydantic import BaseModel


class Row(BaseModel):
    """A body."""

    title: str = ""
    description: str = ""


class Answer(BaseModel):
    """An answer to one row."""

    prediction: str
    probabilities: dict[str, float]
    label: str
    confidence: float
    decision: str


class Answers(BaseModel):
    """A response."""

    results: list[Answer]
