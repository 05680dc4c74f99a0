"""`madewithml report`: how far one run can be trusted, as one self-contained HTML page.

    recorded test rows, or --dataset-loc -> evaluate.score -> evaluate.document, pictures, the rows to look at
    these and the checkpoint's decision policy -> templates/report.html.j2 -> one file

The page loads nothing and runs nothing: styles and pictures are in it. It quotes rows of the data set.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from madewithml import (
    __version__,
    calibration,
    certificate,
    config,
    data,
    decision,
    errors,
    evaluate,
    pictures,
    predict,
    runs,
    selective,
    texts,
)

if TYPE_CHECKING:
    import jinja2

TEMPLATE = "report.html.j2"
TEST_ROWS = "test rows of the run"
HARDEST = 8
TEXT_LENGTH = 280
MIX_UPS = 5
NOTHING = "\u2013"

_CERTIFICATION_KEYS = frozenset(
    field.name for cls in (certificate.Certificate, certificate.Certification) for field in dataclasses.fields(cls)
) - {"certificate"}


@dataclass(frozen=True)
class HardRow:
    """A row worth reading.

    Attributes:
        text: The model's input, cut to `TEXT_LENGTH` characters.
        true: The true class.
        label: What the model says.
        confidence: How sure it is.
        accepted: Whether the policy lets the answer through.
    """

    text: str
    true: str
    label: str
    confidence: float
    accepted: bool


@dataclass(frozen=True)
class Sources:
    """What a page is about, beside model and rows.

    Attributes:
        run_id: The run.
        dataset: What to call the rows.
        created: When the page was made.
        slices: Extra slices, name to regular expression over the text.
        notes: Caveats about the rows, one sentence each.
    """

    run_id: str
    dataset: str
    created: datetime.datetime
    slices: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


def write_report(
    run_id: str, output: Path, settings: config.Settings, *, dataset_loc: str | None = None, label_field: str = "tag"
) -> None:
    """Write the page for a run's best checkpoint.

    Args:
        run_id: The run.
        output: The HTML file to write; one that is there is replaced.
        settings: Where the run is, and extra slices.
        dataset_loc: Labelled rows; None takes the test rows that the run recorded.
        label_field: Column with the label, in `dataset_loc`.

    Raises:
        InputError: The file cannot be written there, or the rows cannot be used.
        NotFoundError: No such run, or it recorded no test rows and no file was given.
        CheckpointError: The checkpoint or its decision policy is damaged or foreign.
    """
    _check_output(output)
    store = runs.connect(settings)
    predictor = predict.TorchPredictor.from_checkpoint(store.best_checkpoint(run_id))
    if dataset_loc is None:
        rows = store.recorded_rows(run_id, "test")
    else:
        fields = predictor.checkpoint.metadata.text_fields
        rows = data.read_labelled(dataset_loc, text_fields=fields, label_field=label_field)
    sources = Sources(
        run_id=run_id,
        dataset=dataset_loc or TEST_ROWS,
        created=datetime.datetime.now(tz=datetime.timezone.utc),
        slices=settings.slices,
        notes=(*rows.notes, *seen_before(rows, store, run_id)),
    )
    page = render(predictor, rows, sources)
    try:
        output.write_text(page, encoding="utf-8")
    except OSError as err:
        raise errors.InputError(f"cannot write {str(output)!r}: {err.strerror}") from err


def seen_before(rows: data.LabelledText, store: runs.Store, run_id: str) -> list[str]:
    """What must be said about rows that the run has used already, found by the hash of their text."""
    recorded = store.recorded_hashes(run_id) or {}
    hashes = {texts.text_sha256(text) for text in rows.texts}
    notes = []
    for parts, consequence in (
        (("train", "validation"), "were used in fitting the model, so these figures flatter it"),
        (("calibration",), "are calibration rows of the run, so these figures do not check its certificate"),
    ):
        count = len(hashes & set().union(*(recorded.get(part, set()) for part in parts)))
        if count:
            notes.append(f"{count} of {len(rows)} rows {consequence}.")
    return notes


def render(predictor: predict.Predictor, rows: data.LabelledText, sources: Sources) -> str:
    """The page as HTML.

    Args:
        predictor: Model and policy the page is about.
        rows: Labelled rows to judge them by.
        sources: Names, date and caveats.

    Raises:
        InputError: A label is not one the model knows, a slice's expression is bad, or the recorded certificate
            contradicts itself.
    """
    scored = evaluate.score(predictor, rows, dataset=sources.dataset)
    figures = evaluate.document(
        predictor, scored, run_id=sources.run_id, dataset=sources.dataset, slices=sources.slices
    )
    certification = read_certification(predictor.policy)
    wrong, unsure = hardest_rows(scored, predictor.classes)
    return _template().render(
        sources=sources,
        version=__version__,
        checkpoint=predictor.checkpoint,
        engine=predictor.engine,
        policy=predictor.policy,
        certification=certification,
        recorded=_recorded(predictor.policy),
        labels=predictor.classes,
        figures=figures,
        answers_by_label=answers_by_label(scored, predictor.classes),
        mix_ups=mix_ups(figures["confusion_matrix"]),
        wrong=wrong,
        unsure=unsure,
        reliability=_reliability(figures),
        risk_coverage=_risk_coverage(scored, figures, _certified_risk(predictor.policy, certification)),
        luck=chance_of_errors(figures["policy"], _certified_risk(predictor.policy, certification)),
    )


def read_certification(policy: decision.DecisionPolicy) -> certificate.Certification | None:
    """What `madewithml certify` found, or None if the policy was never certified.

    Raises:
        InputError: It contradicts itself.
    """
    if policy.certificates is None:
        return None
    own = {key: value for key, value in policy.certificates.items() if key in _CERTIFICATION_KEYS}
    return certificate.Certification.from_dict(own)


def hardest_rows(scored: evaluate.Scored, classes: list[str]) -> tuple[list[HardRow], list[HardRow]]:
    """The wrong rows the model was surest of, and of the others those it was least sure of; at most `HARDEST` each."""
    confidence = scored.decisions.confidence
    wrong = [int(i) for i in np.argsort(-confidence, kind="stable") if not scored.correct[i]][:HARDEST]
    unsure = [int(i) for i in np.argsort(confidence, kind="stable") if int(i) not in wrong][:HARDEST]
    return [_hard_row(scored, i, classes) for i in wrong], [_hard_row(scored, i, classes) for i in unsure]


def _hard_row(scored: evaluate.Scored, index: int, classes: list[str]) -> HardRow:
    text = " ".join(scored.rows.texts[index].split())
    return HardRow(
        text=text if len(text) <= TEXT_LENGTH else text[: TEXT_LENGTH - 1].rstrip() + "…",
        true=scored.rows.labels[index],
        label=classes[scored.decisions.label[index]],
        confidence=float(scored.decisions.confidence[index]),
        accepted=bool(scored.decisions.accepted[index]),
    )


def answers_by_label(scored: evaluate.Scored, classes: list[str]) -> dict[str, dict[str, int]]:
    """How many answers with each label were accepted, and how many of those were wrong."""
    return {
        name: {"accepted": int(chosen.sum()), "wrong": int((chosen & ~scored.correct).sum())}
        for index, name in enumerate(classes)
        for chosen in [scored.decisions.accepted & (scored.decisions.label == index)]
    }


def mix_ups(matrix: Mapping[str, Any]) -> list[tuple[str, str, int]]:
    """The most frequent errors, as true class, label and number of rows; at most `MIX_UPS`."""
    counts: npt.NDArray[np.int64] = np.array(matrix["counts"])
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[:MIX_UPS]
    pairs = [divmod(int(flat), len(counts)) for flat in order]
    return [(matrix["labels"][i], matrix["labels"][j], int(counts[i, j])) for i, j in pairs if counts[i, j]]


def _reliability(figures: Mapping[str, Any]) -> str:
    before, after = figures["selective"]["before"], figures["selective"]["after"]
    calibrated = after["temperature"] != before["temperature"]
    return pictures.reliability(before["reliability"] if calibrated else None, after["reliability"])


def _risk_coverage(scored: evaluate.Scored, figures: Mapping[str, Any], max_risk: float | None) -> str:
    before, after = (
        selective.risk_coverage_curve(probabilities.max(axis=1), probabilities.argmax(axis=1) == scored.true)
        for probabilities in (calibration.softmax(scored.logits), scored.decisions.probabilities)
    )
    policy = figures["policy"]
    return pictures.risk_coverage(
        after,
        before=before if policy["temperature"] != 1.0 else None,
        mark=None if policy["risk"] is None else (policy["coverage"], policy["risk"]),
        max_risk=max_risk,
    )


def _certified_risk(policy: decision.DecisionPolicy, certification: certificate.Certification | None) -> float | None:
    """The risk that is promised for the answers of this policy, or None if it promises nothing."""
    return certification.certificate.max_risk if certification and policy.source == "certificate" else None


def chance_of_errors(served: Mapping[str, Any], max_risk: float | None) -> float | None:
    """Where more answers are wrong than promised: how probable as many or more errors are if the promise holds.

    Args:
        served: `evaluate.policy_figures`.
        max_risk: The promised risk; None if there is none.

    Returns:
        A probability; None where nothing is promised or the promise was kept on these rows.
    """
    if max_risk is None or served["risk"] is None or served["risk"] <= max_risk:
        return None
    return float(stats.binom.sf(served["num_errors"] - 1, served["num_accepted"], max_risk))


def _recorded(policy: decision.DecisionPolicy) -> dict[str, str]:
    """What is recorded beside the certificates and not shown elsewhere: which data, when, on which assumption."""
    shown = {*_CERTIFICATION_KEYS, "run_id", "candidate_coverage", "candidate_quantile"}
    beside = {key: value for key, value in (policy.certificates or {}).items() if key not in shown}
    return {key: str(value) for key, value in beside.items() if isinstance(value, (str, int, float))}


def _check_output(output: Path) -> None:
    """Before minutes of work, not after them."""
    if not output.parent.is_dir():
        raise errors.InputError(f"no folder {str(output.parent)!r} to write {output.name!r} into: make it first")
    try:
        is_folder = output.is_dir()
    except OSError as err:
        raise errors.InputError(f"cannot write {str(output)!r}: {err.strerror}") from err
    if is_folder:
        raise errors.InputError(f"{str(output)!r} is a folder; expected the name of an HTML file, such as report.html")


def _template() -> jinja2.Template:
    import jinja2  # late: for this command alone

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("madewithml"),
        autoescape=True,  # texts and labels come from outside
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["zip"] = zip
    environment.filters["percent"] = percent
    environment.filters["decimals"] = decimals
    environment.filters["threshold"] = threshold
    return environment.get_template(TEMPLATE)


def percent(share: float | None) -> str:
    """A share as people read it: 0.0512 is "5.1 %"; a dash for None."""
    return NOTHING if share is None else f"{100 * share:.1f}".removesuffix(".0") + "\u202f%"


def decimals(value: float | None, places: int = 3) -> str:
    """A number with that many decimals; a dash for None."""
    return NOTHING if value is None else f"{value:.{places}f}"


def threshold(value: float) -> str:
    """A threshold with two to four decimals: 0.9 is "0.90", 0.87654 is "0.8765"."""
    whole, _, places = f"{value:.4f}".partition(".")
    return f"{whole}.{places.rstrip('0'):0<2}"
