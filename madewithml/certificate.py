"""What `certify` hands out, and its JSON form in both directions.

`Certificate` is one level: certified with its evidence, or refused with what is missing. `Certification` is the level
asked for, the ladder around it, and one certificate per predicted label if asked. Loading is strict: the evidence must
bear out the bound, so an edited number does not go unnoticed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from madewithml import errors, risk_control

CERTIFIED = "certified"
REFUSED = "refused"
_REFUSAL_KEYS = ("needed_rows", "expected_coverage", "best_max_risk", "reason")
_ROUNDING = 1e-9
_TRY = "run `madewithml certify` again"


@dataclass(frozen=True)
class Certificate:
    """One level: a threshold with its evidence, or a refusal.

    Attributes:
        status: "certified" or "refused".
        max_risk: The risk that holds, or was asked for.
        confidence_level: At which this certificate holds by itself.
        threshold: A row is accepted if its confidence is at least this, ties included; None if refused.
        temperature: Of the softmax that the confidence comes from.
        num_rows: Certify rows; for one predicted label, those with that label.
        num_accepted: Certify rows accepted; 0 if refused.
        num_errors: Wrong ones among them.
        risk_upper_bound: Exact upper bound of the risk at `confidence_level`: at most `max_risk` if certified, else 1.
        coverage: `num_accepted / num_rows`.
        needed_rows: If refused: fresh labelled rows that would certify `max_risk` with 80 % power, those at hand then
            being tune rows; None where no threshold looks good enough.
        expected_coverage: The coverage to expect then.
        best_max_risk: If refused: smallest risk at which the same procedure would have passed. A guide found by search
            on the same rows, not itself a certificate. None where there is none below 1.
        reason: If refused: why, in words.
    """

    status: str
    max_risk: float
    confidence_level: float
    threshold: float | None
    temperature: float
    num_rows: int
    num_accepted: int
    num_errors: int
    risk_upper_bound: float
    coverage: float
    needed_rows: int | None = None
    expected_coverage: float | None = None
    best_max_risk: float | None = None
    reason: str | None = None

    @property
    def certified(self) -> bool:
        """Whether there is a threshold to rely on."""
        return self.status == CERTIFIED

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; the keys about what is missing are there only if refused."""
        values = dataclasses.asdict(self)
        if self.certified:
            for key in _REFUSAL_KEYS:
                del values[key]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Certificate:
        """The inverse of `to_dict`.

        Raises:
            InputError: A key is missing or unknown, a value has the wrong type, or the evidence contradicts itself.
        """
        if not isinstance(values, Mapping):
            msg = f"a certificate is {type(values).__name__}; expected an object"
            raise errors.InputError(msg)
        optional = _REFUSAL_KEYS if values.get("status") == REFUSED else ()
        _check_keys(values, [f.name for f in dataclasses.fields(cls) if f.name not in _REFUSAL_KEYS], optional)
        _check_types(values)
        loaded = cls(**values)
        _check_evidence(loaded)
        return loaded


