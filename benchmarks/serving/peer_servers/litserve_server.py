"""The student behind LitServe, batched: ``python litserve_server.py STUDENT PORT``. Runs in LitServe's environment."""

import sys
from collections.abc import Sequence
from typing import Any

import litserve
from transformers import pipeline

STUDENT, PORT = sys.argv[1], int(sys.argv[2])


class Student(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.pipe = pipeline("text-classification", STUDENT, device="cpu")

    def decode_request(self, request):  # type: ignore[no-untyped-def]  # LitServe makes a schema of an annotation
        return str(request["inputs"])

    def predict(self, texts: Sequence[str]) -> list[Any]:
        return list(self.pipe(list(texts), truncation=True, batch_size=len(texts)))

    def encode_response(self, output: Any) -> Any:
        return output


if __name__ == "__main__":
    # It waits for company, as Limbeck does not; 5 ms is little beside what a window of 32 takes.
    api = Student(max_batch_size=32, batch_timeout=0.005)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=PORT, num_api_servers=1, generate_client_file=False, log_level="warning")
