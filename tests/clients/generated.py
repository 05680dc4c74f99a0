"""A client that `openapi-python-client` generated from `/openapi.json`, against the service; prints JSON.

python generated.py URL FOLDER ROWS    # FOLDER: where the package `generated` is
"""

import json
import sys

url, folder, rows = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
sys.path.insert(0, folder)

import generated  # noqa: E402
from generated import models  # noqa: E402
from generated.api.default import feedback, policy, predict, v2_infer  # noqa: E402

client = generated.Client(base_url=url)
one = predict.sync(client=client, body=models.Row(**rows[0]))
many = predict.sync(client=client, body=[models.Row(**row) for row in rows])
refused = predict.sync(client=client, body=models.Row(title=""))
told = feedback.sync(
    client=client, body=models.Feedback(request_id=one.request_id, label=models.FeedbackLabel(one.results[0].label))
)
tensor = models.Tensor(name="text", datatype=models.TensorDatatype.BYTES, shape=[1], data=["a text"])
inferred = v2_infer.sync(name="madewithml", client=client, body=models.Inference(inputs=[tensor]))
found = {
    "one": one.results[0].prediction,
    "many": [answer.prediction for answer in many.results],
    "confidence": [answer.confidence for answer in many.results],
    "refused": [type(refused).__name__, refused.status, refused.errors[0].message],
    "kept": told.kept,
    "policy": policy.sync(client=client).to_dict()["threshold"],
    "inferred": [output["name"] for output in inferred.to_dict()["outputs"]],
}
print(json.dumps(found))
