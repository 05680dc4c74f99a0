"""KServe's Python inference client as its documentation has it, against the service at sys.argv[1]; prints JSON."""

import asyncio
import json
import sys

import kserve

url, texts = sys.argv[1], json.loads(sys.argv[2])


async def main():
    client = kserve.InferenceRESTClient(kserve.RESTConfig(protocol="v2", retries=1, timeout=60))
    tensor = kserve.InferInput(name="text", shape=[len(texts)], datatype="BYTES", data=texts)
    request = kserve.InferRequest(model_name="madewithml", infer_inputs=[tensor], request_id="from-kserve")
    response = await client.infer(url, request, model_name="madewithml")
    outputs = {output.name: output.as_numpy().ravel().tolist() for output in response.outputs}
    texts_of = [value.decode() if isinstance(value, bytes) else value for value in outputs["prediction"]]
    found = {
        "live": await client.is_server_live(url),
        "ready": await client.is_server_ready(url),
        "model_ready": await client.is_model_ready(url, "madewithml"),
        "id": response.id,
        "prediction": texts_of,
        "confidence": outputs["confidence"],
    }
    print(json.dumps(found))


asyncio.run(main())
