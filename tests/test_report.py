"""The report: one HTML page that says what is known, in words, and loads nothing."""

import dataclasses
import datetime
import html.parser
import re
from pathlib import Path

import numpy as np
import pytest

from madewithml import certify, data, decision, errors, evaluate, report, runs

RUN = "0123456789abcdef"
CREATED = datetime.datetime(2026, 11, 5, 9, 30, tzinfo=datetime.timezone.utc)
SECTIONS = ["certificate", "figures", "thresholds", "calibration", "classes", "hardest"]
VOID = {"meta", "br", "path", "circle", "link", "img", "input"}


class Page(html.parser.HTMLParser):
    """The ids, tags and attributes of a page, and whether its tags balance."""

    def __init__(self, source):
        super().__init__()
        self.ids, self.tags, self.open, self.words = [], [], [], []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.ids.extend(value for name, value in attributes if name == "id")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.ids.extend(value for name, value in attributes if name == "id")

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, text):
        if "style" not in self.open:
            self.words.append(text)

    @property
    def text(self):
        # Not split(): it would take the narrow space before a per cent sign for one between words.
        return re.sub(r"[ \n]+", " ", " ".join(self.words)).strip()


@pytest.fixture(scope="module")
def rows(small_file):
    whole = data.read_labelled(str(small_file), text_fields=("title", "description"), label_field="tag")
    return whole.take(range(40))


def certification(*, max_risk=0.05, num_rows=400, error_rate=0.02, **options):
    """A certification on made-up logits whose confidence is honest: `error_rate` of the rows are wrong, and unsure."""
    generator = np.random.default_rng(0)
    true = generator.integers(0, 4, num_rows)
    logits = np.eye(4)[true] * 4 + generator.normal(0, 0.3, (num_rows, 4))
    wrong = generator.random(num_rows) < error_rate
    logits[wrong] = np.eye(4)[(true[wrong] + 1) % 4] * 1.5
    return certify.certify(logits, true, max_risk=max_risk, **options)


def certified_policy(found, **options):
    extra = {"labels": ["not", "shown"], "dataset": "calibration.csv", "data_sha256": "ab" * 32, "date": "2026-11-04"}
    values = {
        "threshold": found.certificate.threshold or 0.9,
        "temperature": found.temperature,
        "source": "certificate",
    }
    return decision.DecisionPolicy(**{**values, **options}, certificates={**found.to_dict(), **extra})


def render(predictor, rows, policy, **sources):
    given = {"run_id": RUN, "dataset": "test.csv", "created": CREATED, **sources}
    return report.render(dataclasses.replace(predictor, policy=policy), rows, report.Sources(**given))


@pytest.fixture(scope="module")
def plain(predictor, rows):
    """The page of a policy without a certificate."""
    return render(predictor, rows, decision.DecisionPolicy(threshold=0.3))


@pytest.fixture(scope="module")
def certified(predictor, rows):
    """The page of a certified policy that lets everything through."""
    return render(predictor, rows, certified_policy(certification()))


