"""What is deleted while the storage is away: the rows decide, and `limbeck gc` sweeps the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from fastapi.testclient import TestClient

from api.deps import Services
from limbeck.errors import Unavailable
from models.job import JobStatus
from models.storage.local import LocalStorage
from tests.api.conftest import add_model, become

ROWS = "text,label\n" + "".join(f"text number {number},{number % 2}\n" for number in range(40))


class Away(LocalStorage):
    def delete(self, keys: Iterable[str]) -> None:
        raise Unavailable("The bucket does not answer.")


def test_what_is_gone_is_said_to_be_gone_also_while_its_files_cannot_be_deleted(
    client: TestClient, house: Services, submit: Callable[..., dict[str, Any]]
) -> None:
    """Guards against a 503 that asks to try again what was done, and is a 404 then."""
    job = submit()["id"]
    become(house, job, JobStatus.SUCCEEDED)
    add_model(house, {"config.json": b"{}"}, job_id=job)
    model = add_model(house, {"config.json": b"{}"})
    dataset = client.post("/v1/datasets", files={"train": ("rows.csv", ROWS)}).json()["id"]
    object.__setattr__(house, "storage", Away(house.settings.data_dir / "storage"))
    for path in (f"/v1/jobs/{job}", f"/v1/models/{model}", f"/v1/datasets/{dataset}"):
        assert client.delete(path).status_code == 204, path
        assert client.get(path).status_code == 404
