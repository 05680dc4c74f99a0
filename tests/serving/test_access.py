"""Keys, roles and rates as a client of the app meets them."""

import pytest

from madewithml import errors, keys
from madewithml.serving import access

from .conftest import ROW, Window


@pytest.fixture
def made():
    """A key of each role, with its secret."""
    return {role: keys.create(f"team-{role}", role=role) for role in ("predict", "admin")}


@pytest.fixture
def guarded(make_window, made):
    """An app with both keys."""
    return make_window(keys=tuple(key for _, key in made.values()))


def bearer(secret):
    return {"Authorization": f"Bearer {secret}"}


class TestWithKeys:
    @pytest.mark.parametrize("send", [bearer, lambda secret: {"X-API-Key": secret}])
    def test_a_key_lets_in_by_either_header(self, guarded, made, send):
        assert guarded.post("/predict/", json=ROW, headers=send(made["predict"][0])).status_code == 200

    @pytest.mark.parametrize("path", ["/predict/", "/predict", "/invocations"])
    def test_without_one_nothing_of_the_body_is_read(self, guarded, path):
        response = guarded.post(path, content=b"not JSON")
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["type"] == "urn:madewithml:problem:unauthorized"
        assert "X-API-Key" in response.json()["detail"]

    @pytest.mark.parametrize(
        "headers",
        [
            bearer("mwml_wrong"),
            {"X-API-Key": "mwml_wrong"},
            {"X-API-Key": ""},
            {"Authorization": "Bearer"},
            {"Authorization": "Bearer "},
            {"Authorization": "Basic dXNlcjpwYXNz"},
            {"Authorization": "Bearer \xff\xfe".encode("latin-1")},
        ],
    )
    def test_a_wrong_one_does_not(self, guarded, headers):
        assert guarded.post("/predict/", json=ROW, headers=headers).status_code == 401

    def test_the_hash_of_a_key_is_no_key(self, guarded, made):
        assert guarded.post("/predict/", json=ROW, headers=bearer(made["admin"][1].sha256)).status_code == 401

    def test_under_v2_errors_have_that_protocols_form(self, guarded):
        response = guarded.post("/v2/models/madewithml/infer", json={})
        assert (response.status_code, list(response.json())) == (401, ["error"])

    @pytest.mark.parametrize("path", ["/evaluate/", "/evaluate"])
    def test_an_admins_route_needs_an_admins_key(self, guarded, made, path):
        refused = guarded.post(path, json={"dataset": "projects"}, headers=bearer(made["predict"][0]))
        assert (refused.status_code, refused.json()["type"]) == (403, "urn:madewithml:problem:forbidden")
        allowed = guarded.post(path, json={"dataset": "none"}, headers=bearer(made["admin"][0]))
        assert allowed.status_code == 404

    @pytest.mark.parametrize("path", ["/shadow", "/shadow/"])
    def test_so_does_the_shadows_report(self, guarded, made, path):
        assert guarded.get(path, headers=bearer(made["predict"][0])).status_code == 403
        assert guarded.get(path, headers=bearer(made["admin"][0])).status_code == 404  # there is no shadow model

    def test_what_says_whether_it_is_up_and_how_to_call_it_needs_none(self, guarded):
        statuses = {path: guarded.get(path).status_code for path in access.OPEN if "oauth2" not in path}
        assert set(statuses.values()) == {200}, statuses

    @pytest.mark.parametrize("path", ["/model", "/policy", "/run_id/", "/v2/models/madewithml", "/nowhere"])
    def test_the_rest_needs_one(self, guarded, made, path):
        assert guarded.get(path).status_code == 401
        assert guarded.get(path, headers=bearer(made["predict"][0])).status_code in (200, 404)

    def test_every_route_that_is_named_exists(self, guarded):
        known = {route.path.rstrip("/") or "/" for route in guarded.app.routes}
        assert known >= access.OPEN | {path for _, path in access.ADMIN}

    def test_the_secret_appears_in_no_log_and_no_answer(self, guarded, caplog):
        caplog.set_level("DEBUG")
        response = guarded.post("/predict/", json=ROW, headers=bearer("mwml_do-not-repeat"))
        assert "do-not-repeat" not in caplog.text + response.text


class TestAnonymous:
    def test_on_loopback_without_keys_everything_is_open(self, window):
        assert window.post("/predict/", json=ROW).status_code == 200
        assert window.post("/evaluate/", json={"dataset": "none"}).status_code == 404

    def test_a_key_that_nobody_asked_for_does_no_harm(self, window):
        assert window.post("/predict/", json=ROW, headers=bearer("anything")).status_code == 200

    def test_on_the_network_without_keys_nobody_is_let_in(self, make_window):
        assert make_window(host="0.0.0.0").post("/predict/", json=ROW).status_code == 401

    def test_where_it_is_allowed_anyone_may_predict_but_not_more(self, make_window):
        window = make_window(host="0.0.0.0", allow_anonymous=True)
        assert window.post("/predict/", json=ROW).status_code == 200
        assert window.post("/evaluate/", json={"dataset": "none"}).status_code == 403

    def test_keys_still_count_where_anyone_may_predict(self, make_window, made):
        window = make_window(keys=(made["admin"][1],), allow_anonymous=True)
        assert window.post("/predict/", json=ROW).status_code == 200
        assert window.post("/predict/", json=ROW, headers=bearer("mwml_wrong")).status_code == 401
        assert window.post("/evaluate/", json={"dataset": "none"}, headers=bearer(made["admin"][0])).status_code == 404