class TestPage:
    def test_has_every_section_in_order(self, plain):
        assert [name for name in Page(plain).ids if name in SECTIONS] == SECTIONS

    def test_names_run_data_date_and_model(self, plain, predictor):
        text = Page(plain).text
        assert f"Run {RUN} , judged on 40 rows (test.csv), 5 November 2026, 09:30 UTC ." in text
        assert ", ".join(predictor.classes) in text
        assert "title, description, up to" in text
        assert "torch, fp32" in text

    def test_balances_its_tags_and_repeats_no_id(self, certified):
        page = Page(certified)
        assert page.open == []
        assert len(page.ids) == len(set(page.ids))

    def test_loads_nothing_and_runs_nothing(self, certified):
        page = Page(certified)
        assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object", "embed", "base"}
        assert [value for _, a in page.tags for name, value in a.items() if name in ("src", "action", "srcset")] == []
        links = [value for _, a in page.tags for name, value in a.items() if name.endswith("href")]
        assert [link for link in links if not link.startswith("#")] == []
        assert re.findall(r"url\(\s*[\"']?(?!#)[^)]*\)|@import", certified) == []
        # Names of XML vocabularies, which no browser opens, are all that is left.
        assert set(re.findall(r"https?://[^\"' ]+", certified)) == {
            "http://www.w3.org/2000/svg",
            "http://www.w3.org/1999/xlink",
        }

    def test_forbids_loading_by_policy_too(self, certified):
        policies = [a["content"] for tag, a in Page(certified).tags if a.get("http-equiv") == "Content-Security-Policy"]
        assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]

    def test_knows_light_dark_phone_and_print(self, plain):
        for rule in ("prefers-color-scheme: dark", "max-width: 46rem", "@media print", 'name="viewport"'):
            assert rule in plain

    def test_is_the_same_for_the_same_input(self, predictor, rows, plain):
        assert render(predictor, rows, decision.DecisionPolicy(threshold=0.3)) == plain

    def test_has_both_pictures(self, plain):
        described = [a["aria-label"].split(":")[0] for tag, a in Page(plain).tags if a.get("role") == "img"]
        assert described == ["Risk-coverage curve", "Reliability diagram"]

    def test_escapes_text_and_labels_of_the_data(self, predictor, rows):
        evil = "<script>alert('x')</script>"
        poisoned = data.LabelledText(
            [{"title": evil, "description": ""}, *rows.rows[1:]], [evil, *rows.texts[1:]], rows.labels
        )
        small = poisoned.take(range(8))  # few enough that every row is among the hardest
        page = render(predictor, small, decision.DecisionPolicy(), dataset="<b>file</b>.csv", notes=("<i>note</i>",))
        assert "<script" not in page
        assert "&lt;script&gt;alert(" in page
        assert "&lt;b&gt;file&lt;/b&gt;.csv" in page
        assert "&lt;i&gt;note&lt;/i&gt;." in page

    def test_shows_the_table_of_thresholds_with_its_own_marked(self, plain, predictor, rows):
        table = plain[plain.index('id="threshold-table"') :].split("</table>")[0]
        marked = [Page(row).text for row in re.findall(r'<tr class="in-use">.*?</tr>', table)]
        assert len(marked) == 1
        assert marked[0].startswith("0.30 in use ")
        assert table.count("<tr") == 1 + len(evaluate.THRESHOLDS) + 1

    def test_shows_every_class_and_slice(self, predictor, rows):
        page = render(predictor, rows, decision.DecisionPolicy(), slices={"asks": r"\?"})
        per_class = Page(page[page.index('<table id="per-class"') :].split("</table>")[0]).text
        slices = Page(page[page.index('<table id="slices"') :].split("</table>")[0]).text
        assert [name for name in predictor.classes if name not in per_class] == []
        assert [name for name in ("short_text", "mentions_llm", "asks") if name not in slices] == []

    def test_confusion_matrix_holds_every_row_once(self, plain):
        matrix = plain[plain.index('id="confusion-matrix"') :].split("</table>")[0]
        cells = re.findall(r'<td(?: style="[^"]*"| class="zero")>(\d+)</td>', matrix)
        assert (len(cells), sum(map(int, cells))) == (16, 40)

    def test_says_so_where_nothing_is_let_through(self, predictor, rows):
        text = Page(render(predictor, rows, decision.DecisionPolicy(threshold=1.0))).text
        assert "nothing was let through" in text


