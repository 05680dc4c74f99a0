"""The folder that says what a service shall run: one writer, many readers, nobody sees half of it."""

import json

import pytest

from madewithml.serving import pointer

FIRST = pointer.Target("run-1", "/models/1", "1")
SECOND = pointer.Target("run-2", "/models/2", "2", promoted="today", seq=1)
THIRD = pointer.Target("run-3", "/models/3", "3", seq=2)


@pytest.fixture
def where(tmp_path):
    return pointer.Pointer.create(tmp_path, FIRST)


def test_a_new_one_has_the_model_of_the_start_accepted_and_nothing_wanted(where):
    assert (where.accepted(), where.wanted(), where.refusal()) == (FIRST, None, None)


def test_what_is_accepted_is_read_by_another_reader(where):
    where.want(SECOND)

    assert where.accept(SECOND) is True
    assert pointer.Pointer(where.folder).accepted() == SECOND


def test_only_what_was_accepted_once_is_known(where):
    where.want(SECOND)
    where.accept(SECOND)

    assert where.was_accepted(FIRST)
    assert where.was_accepted(SECOND)
    assert not where.was_accepted(THIRD)


def test_a_refusal_keeps_reasons_and_report(where):
    where.want(SECOND)
    where.refuse(SECOND, ["too slow"], {"latency_s": 1.0})

    assert where.refusal() == pointer.Refusal(SECOND, ["too slow"], {"latency_s": 1.0})
    assert where.accepted() == FIRST


@pytest.mark.parametrize("verdict", ["accept", "refuse"])
def test_a_verdict_on_what_is_no_longer_wanted_does_not_count(where, verdict):
    where.want(SECOND)
    where.want(THIRD)
    arguments = {"accept": (SECOND,), "refuse": (SECOND, ["slow"], {})}[verdict]

    assert getattr(where, verdict)(*arguments) is False
    assert (where.accepted(), where.refusal()) == (FIRST, None)


def test_one_replica_alone_judges(where):
    assert where.claim(SECOND) is True
    assert pointer.Pointer(where.folder).claim(SECOND) is False
    assert where.claim(THIRD) is True


def test_no_half_written_file_is_left_and_what_is_there_is_plain_json(where):
    where.want(SECOND)

    assert {path.name for path in where.folder.iterdir()} == {"accepted.json", "wanted.json"}
    assert json.loads((where.folder / "wanted.json").read_text(encoding="utf-8"))["run_id"] == "run-2"


def test_it_can_be_removed(where):
    where.remove()

    assert not where.folder.exists()


def test_the_same_model_promoted_again_is_another_wish_for_the_same_model():
    again = pointer.Target("run-2", "/models/2", "2", promoted="tomorrow", seq=5)

    assert not SECOND.same_as(again)
    assert SECOND.is_model_of(again)
    assert SECOND.same_as(pointer.Target("run-2", "/models/2", "2", promoted="today", seq=9))