@dataclass(frozen=True)
class Certification:
    """All that one call of `certify` found.

    Attributes:
        certificate: The level asked for; also in `levels`.
        levels: The ladder, from the lowest risk up.
        per_class: One certificate per label in index order, for answers with that label; empty if not asked for.
        joint: Whether all levels hold at once at `asked_confidence_level`; else each does by itself.
        asked_confidence_level: As asked; with `joint`, each certificate's own level is higher.
        num_tune_rows: Rows used for the temperature and the thresholds to test.
        num_certify_rows: Rows used for the tests.
    """

    certificate: Certificate
    levels: tuple[Certificate, ...]
    per_class: tuple[Certificate, ...]
    joint: bool
    asked_confidence_level: float
    num_tune_rows: int
    num_certify_rows: int

    @property
    def temperature(self) -> float:
        """Of the softmax, the same for all certificates."""
        return self.certificate.temperature

    def to_dict(self) -> dict[str, Any]:
        """As JSON values: the keys of the certificate asked for, with the rest beside them."""
        return {
            **self.certificate.to_dict(),
            "levels": [level.to_dict() for level in self.levels],
            "per_class": [level.to_dict() for level in self.per_class],
            "joint": self.joint,
            "asked_confidence_level": self.asked_confidence_level,
            "num_tune_rows": self.num_tune_rows,
            "num_certify_rows": self.num_certify_rows,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Certification:
        """The inverse of `to_dict`.

        Raises:
            InputError: As `Certificate.from_dict`, or the certificate asked for is not on the ladder.
        """
        own = [f.name for f in dataclasses.fields(cls) if f.name != "certificate"]
        rest = {key: value for key, value in values.items() if key not in own}
        kept = {key: value for key, value in values.items() if key in own}
        _check_keys(kept, own)
        certificate = Certificate.from_dict(rest)
        kept["levels"] = tuple(Certificate.from_dict(level) for level in kept["levels"])
        kept["per_class"] = tuple(Certificate.from_dict(level) for level in kept["per_class"])
        if certificate not in kept["levels"]:
            msg = f"the certificate for max_risk {certificate.max_risk} is not one of its levels: it was edited"
            raise errors.InputError(msg)
        return cls(certificate=certificate, **kept)


def _check_keys(values: Mapping[str, Any], required: list[str], optional: tuple[str, ...] = ()) -> None:
    known = [*required, *optional]
    for problem, keys in (
        ("is missing", [key for key in required if key not in values]),
        ("is unknown", [key for key in values if key not in known]),
    ):
        if keys:
            msg = f"key {keys[0]!r} {problem} in a certificate; expected {', '.join(known)}: {_TRY}"
            raise errors.InputError(msg)


def _check_types(values: Mapping[str, Any]) -> None:
    """Every field is what its annotation says; a whole number also counts as a float, true and false never do."""
    fields = {f.name: str(f.type).removesuffix(" | None") for f in dataclasses.fields(Certificate)}
    accepted: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (float, int)}
    nullable = ("threshold", *_REFUSAL_KEYS)
    for key, value in values.items():
        good = isinstance(value, accepted[fields[key]]) and not isinstance(value, bool)
        if not good and not (value is None and key in nullable):
            msg = f"{key} of a certificate is {value!r}; expected {fields[key]}"
            raise errors.InputError(msg)


def _check_evidence(loaded: Certificate) -> None:
    """What can be derived from other fields must be what they give; a threshold is there just when it is certified."""
    _check_ranges(loaded)
    bound = risk_control.risk_upper_bound(loaded.num_errors, loaded.num_accepted, 1 - loaded.confidence_level)
    if not math.isclose(loaded.risk_upper_bound, bound, abs_tol=_ROUNDING):
        _contradict(loaded, f"risk_upper_bound is {loaded.risk_upper_bound}, but its counts give {bound}")
    coverage = loaded.num_accepted / max(loaded.num_rows, 1)
    if not math.isclose(loaded.coverage, coverage, abs_tol=_ROUNDING):
        _contradict(loaded, f"coverage is {loaded.coverage}, but its counts give {coverage}")
    if loaded.certified and loaded.risk_upper_bound > loaded.max_risk:
        _contradict(loaded, f"it is certified, but its bound {loaded.risk_upper_bound} is above its max_risk")


def _check_ranges(loaded: Certificate) -> None:
    threshold = loaded.threshold
    if loaded.status not in (CERTIFIED, REFUSED):
        _contradict(loaded, f"status is {loaded.status!r}; expected {CERTIFIED!r} or {REFUSED!r}")
    if not (0 < loaded.max_risk < 1 and 0 < loaded.confidence_level < 1 and 0 < loaded.temperature < math.inf):
        _contradict(loaded, "expected max_risk and confidence_level in (0, 1) and a finite temperature above 0")
    if not 0 <= loaded.num_errors <= loaded.num_accepted <= loaded.num_rows:
        _contradict(loaded, "expected num_errors <= num_accepted <= num_rows")
    if loaded.certified and (threshold is None or not 0 <= threshold <= 1):
        _contradict(loaded, f"it is certified with threshold {threshold!r}; expected a number from 0 to 1")
    if not loaded.certified and threshold is not None:
        _contradict(loaded, f"it is refused, but has threshold {threshold}")


def _contradict(loaded: Certificate, what: str) -> NoReturn:
    msg = f"the certificate for max_risk {loaded.max_risk} cannot be used: {what}: {_TRY}"
    raise errors.InputError(msg)
