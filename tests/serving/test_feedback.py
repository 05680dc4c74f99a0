"""True labels that callers tell, over the app and a real database file."""

import concurrent.futures

import pytest

from madewithml import keys
from madewithml.serving import feedback, shadow

from .conftest import ROW, Window


@pytest.fixture
def kept(make_window, tmp_path):
    """An app with a database of its own."""
    return make_window(records_uri=f"sqlite:///{tmp_path / 'records.db'}")


@pytest.fixture
def label(predictor):
    return predictor.classes[0]


def test_a_label_is_kept_with_the_request_it_belongs_to(kept, label):
    request_id = kept.post("/predict/", json=[ROW, ROW]).json()["request_id"]
    told = kept.post("/feedback/", json={"request_id": request_id, "row": 1, "label": label})
    assert (told.status_code, told.json()["kept"]) == (200, 1)
    (entry,) = kept.get("/feedback/").json()["feedback"]
    assert (entry["request_id"], entry["row"], entry["label"]) == (request_id, 1, label)
    assert entry["caller"] == "anonymous"
    assert entry["at"].endswith("+00:00")


def test_the_same_twice_is_kept_once_and_the_last_word_counts(kept, predictor):
    first, second = predictor.classes[:2]
    for told in (first, first, second):
        assert kept.post("/feedback", json={"request_id": "r", "label": told}).status_code == 200
    (entry,) = kept.get("/feedback").json()["feedback"]
    assert (entry["row"], entry["label"]) == (0, second)


def test_a_list_is_kept_whole_or_not_at_all(kept, label):
    good = [{"request_id": "r", "row": row, "label": label} for row in range(3)]
    bad = [*good, {"request_id": "r", "row": 3, "label": "gardening"}]
    refused = kept.post("/feedback/", json=bad)
    assert (refused.status_code, refused.json()["errors"][0]["location"]) == (422, [3, "label"])
    assert label in refused.json()["detail"]
    assert kept.get("/feedback/").json()["feedback"] == []
    assert kept.post("/feedback/", json=good).json()["kept"] == 3


@pytest.mark.parametrize(
    ("body", "location"),
    [
        ({"label": "x"}, ["request_id"]),
        ({"request_id": "r"}, ["label"]),
        ({"request_id": "", "label": "x"}, ["request_id"]),
        ({"request_id": "with space", "label": "x"}, ["request_id"]),
        ({"request_id": "r\n", "label": "x"}, ["request_id"]),
        ({"request_id": "r", "row": -1, "label": "x"}, ["row"]),
        ({"request_id": "r", "row": 1.5, "label": "x"}, ["row"]),
        ({"request_id": "r", "row": True, "label": "x"}, ["row"]),
        ({"request_id": "r", "row": 2**40, "label": "x"}, ["row"]),
        ({"request_id": "r", "label": 1}, ["label"]),
        ({"request_id": "r", "label": "x", "text": "y"}, ["text"]),
        ([{"request_id": "r", "label": "x"}, {"label": "x"}], [1, "request_id"]),
    ],
)
def test_what_is_wrong_is_said_with_its_place(kept, body, location):
    response = kept.post("/feedback/", json=body)
    assert response.status_code == 422
    assert location in [fault["location"] for fault in response.json()["errors"]]


@pytest.mark.parametrize("body", [[], "x", 1, [None]])
def test_another_shape_is_refused(kept, body):
    assert kept.post("/feedback/", json=body).status_code == 422


def test_what_is_not_json_is_told_as_such(kept):
    response = kept.post("/feedback/", content=b"{", headers={"Content-Type": "application/json"})
    assert (response.status_code, response.json()["type"]) == (400, "urn:madewithml:problem:malformed_body")


def test_it_is_read_page_by_page(kept, label):
    kept.post("/feedback/", json=[{"request_id": "r", "row": row, "label": label} for row in range(5)])
    rows, after = [], 0
    while after is not None:
        page = kept.get("/feedback/", params={"after": after, "limit": 2}).json()
        rows += [entry["row"] for entry in page["feedback"]]
        after = page["next"]
    assert rows == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=1001", "after=-1", "after=x", "limit=1&limit=2", "page=1", "after=²"]
)
def test_a_page_that_cannot_be_is_refused(kept, query):
    assert kept.get(f"/feedback/?{query}").status_code == 422


def test_telling_needs_a_key_and_reading_an_admins(make_window, tmp_path, label):
    (predict, predict_key), (admin, admin_key) = keys.create("team"), keys.create("boss", role="admin")
    uri = f"sqlite:///{tmp_path / 'records.db'}"
    window = make_window(keys=(predict_key, admin_key), records_uri=uri)
    body = {"request_id": "r", "label": label}
    assert window.post("/feedback/", json=body).status_code == 401
    assert window.post("/feedback/", json=body, headers={"X-API-Key": predict}).status_code == 200
    assert window.get("/feedback/", headers={"X-API-Key": predict}).status_code == 403
    (entry,) = window.get("/feedback/", headers={"X-API-Key": admin}).json()["feedback"]
    assert entry["caller"] == "team"


def test_processes_write_side_by_side(tmp_path, label):
    uri = f"sqlite:///{tmp_path / 'records.db'}"
    stores = [feedback.Feedback(uri) for _ in range(4)]
    stores[0].page(0, 1)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for number, store in enumerate(stores):
            for row in range(25):
                pool.submit(store.put, [feedback.Given(request_id=f"r{number}", row=row, label=label)], "test")
    assert len(stores[0].page(0, 1000)) == 100


def test_without_its_database_the_rest_goes_on(make_window, tmp_path, label):
    (tmp_path / "file").touch()
    window = make_window(records_uri=f"sqlite:///{tmp_path / 'file' / 'records.db'}")
    response = window.post("/feedback/", json={"request_id": "r", "label": label})
    assert (response.status_code, response.headers["retry-after"]) == (503, "5")
    assert str(tmp_path) not in response.text
    assert window.get("/feedback/").status_code == 503
    assert window.post("/predict/", json=ROW).status_code == 200


def test_the_shadow_is_judged_by_what_was_told(make_service, predictor, tmp_path):
    kitchen = make_service(records_uri=f"sqlite:///{tmp_path / 'records.db'}")
    kitchen.shadow = shadow.Shadow(predictor, run_id="challenger", share=1.0, is_idle=lambda: True)
    window = Window(kitchen)
    answer = window.post("/predict/", json=ROW).json()
    kitchen.shadow.compare(kitchen.shadow._queue.get())
    assert window.get("/shadow").json()["truth"] is None
    told = {"request_id": answer["request_id"], "label": answer["results"][0]["label"]}
    assert window.post("/feedback/", json=told).status_code == 200
    truth = window.get("/shadow").json()["truth"]
    assert (truth["num_rows"], truth["accuracy"], truth["shadow_accuracy"], truth["p_value"]) == (1, 1.0, 1.0, 1.0)
