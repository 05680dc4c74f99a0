"""NVIDIA's `tritonclient[http]` as its documentation has it, against the service at sys.argv[1]; prints JSON."""

import json
import sys

import numpy as np
import tritonclient.http as triton

address = sys.argv[1].removeprefix("http://")
texts = json.loads(sys.argv[2])
client = triton.InferenceServerClient(address)
found = {
    "live": client.is_server_live(),
    "ready": client.is_server_ready(),
    "model_ready": client.is_model_ready("madewithml"),
    "server": client.get_server_metadata(),
    "model": client.get_model_metadata("madewithml"),
}


def text(value):
    """A BYTES element: bytes from binary tensors, already a string from JSON ones."""
    return value.decode() if isinstance(value, bytes) else value


def ask(*, binary):
    tensor = triton.InferInput("text", [len(texts), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[text] for text in texts], dtype=object), binary_data=binary)
    outputs = [
        triton.InferRequestedOutput(name, binary_data=binary) for name in ("prediction", "confidence", "probabilities")
    ]
    result = client.infer("madewithml", [tensor], request_id="from-triton", outputs=outputs)
    return {
        "id": result.get_response()["id"],
        "prediction": [text(value) for value in result.as_numpy("prediction").ravel()],
        "confidence": result.as_numpy("confidence").ravel().tolist(),
        "probabilities": result.as_numpy("probabilities").tolist(),
    }


found["binary"], found["json"] = ask(binary=True), ask(binary=False)
try:
    client.infer(
        "nothing", [triton.InferInput("text", [1], "BYTES").set_data_from_numpy(np.array(["a"], dtype=object))]
    )
except triton.InferenceServerException as err:
    found["error"] = [err.status(), err.message()]
print(json.dumps(found))