class TestCertificate:
    def test_none_says_that_nobody_tested_the_threshold_and_how_to(self, plain):
        text = Page(plain).text
        assert "No certificate Nobody has tested this threshold yet." in text
        assert f"madewithml certify --run-id {RUN}" in text

    def test_certified_says_what_it_promises_with_its_evidence(self, certified):
        found, text = certification().certificate, Page(certified).text
        assert found.certified
        assert "Certified Of the answers this model lets through, at most 5\u202f% are wrong." in text
        assert "with 95\u202f% confidence" in text
        assert f"tested on {found.num_rows} rows with known labels" in text
        assert f"It let {found.num_accepted} answers through. {found.num_errors} of them" in text
        assert f"the true share is at most {report.percent(found.risk_upper_bound)}" in text
        assert "not true at most 1 time in 20" in text

    def test_certified_says_what_it_does_not_promise(self, certified):
        text = Page(certified).text
        assert "What it does not promise That any one answer is right." in text
        assert "inputs of another kind" in text

    def test_certified_shows_the_ladder_and_what_is_recorded(self, certified):
        text = Page(certified).text
        assert "Each level holds by itself with 95\u202f% confidence" in text
        assert "dataset calibration.csv" in text
        assert "abababababababab…" in text
        assert "certified: at most 5\u202f%" in text

    def test_joint_levels_are_said_to_hold_at_once(self, predictor, rows):
        text = Page(render(predictor, rows, certified_policy(certification(num_rows=900, joint=True)))).text
        assert "All levels hold at once with 95\u202f% confidence." in text
        assert "This holds with 98.8\u202f% confidence" in text

    def test_label_by_label_lists_each_label(self, predictor, rows):
        found = certification(num_rows=900, max_risk=0.1, per_class=True)
        thresholds = {name: c.threshold for name, c in zip(predictor.classes, found.per_class, strict=True)}
        text = Page(render(predictor, rows, certified_policy(found, class_thresholds=thresholds))).text
        assert "Certified label by label" in text
        assert "a threshold for each label (certificate)" in text
        assert "The table applies one threshold to all labels; the policy also has thresholds per label" in text

    def test_refused_says_why_and_what_would_help(self, predictor, rows):
        found = certification(num_rows=100, max_risk=0.03)
        asked = found.certificate
        text = Page(render(predictor, rows, certified_policy(found, source="default"))).text
        assert not asked.certified
        assert "Certificate refused At most 3\u202f% wrong answers could not be promised." in text
        assert asked.reason in text
        assert f"About {asked.needed_rows:,} fresh labelled rows would certify 3\u202f%" in text
        assert f"{report.percent(asked.best_max_risk)} is about the lowest risk within reach" in text
        assert "certified: at most" not in text

    def test_refused_for_good_says_that_rows_would_not_help(self, predictor, rows):
        found = certification(error_rate=0.5, max_risk=0.01)
        stripped = dataclasses.replace(found.certificate, needed_rows=None, best_max_risk=None, expected_coverage=None)
        found = dataclasses.replace(found, certificate=stripped, levels=(stripped,))
        text = Page(render(predictor, rows, certified_policy(found, source="default"))).text
        assert "More rows alone would not" in text

    def test_another_threshold_than_the_certified_one_comes_without_a_promise(self, predictor, rows):
        policy = certified_policy(certification()).with_threshold(0.25, source="operator")
        text = Page(render(predictor, rows, policy)).text
        assert "Certificate not in use The threshold in use is not the certified one." in text
        assert "certified: at most" not in text

    def test_an_edited_certificate_is_refused(self, predictor, rows):
        policy = certified_policy(certification())
        edited = dataclasses.replace(policy, certificates={**policy.certificates, "risk_upper_bound": 0.001})
        with pytest.raises(errors.InputError, match=r"risk_upper_bound is 0\.001, but its counts give"):
            render(predictor, rows, edited)

    def test_more_errors_than_certified_are_pointed_out(self, predictor, rows):
        policy = certified_policy(certification(), threshold=0.0)
        wrong = data.LabelledText(rows.rows, rows.texts, [other(predictor, label) for label in rows.labels])
        assert "too rarely to blame on luck" in Page(render(predictor, wrong, policy)).text


def other(predictor, label):
    return predictor.classes[(predictor.classes.index(label) + 1) % len(predictor.classes)]


