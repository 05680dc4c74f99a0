"""Bodies that once failed: each was found by `benchmarks/fuzz.py` or by other people's tools, and mended."""

import json

import pytest

TENSOR = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a text"]}
JSON = "application/json"
CORPUS = [
    # More values in a row of CSV than there are columns: an exception of the message's own making.
    ("/invocations", "text/csv", b"a,b\n1,2,3\n", 422),
    ("/invocations", "text/csv", b"title\nIntro,Layers\n", 422),
    # Parameters that are false were taken for none.
    ("/invocations", JSON, b'{"dataframe_records": [{"title": "a"}], "params": false}', 422),
    # The name of an output that is no text was looked up in a table.
    ("/v2/models/madewithml/infer", JSON, json.dumps({"inputs": [TENSOR], "outputs": [{"name": {}}]}).encode(), 422),
    # 2.0 is a whole number in JSON.
    ("/feedback/", JSON, b'{"request_id": "r", "row": 2.0, "label": "mlops"}', 200),
]


@pytest.mark.parametrize(("path", "media_type", "body", "status"), CORPUS)
def test_what_once_failed_is_answered(make_window, tmp_path, path, media_type, body, status):
    window = make_window(records_uri=f"sqlite:///{tmp_path / 'records.db'}")
    response = window.post(path, content=body, headers={"Content-Type": media_type})
    assert response.status_code == status, response.text