class TestTheFile:
    @pytest.fixture
    def path(self, tmp_path):
        return tmp_path / "keys.json"

    @pytest.fixture
    def at_once(self, monkeypatch):
        """The file is looked at for each request."""
        monkeypatch.setattr(access, "LOOK_EVERY_S", 0.0)

    def test_a_new_key_and_a_revoked_one_need_no_restart(self, make_window, path, at_once):
        first, key = keys.create("first")
        keys.add(path, key)
        window = make_window(keys_file=path)
        second, key = keys.create("second")
        assert self.statuses(window, first, second) == [200, 401]
        keys.add(path, key)
        assert self.statuses(window, first, second) == [200, 200]
        keys.revoke(path, "first")
        assert self.statuses(window, first, second) == [401, 200]

    def test_without_a_last_key_the_door_stays_shut(self, make_window, path, at_once):
        secret, key = keys.create("only")
        keys.add(path, key)
        window = make_window(keys_file=path)
        keys.revoke(path, "only")
        assert self.statuses(window, secret) == [401]
        assert window.post("/predict/", json=ROW).status_code == 401

    def test_a_file_that_was_damaged_meanwhile_changes_nothing(self, make_window, path, at_once, caplog):
        secret, key = keys.create("a")
        keys.add(path, key)
        window = make_window(keys_file=path)
        path.write_text("{")
        assert self.statuses(window, secret) == [200]
        assert "the keys stay as they are" in caplog.text

    def test_a_file_that_went_away_takes_its_keys_along(self, make_window, path, at_once):
        secret, key = keys.create("a")
        keys.add(path, key)
        window = make_window(keys_file=path)
        path.unlink()
        assert self.statuses(window, secret) == [401]

    def test_one_that_is_damaged_when_it_first_comes_changes_nothing_either(self, make_window, path, at_once, caplog):
        secret, key = keys.create("a")
        window = make_window(keys=(key,), keys_file=path)
        path.write_text("{")
        assert self.statuses(window, secret) == [200]
        assert "the keys stay as they are" in caplog.text

    def test_two_keys_of_one_name_do_not_lend_each_other_their_roles(self, make_window, path):
        (weak, weak_key), (strong, strong_key) = keys.create("team"), keys.create("team", role="admin")
        keys.add(path, strong_key)
        window = make_window(keys=(weak_key,), keys_file=path)
        asked = [window.get("/shadow", headers=bearer(secret)).status_code for secret in (weak, strong)]
        assert asked == [403, 404]

    def test_a_damaged_file_keeps_it_from_starting(self, make_window, path):
        path.write_text("{")
        with pytest.raises(errors.UsageError, match="no file of keys"):
            make_window(keys_file=path)

    def statuses(self, window, *secrets):
        return [window.post("/predict/", json=ROW, headers=bearer(secret)).status_code for secret in secrets]


class TestRate:
    def test_beyond_its_rate_a_key_is_told_when_to_try_again(self, make_window):
        secret, key = keys.create("slow", rows_per_second=0.5)
        other, other_key = keys.create("other")
        window = make_window(keys=(key, other_key))
        assert window.post("/predict/", json=ROW, headers=bearer(secret)).status_code == 200
        refused = window.post("/predict/", json=ROW, headers=bearer(secret))
        assert (refused.status_code, refused.json()["type"]) == (429, "urn:madewithml:problem:rate_limited")
        assert 1 <= int(refused.headers["retry-after"]) <= 2
        assert window.post("/predict/", json=ROW, headers=bearer(other)).status_code == 200

    def test_rows_count_not_calls(self, make_window):
        secret, key = keys.create("slow", rows_per_second=10)
        window = make_window(keys=(key,))
        assert window.post("/predict/", json=[ROW] * 100, headers=bearer(secret)).status_code == 200
        refused = window.post("/predict/", json=ROW, headers=bearer(secret))
        assert refused.status_code == 429
        assert 5 <= int(refused.headers["retry-after"]) <= 9

    def test_processes_that_share_the_calls_share_the_rate(self, make_service):
        secret, key = keys.create("slow", rows_per_second=10)
        window = Window(make_service(keys=(key,)), sharers=10)
        answers = [window.post("/predict/", json=ROW, headers=bearer(secret)).status_code for _ in range(3)]
        assert answers == [200, 200, 429]

    def test_health_costs_nothing(self, make_window):
        secret, key = keys.create("slow", rows_per_second=0.1)
        window = make_window(keys=(key,))
        assert {window.get("/health/ready", headers=bearer(secret)).status_code for _ in range(5)} == {200}
