"""What a body may be: every bad one is told what is wrong and where, and nothing but rows comes out of a good one."""

import json
import time

import hypothesis
import pytest
from hypothesis import strategies as st

from madewithml import errors
from madewithml.serving import schemas

SCHEMA = schemas.RequestSchema(["title", "description"], max_rows=3)
EXPECTED_SHAPE = "expected one object with title, description, or a list of such objects"

MALFORMED = {
    "nothing": (b"", "EOF while parsing a value at line 1 column 0"),
    "white space": (b" \n", "EOF while parsing a value at line 2 column 0"),
    "a bare word": (b"title=CNNs", "expected ident at line 1 column 2"),
    "a form": (b"--x\r\n\r\nCNNs", "invalid number at line 1 column 2"),
    "single quotes": (b"{'title': 'CNNs'}", "key must be a string at line 1 column 2"),
    "a cut object": (b'{"title": "CNNs"', "EOF while parsing an object at line 1 column 16"),
    "a cut list": (b'[{"title": "CNNs"}', "EOF while parsing a list at line 1 column 18"),
    "a comma too many": (b'{"title": "CNNs",}', "trailing comma at line 1 column 18"),
    "two documents": (b'{"title": "CNNs"} {}', "trailing characters at line 1 column 19"),
    "a fault in the second line": (b'{"title":\n oops}', "at line 2 column 2"),
    "a lone high surrogate": (rb'{"title": "\ud83d"}', "at line 1 column 18"),
    "a lone low surrogate": (rb'{"title": "\ude00 x"}', "lone leading surrogate in hex escape at line 1 column 17"),
    "a lone surrogate as a key": (rb'{"\ud800": "CNNs"}', "at line 1 column 9"),
    "a raw NUL byte": (b'{"title": "a\x00b"}', "control character (\\u0000-\\u001F) found while parsing a string"),
    "invalid UTF-8": (b'{"title": "\xff"}', "invalid unicode code point at line 1 column 12"),
    "an encoded surrogate": (b'{"title": "\xed\xa0\x80"}', "invalid unicode code point at line 1 column 12"),
    "a byte order mark": (b'\xef\xbb\xbf{"title": "CNNs"}', "expected value at line 1 column 1"),
    "UTF-16": ('{"title": "CNNs"}'.encode("utf-16"), "expected value at line 1 column 1"),
    "deeply nested lists": (b"[" * 100_000, "recursion limit exceeded"),
    "deeply nested objects": (b'{"title":' * 100_000, "recursion limit exceeded"),
    "a deep value": (b'{"title": ' + b"[" * 250 + b"]" * 250 + b"}", "recursion limit exceeded"),
    "an integer of 10,000 digits": (b'{"title": ' + b"9" * 10_000 + b"}", "number out of range"),
}

OF_ANOTHER_SHAPE = {
    "null": b"null",
    "a text": b'"CNNs"',
    "an integer": b"1",
    "a number": b"1.5",
    "a boolean": b"true",
    "NaN": b"NaN",
    "infinity": b"-Infinity",
}

# What is wrong in a body that is JSON: location and message of every fault, in order.
INVALID = {
    "an empty object": (b"{}", [([], "row 0 has no text: fill at least one of title, description")]),
    "empty text": (
        b'{"title": "", "description": ""}',
        [([], "row 0 has no text: fill at least one of title, description")],
    ),
    "blank text": (
        b'{"title": " \\t\\n", "description": "\\u00a0"}',
        [([], "row 0 has no text: fill at least one of title, description")],
    ),
    "null texts": (b'{"title": null}', [([], "row 0 has no text: fill at least one of title, description")]),
    "two rows without text": (
        b'[{}, {"title": "CNNs"}, {"title": ""}]',
        [
            ([0], "row 0 has no text: fill at least one of title, description"),
            ([2], "row 2 has no text: fill at least one of title, description"),
        ],
    ),
    "an unknown field": (
        b'{"title": "CNNs", "body": "x"}',
        [(["body"], "unknown field 'body': expected title, description")],
    ),
    "an unknown field in a list": (
        b'[{"title": "a"}, {"titel": "b"}]',
        [([1, "titel"], "unknown field 'titel': expected title, description")],
    ),
    "an integer as text": (b'{"title": 5}', [(["title"], "'title': Input should be a valid string")]),
    "a number as text": (b'{"title": 0.5}', [(["title"], "'title': Input should be a valid string")]),
    "a huge integer as text": (
        b'{"title": ' + b"9" * 300 + b"}",
        [(["title"], "'title': Input should be a valid string")],
    ),
    "a number beyond doubles as text": (b'{"title": 1e400}', [(["title"], "'title': Input should be a valid string")]),
    "NaN as text": (b'{"title": NaN}', [(["title"], "'title': Input should be a valid string")]),
    "a boolean as text": (b'{"title": true}', [(["title"], "'title': Input should be a valid string")]),
    "a list as text": (b'{"title": ["CNNs"]}', [(["title"], "'title': Input should be a valid string")]),
    "an object as text": (b'{"title": {"a": 1}}', [(["title"], "'title': Input should be a valid string")]),
    "an escaped NUL": (rb'{"title": "a\u0000b"}', [(["title"], "row 0: title contains a NUL character")]),
    "an escaped NUL in a list": (
        rb'[{"title": "a"}, {"description": "\u0000b"}]',
        [([1, "description"], "row 1: description contains a NUL character")],
    ),
    "a list of texts": (b'["CNNs"]', [([0], "expected an object")]),
    "a list of lists": (b"[[]]", [([0], "expected an object")]),
    "a null in a list": (b'[{"title": "CNNs"}, null]', [([1], "expected an object")]),
    "nested lists": (b"[" * 100 + b"]" * 100, [([0], "expected an object")]),
    "faults in two rows": (
        b'[{"title": 5}, {"titel": "x"}]',
        [
            ([0, "title"], "'title': Input should be a valid string"),
            ([1, "titel"], "unknown field 'titel': expected title, description"),
        ],
    ),
}


