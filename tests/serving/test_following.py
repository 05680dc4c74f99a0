"""Following an alias: what is announced, what happens while MLflow is away, and what a start without it may take."""

import logging
import shutil

import pytest

from madewithml import errors
from madewithml.serving import following, last_good, pointer

FIRST = pointer.Target("run-1", "/models/1", "1")
SECOND = pointer.Target("run-2", "/models/2", "2")
ADDRESS = "models:/shop@champion"


class Alias:
    """Points where it is told to, or is away."""

    def __init__(self):
        self.target = FIRST

    def __call__(self):
        if self.target is None:
            raise ConnectionError("nobody there")
        return self.target


@pytest.fixture
def alias():
    return Alias()


@pytest.fixture
def where(tmp_path):
    return pointer.Pointer.create(tmp_path, FIRST)


@pytest.fixture
def accepted():
    return []


@pytest.fixture
def follower(alias, where, accepted):
    return following.Follower(alias, where, interval_s=2.0, on_accepted=accepted.append)


class TestLook:
    def test_nothing_is_announced_while_the_alias_stays(self, follower, where):
        follower.look()

        assert where.wanted() is None

    def test_a_moved_alias_is_announced_once_with_the_next_number(self, follower, where, alias):
        alias.target = SECOND
        follower.look()
        follower.look()

        assert where.wanted() == pointer.Target("run-2", "/models/2", "2", seq=1)

    def test_moving_back_to_what_answers_needs_no_trial(self, follower, where, alias):
        alias.target = SECOND
        follower.look()
        alias.target = FIRST
        follower.look()

        assert where.accepted().same_as(FIRST)
        assert where.accepted().seq == where.wanted().seq == 2

    def test_what_the_replicas_accepted_is_handed_on_for_the_next_start(self, follower, where, alias, accepted):
        alias.target = SECOND
        follower.look()
        where.accept(where.wanted())
        follower.look()

        assert [target.run_id for target in accepted] == ["run-2"]

    def test_a_refusal_is_a_warning_with_the_reasons_once(self, follower, where, alias, caplog):
        alias.target = SECOND
        follower.look()
        where.refuse(where.wanted(), ["too slow"], {})
        with caplog.at_level(logging.WARNING):
            follower.look()
            follower.look()

        (line,) = [record.message for record in caplog.records if "refused" in record.message]
        assert line == "run run-2 is refused, run run-1 goes on answering: too slow"


class TestMlflowAway:
    def test_it_waits_longer_each_time_up_to_a_minute(self, follower, alias):
        alias.target = None
        waits = []
        for _ in range(7):
            waits.append(follower.wait_s)
            follower.look()

        assert waits == [2, 4, 8, 16, 32, 60, 60]

    def test_it_warns_and_says_when_it_is_back(self, follower, alias, caplog):
        alias.target = None
        with caplog.at_level(logging.WARNING):
            follower.look()
            alias.target = FIRST
            follower.look()

        assert "run run-1 goes on answering, next look in 4 s: ConnectionError: nobody there" in caplog.text
        assert "the alias can be looked up again" in caplog.text
        assert follower.wait_s == 2

    def test_a_folder_that_has_gone_is_no_end_either(self, follower, alias, where, caplog):
        alias.target = SECOND
        shutil.rmtree(where.folder)
        with caplog.at_level(logging.WARNING):
            follower.look()

        assert "goes on answering" in caplog.text


class TestFirstTarget:
    @pytest.fixture
    def away(self, monkeypatch):
        def resolve():
            raise errors.NotFoundError("MLflow is away.")

        monkeypatch.setattr(following, "resolver", lambda *_: resolve)

    @pytest.fixture
    def settings(self, settings, tmp_path):
        return settings.model_copy(update={"home": tmp_path})

    @pytest.mark.usefixtures("away")
    def test_without_mlflow_and_without_a_record_it_is_an_error(self, settings):
        with pytest.raises(errors.NotFoundError, match=r"^MLflow is away\.$"):
            following.first_target(settings, ADDRESS)

    @pytest.mark.usefixtures("away")
    def test_the_error_names_what_may_be_served_meanwhile(self, settings):
        last_good.record(settings.home, ADDRESS, SECOND)
        with pytest.raises(errors.NotFoundError, match="Run run-2 was served last: --allow-cached serves it meanwhile"):
            following.first_target(settings, ADDRESS)

    @pytest.mark.usefixtures("away")
    def test_what_was_served_last_is_taken_if_allowed(self, settings, caplog):
        last_good.record(settings.home, ADDRESS, SECOND)
        allowed = settings.model_copy(update={"allow_cached": True})
        with caplog.at_level(logging.WARNING):
            assert following.first_target(allowed, ADDRESS) == SECOND

        assert "Serving run run-2, which was served last" in caplog.text

    @pytest.mark.usefixtures("away")
    def test_another_address_has_a_record_of_its_own(self, settings):
        last_good.record(settings.home, "models:/other@champion", SECOND)
        with pytest.raises(errors.NotFoundError, match=r"^MLflow is away\.$"):
            following.first_target(settings, ADDRESS)


class TestLastGood:
    def test_a_damaged_record_counts_as_none(self, tmp_path):
        (tmp_path / last_good.FILE).write_text("{", encoding="utf-8")

        assert last_good.recall(tmp_path, ADDRESS) is None

    def test_a_folder_that_cannot_be_written_is_a_warning(self, tmp_path, caplog):
        (tmp_path / "file").write_text("", encoding="utf-8")
        with caplog.at_level(logging.WARNING):
            last_good.record(tmp_path / "file", ADDRESS, SECOND)

        assert "cannot record" in caplog.text


class TestFollowing:
    @pytest.mark.parametrize("address", [None, "models:/shop/3"])
    def test_what_cannot_move_is_not_followed(self, settings, address):
        with following.following(settings, address, FIRST) as folder:
            assert folder is None

    def test_a_home_that_cannot_be_written_is_a_warning_and_serving_goes_on(self, settings, tmp_path, caplog):
        (tmp_path / "file").write_text("", encoding="utf-8")
        unwritable = settings.model_copy(update={"home": tmp_path / "file"})
        with caplog.at_level(logging.WARNING), following.following(unwritable, ADDRESS, FIRST) as folder:
            assert folder is None

        assert "is not followed" in caplog.text

    def test_the_replicas_get_a_folder_that_goes_with_the_service(self, settings, tmp_path, monkeypatch):
        monkeypatch.setattr(following, "resolver", lambda *_: lambda: FIRST)
        own = settings.model_copy(update={"home": tmp_path})
        with following.following(own, ADDRESS, FIRST) as folder:
            assert pointer.Pointer(folder).accepted() == FIRST
            assert last_good.recall(tmp_path, ADDRESS) == FIRST

        assert not folder.exists()