class TestFigures:
    def scored(self):
        probabilities = np.array([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.45, 0.55], [0.4, 0.6]])
        rows = data.LabelledText(
            [{"title": str(i)} for i in range(5)], ["a  b", "c " * 400, "d", "e", "f"], ["x", "y", "x", "y", "x"]
        )
        policy, logits = decision.DecisionPolicy(threshold=0.58), np.log(probabilities).astype(np.float32)
        true = np.array([0, 1, 0, 1, 0])
        return evaluate.Scored(rows, true, logits, policy.decide(logits, ["x", "y"]))

    def test_hardest_rows_are_the_surest_wrong_ones_then_the_least_sure(self):
        wrong, unsure = report.hardest_rows(self.scored(), ["x", "y"])
        assert [row.text[:1] for row in wrong] == ["d", "c", "f"]
        assert [row.text for row in unsure] == ["e", "a b"]
        assert (wrong[0].true, wrong[0].label, wrong[0].accepted) == ("x", "y", True)
        assert wrong[0].confidence == pytest.approx(0.8)
        assert not unsure[0].accepted

    def test_long_texts_are_cut(self):
        wrong, _ = report.hardest_rows(self.scored(), ["x", "y"])
        assert len(wrong[1].text) <= report.TEXT_LENGTH
        assert wrong[1].text.endswith("c…")

    def test_answers_are_counted_by_label(self):
        assert report.answers_by_label(self.scored(), ["x", "y"]) == {
            "x": {"accepted": 2, "wrong": 1},
            "y": {"accepted": 2, "wrong": 2},
        }

    def test_mix_ups_are_the_errors_by_frequency(self):
        matrix = {"labels": ["a", "b", "c"], "counts": [[9, 2, 0], [0, 9, 5], [1, 0, 9]]}
        assert report.mix_ups(matrix) == [("b", "c", 5), ("a", "b", 2), ("c", "a", 1)]

    @pytest.mark.parametrize(
        ("risk", "max_risk", "expected"),
        [(None, 0.05, None), (0.1, None, None), (0.05, 0.05, None), (0.2, 0.1, 1 - 0.9**10 - 10 * 0.1 * 0.9**9)],
    )
    def test_luck_is_the_chance_of_as_many_errors_if_the_promise_holds(self, risk, max_risk, expected):
        served = {"risk": risk, "num_errors": 2, "num_accepted": 10}
        assert report.chance_of_errors(served, max_risk) == (expected if expected is None else pytest.approx(expected))

    @pytest.mark.parametrize(("value", "expected"), [(0.9, "0.90"), (0.87654, "0.8765"), (1.0, "1.00"), (0.95, "0.95")])
    def test_thresholds_have_two_to_four_decimals(self, value, expected):
        assert report.threshold(value) == expected

    @pytest.mark.parametrize(("value", "expected"), [(0.0512, "5.1\u202f%"), (1.0, "100\u202f%"), (None, "\u2013")])
    def test_shares_are_percentages(self, value, expected):
        assert report.percent(value) == expected


class TestWriteReport:
    def test_judges_by_the_runs_own_test_rows(self, trained, settings, tmp_path):
        output = tmp_path / "report.html"
        report.write_report(trained.run_id, output, settings)
        page = Page(output.read_text(encoding="utf-8"))
        count = len(runs.connect(settings).recorded_rows(trained.run_id, "test"))
        assert f"Run {trained.run_id} , judged on {count} rows (test rows of the run)" in page.text
        assert "flatter" not in page.text

    def test_says_when_the_rows_of_a_file_were_used_before(self, trained, settings, small_file, tmp_path):
        output = tmp_path / "report.html"
        report.write_report(trained.run_id, output, settings, dataset_loc=str(small_file), label_field="tag")
        text = Page(output.read_text(encoding="utf-8")).text
        splits = runs.connect(settings).read_splits(trained.run_id)
        fitted = int(splits["split"].isin(["train", "validation"]).sum())
        assert f"({small_file})" in text
        assert f"{fitted} of {len(splits)} rows were used in fitting the model, so these figures flatter it." in text
        assert "are calibration rows of the run" in text

    def test_rows_seen_before_are_unknown_where_the_run_recorded_none(self, rows):
        class Unrecorded:
            def recorded_hashes(self, run_id):
                return None

        assert report.seen_before(rows, Unrecorded(), RUN) == []

    def test_a_missing_folder_is_named_before_any_work(self, settings, tmp_path):
        with pytest.raises(errors.InputError, match=r"no folder '.*nowhere' to write 'report.html' into"):
            report.write_report("no such run", tmp_path / "nowhere" / "report.html", settings)

    def test_a_folder_as_output_is_refused(self, settings, tmp_path):
        with pytest.raises(errors.InputError, match="is a folder; expected the name of an HTML file"):
            report.write_report("no such run", tmp_path, settings)

    def test_a_file_that_cannot_be_written_is_named(self, trained, settings):
        with pytest.raises(errors.InputError, match="cannot write '/dev/full': No space left on device"):
            report.write_report(trained.run_id, Path("/dev/full"), settings)

    def test_a_name_that_no_file_can_have_is_refused_before_any_work(self, settings, tmp_path):
        with pytest.raises(errors.InputError, match=r"cannot write '.*': File name too long"):
            report.write_report("no such run", tmp_path / ("x" * 300), settings)

    def test_an_unknown_run_is_named(self, trained, settings, tmp_path):
        with pytest.raises(errors.NotFoundError, match="no run 'unknown'"):
            report.write_report("unknown", tmp_path / "report.html", settings)