class TestGoodBodies:
    @pytest.mark.parametrize(
        ("body", "rows"),
        [
            (b'{"title": "a", "description": "b"}', [{"title": "a", "description": "b"}]),
            (b'[{"title": "a"}, {"description": "b"}]', [{"title": "a"}, {"description": "b"}]),
            (b'\r\n\t {"title": "a"} \n', [{"title": "a"}]),
            (b' [{"title": "a"}]', [{"title": "a"}]),
            (b'{"title": null, "description": "b"}', [{"title": None, "description": "b"}]),
            (rb'{"title": "\ud83d\ude00"}', [{"title": "\N{GRINNING FACE}"}]),
            ('{"title": "Überblick über 卷积"}'.encode(), [{"title": "Überblick über 卷积"}]),
        ],
    )
    def test_one_object_or_a_list_becomes_rows(self, body, rows):
        assert rows == SCHEMA.parse(body)

    def test_as_many_rows_as_allowed_are_taken(self):
        assert len(SCHEMA.parse(b'[{"title": "a"}, {"title": "b"}, {"title": "c"}]')) == 3

    def test_of_a_repeated_key_the_last_counts(self):
        """As every common JSON reader has it; what the caller meant cannot be known."""
        assert SCHEMA.parse(b'{"title": "a", "title": "b"}') == [{"title": "b"}]

    def test_the_fields_are_those_of_the_checkpoint(self):
        schema = schemas.RequestSchema(["question"], max_rows=1)

        assert schema.parse(b'{"question": "why"}') == [{"question": "why"}]
        with pytest.raises(errors.InvalidRequestError, match="unknown field 'title': expected question"):
            schema.parse(b'{"title": "why"}')

    def test_the_example_is_a_good_body(self):
        assert [SCHEMA.example()] == SCHEMA.parse(json.dumps(SCHEMA.example()).encode())

    def test_fields_without_a_known_example_get_a_text_too(self):
        schema = schemas.RequestSchema(["question"], max_rows=1)

        assert schema.example() == {"question": "A text to classify."}


