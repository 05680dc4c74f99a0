"""Pictures: SVG that stands in a page and on its own, the same every time, for any figures that can occur."""

import re
import xml.etree.ElementTree as ET

import matplotlib as mpl
import numpy as np
import pytest

from madewithml import pictures, selective


def rows(n=300, seed=0):
    """Confidence and correctness of `n` rows, calibrated."""
    generator = np.random.default_rng(seed)
    confidence = generator.beta(5, 1.2, n)
    return confidence, generator.random(n) < confidence


def draw_reliability(confidence, correct, **options):
    bins = selective.reliability_curve(confidence, correct)
    return pictures.reliability(options.get("before"), bins)


def draw_risk(confidence, correct, **options):
    return pictures.risk_coverage(selective.risk_coverage_curve(confidence, correct), **options)


@pytest.fixture(scope="module")
def both():
    confidence, correct = rows()
    before = selective.reliability_curve(np.sqrt(confidence), correct)
    return (
        draw_reliability(confidence, correct, before=before),
        draw_risk(confidence, correct, mark=(0.6, 0.05), max_risk=0.08),
    )


def texts_of(svg):
    return [element.text for element in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


class TestEitherPicture:
    def test_is_one_svg_element_that_parses_as_xml(self, both):
        assert [ET.fromstring(svg).tag for svg in both] == ["{http://www.w3.org/2000/svg}svg"] * 2

    def test_is_the_same_bytes_for_the_same_figures(self, both):
        confidence, correct = rows()
        again = draw_risk(confidence, correct, mark=(0.6, 0.05), max_risk=0.08)
        assert again == both[1]

    def test_has_no_date_style_or_size_of_its_own(self, both):
        for svg in both:
            root = ET.fromstring(svg)
            assert "metadata" not in svg
            assert "<style" not in svg
            assert (root.get("width"), root.get("height")) == (None, None)
            assert root.get("viewBox") == "0 0 403.2 295.2"

    def test_shares_no_id_with_the_other(self, both):
        ids = [set(re.findall(r' id="([^"]+)"', svg)) for svg in both]
        assert ids[0].isdisjoint(ids[1])

    def test_refers_only_to_ids_it_has(self, both):
        for svg in both:
            used = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', svg))
            assert {name for pair in used for name in pair if name} == set(re.findall(r' id="([^"]+)"', svg))

    def test_takes_its_colours_from_the_page_with_a_fallback(self, both):
        for svg in both:
            assert "var(--chart-after, #2b88c4)" in svg
            bare = re.sub(r"var\(--chart-[a-z]+, #[0-9a-f]{6}\)", "", svg)
            assert re.findall(r"(?:fill|stroke): #[0-9a-f]{6}", bare) == []

    def test_keeps_its_words_as_text(self, both):
        assert {"confidence", "before calibration", "after calibration", "rows"} <= set(texts_of(both[0]))
        assert {"threshold in use", "certified: at most 8\u202f%"} <= set(texts_of(both[1]))

    def test_says_in_words_what_it_shows(self, both):
        labels = [ET.fromstring(svg).get("aria-label") for svg in both]
        assert labels[0].startswith("Reliability diagram: ")
        assert labels[1].endswith("This model answers 60\u202f%, 5\u202f% of it wrong.")

    def test_leaves_the_settings_of_matplotlib_as_they_were(self):
        before = dict(mpl.rcParams)
        draw_risk(*rows(20))
        assert dict(mpl.rcParams) == before

    @pytest.mark.parametrize("draw", [draw_reliability, draw_risk])
    @pytest.mark.parametrize(
        ("confidence", "correct"),
        [([1.0], [True]), ([0.0], [False]), ([0.7] * 5, [True] * 5), ([0.7, 0.9], [False, False])],
        ids=["one right row", "one wrong row", "all the same", "all wrong"],
    )
    def test_can_be_drawn_of_the_least_rows(self, draw, confidence, correct):
        assert ET.fromstring(draw(confidence, correct)) is not None

    @pytest.mark.parametrize("draw", [draw_reliability, draw_risk])
    def test_stays_small_for_very_many_rows(self, draw):
        assert len(draw(*rows(50_000))) < 400_000


class TestReliability:
    def test_without_a_before_has_one_series_named_as_served(self):
        words = texts_of(draw_reliability(*rows()))
        assert "as served" in words
        assert "before calibration" not in words

    def test_describes_each_bin_that_has_rows(self):
        svg = draw_reliability([0.95, 0.95, 0.5], [True, False, True])
        described = ET.fromstring(svg).get("aria-label")
        assert described == (
            "Reliability diagram: 100\u202f% right at 50\u202f% confidence (1 row); "
            "50\u202f% right at 95\u202f% confidence (2 rows)"
        )


class TestRiskCoverage:
    def test_without_a_mark_or_a_certificate_names_neither(self):
        words = texts_of(draw_risk(*rows()))
        assert "threshold in use" not in words
        assert not [word for word in words if word.startswith("certified")]

    def test_draws_the_curve_before_calibration_where_it_is_given(self):
        confidence, correct = rows()
        before = selective.risk_coverage_curve(confidence[::-1], correct)
        assert "before calibration" in texts_of(draw_risk(confidence, correct, before=before))