class TestBadBodies:
    @pytest.mark.parametrize(("body", "where"), MALFORMED.values(), ids=MALFORMED)
    def test_what_is_not_json_is_told_where(self, body, where):
        with pytest.raises(errors.MalformedBodyError, match="the body is not JSON: ") as caught:
            SCHEMA.parse(body)

        assert caught.value.status == 400
        assert where in caught.value.message

    @pytest.mark.parametrize("body", OF_ANOTHER_SHAPE.values(), ids=OF_ANOTHER_SHAPE)
    def test_json_of_another_shape_is_told_what_was_expected(self, body):
        with pytest.raises(errors.InvalidRequestError, match=EXPECTED_SHAPE) as caught:
            SCHEMA.parse(body)

        assert caught.value.status == 422

    @pytest.mark.parametrize(("body", "faults"), INVALID.values(), ids=INVALID)
    def test_each_fault_is_told_with_its_place(self, body, faults):
        with pytest.raises(errors.InvalidRequestError, match=r"row|field|expected|Input") as caught:
            SCHEMA.parse(body)

        assert caught.value.status == 422
        assert faults == [(fault["location"], fault["message"]) for fault in caught.value.errors]
        assert caught.value.message.startswith(faults[0][1])

    def test_an_empty_list_is_refused(self):
        with pytest.raises(errors.InvalidRequestError, match="the list is empty: send at least one row"):
            SCHEMA.parse(b"[]")

    def test_a_list_too_long_is_told_its_length_and_the_limit(self):
        with pytest.raises(
            errors.InvalidRequestError, match="4 rows in one call, at most 3 allowed: send them in several calls"
        ):
            SCHEMA.parse(json.dumps([{"title": "a"}] * 4).encode())

    def test_the_summary_says_how_many_faults_there_are_more(self):
        with pytest.raises(errors.InvalidRequestError, match=r"row 0 has no text.*\(and 2 more\)$"):
            SCHEMA.parse(b"[{}, {}, {}]")

    def test_no_more_than_twenty_faults_are_named(self):
        schema = schemas.RequestSchema(["title"], max_rows=100)
        with pytest.raises(errors.InvalidRequestError, match=r"\(and 49 more\)$") as caught:
            schema.parse(json.dumps([{"title": 1}] * 50).encode())

        assert len(caught.value.errors) == 20

    def test_a_long_key_is_not_sent_back_whole(self):
        with pytest.raises(errors.InvalidRequestError, match="unknown field 'kkk") as caught:
            SCHEMA.parse(json.dumps({"k" * 10_000: "x"}).encode())

        assert caught.value.errors[0]["location"][0] == "k" * 100
        assert len(caught.value.message) < 200

    @pytest.mark.parametrize(
        ("body", "told"),
        [
            (b"[" + b"1," * 1_000_000 + b"1]", "1000001 rows in one call, at most 3 allowed"),
            (b"[" + b"{}," * 1_000_000 + b"{}]", "1000001 rows in one call, at most 3 allowed"),
            (
                b"{" + b",".join(b'"%d":1' % key for key in range(300_000)) + b"}",
                "300000 faults, too many to name: expected title, description and nothing else in a row",
            ),
        ],
        ids=["integers", "objects", "keys"],
    )
    def test_a_body_of_very_many_faults_does_not_hold_up_the_event_loop(self, body, told):
        """Listing all of them took fifteen seconds; the bound leaves room for a busy machine."""
        started = time.process_time()
        with pytest.raises(errors.InvalidRequestError, match=told):
            SCHEMA.parse(body)

        assert time.process_time() - started < 2


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: (
        st.lists(children, max_size=5)
        | st.dictionaries(st.sampled_from(["title", "description"]) | st.text(), children, max_size=4)
    ),
    max_leaves=12,
)


def parsed(body):
    """Rows, or the refusal."""
    try:
        return SCHEMA.parse(body)
    except errors.RequestError as err:
        return err


def rows_or_refusal(body):
    """What became of a body, after checking that it is rows to work on or a refusal that says what is wrong."""
    outcome = parsed(body)
    if isinstance(outcome, errors.RequestError):
        assert outcome.status in (400, 422)
        assert outcome.message
        assert all({"location", "message"} == set(fault) for fault in outcome.errors)
        assert json.dumps([outcome.message, outcome.errors], ensure_ascii=False).encode()
        return outcome
    assert 1 <= len(outcome) <= 3
    for row in outcome:
        assert set(row) <= {"title", "description"}
        assert all(text is None or isinstance(text, str) for text in row.values())
        assert any(text and text.strip() for text in row.values())
        assert "\x00" not in "".join(filter(None, row.values()))
    return outcome


class TestAnyBody:
    @hypothesis.settings(max_examples=300, deadline=None)
    @hypothesis.given(JSON)
    def test_any_json_gives_rows_or_a_refusal(self, value):
        rows_or_refusal(json.dumps(value).encode())

    @hypothesis.settings(max_examples=300, deadline=None)
    @hypothesis.given(st.binary(max_size=200))
    def test_any_bytes_give_rows_or_a_refusal(self, body):
        rows_or_refusal(body)

    @hypothesis.settings(max_examples=200, deadline=None)
    @hypothesis.given(st.binary(max_size=20), st.integers(0, 60))
    def test_a_good_body_with_any_bytes_in_it_gives_rows_or_a_refusal(self, noise, place):
        body = b'[{"title": "Intro to CNNs", "description": "Layers."}]'
        rows_or_refusal(body[:place] + noise + body[place:])

    @hypothesis.settings(max_examples=200, deadline=None)
    @hypothesis.given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1))
    def test_any_text_with_something_in_it_is_read_as_it_was_sent(self, text):
        hypothesis.assume(text.strip() and "\x00" not in text)

        assert [{"title": text}] == rows_or_refusal(json.dumps({"title": text}).encode())


class TestJsonSchema:
    def test_it_names_the_fields_and_forbids_others(self):
        row = SCHEMA.row_schema()

        assert list(row["properties"]) == ["title", "description"]
        assert row["additionalProperties"] is False
