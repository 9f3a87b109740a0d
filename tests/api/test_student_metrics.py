"""What ``/metrics`` tells of each student that is loaded."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from api.app import create_app
from api.deps import Services
from api.inference.tallies import Counted, Tally
from limbeck.errors import Busy, InvalidInput, TooSlow, Unavailable
from models.settings import Settings
from tests.api.conftest import add_model
from tests.api.test_aliases import contents
from tests.exported import LABELS, texts

Series = dict[tuple[str, ...], float]


@pytest.fixture
def student(house: Services, exported_student: Path) -> str:
    return add_model(house, contents(exported_student), labels=list(LABELS))


def told(client: TestClient) -> Series:
    """The students' samples, by name, the student's id and what other label there is."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    samples = [sample for family in families for sample in family.samples if "model" in sample.labels]
    return {(one.name, one.labels.pop("model"), *one.labels.values()): one.value for one in samples}


def test_requests_are_counted_by_student_and_by_how_they_ended(client: TestClient, student: str) -> None:
    """Guards an alarm on one student's failures among many that answer, whichever of its names it is asked by."""
    assert told(client) == {}
    client.put("/v1/aliases/reviews", json={"model": student})
    for name in (student, "reviews"):
        assert client.post(f"/v1/models/{name}/predict", json={"inputs": texts(3)}).status_code == 200
    assert client.post(f"/v1/models/{student}/predict", json={"inputs": [3]}).status_code == 422
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a"]}
    assert client.post("/v2/models/reviews/infer", json={"inputs": [tensor]}).status_code == 200
    found = told(client)
    assert found["limbeck_student_requests_total", student, "answered"] == 3
    assert found["limbeck_student_requests_total", student, "failed"] == 0
    assert found["limbeck_student_answer_seconds_count", student] == 3
    assert found["limbeck_student_answer_seconds_bucket", student, "+Inf"] == 3
    assert 0 < found["limbeck_student_answer_seconds_sum", student] < 60
    assert found["limbeck_student_batch_texts_sum", student] == 7
    assert found["limbeck_student_names", student, "reviews"] == 1
    assert {one[1] for one in found} == {student}


def test_the_series_of_a_student_go_with_it(client: TestClient, student: str) -> None:
    """Guards Prometheus against a series for each model that there ever was."""
    client.put("/v1/aliases/reviews", json={"model": student})
    client.post("/v1/models/reviews/predict", json={"inputs": "a"})
    assert told(client)
    client.delete("/v1/aliases/reviews")
    assert not any(series[0] == "limbeck_student_names" for series in told(client))
    assert client.delete(f"/v1/models/{student}").status_code == 204
    assert told(client) == {}


@pytest.fixture
def small(tmp_path: Path) -> Iterator[TestClient]:
    """An application that keeps one student loaded."""
    with TestClient(create_app(Settings(data_dir=tmp_path / "data", predict_memory_bytes=1))) as client:
        yield client


def test_a_student_that_was_dropped_has_no_series(small: TestClient, exported_student: Path) -> None:
    house: Services = small.app.state.services  # type: ignore[attr-defined]
    first, second = (add_model(house, contents(exported_student), labels=list(LABELS)) for _ in range(2))
    for model in (first, second, second):
        assert small.post(f"/v1/models/{model}/predict", json={"inputs": "a"}).status_code == 200
    found = told(small)
    assert {one[1] for one in found} == {second}
    assert found["limbeck_student_requests_total", second, "answered"] == 2


def test_texts_between_the_layers_of_early_exits_are_counted(
    client: TestClient, house: Services, exported_exits_student: Path
) -> None:
    model = add_model(house, contents(exported_exits_student), labels=list(LABELS))
    asked = {"inputs": texts(4), "parameters": {"speed": 0}}
    assert client.post(f"/v1/models/{model}/predict", json=asked).status_code == 200
    found = told(client)
    assert found["limbeck_student_batch_texts_bucket", model, "4.0"] >= 2, "one for each layer"
    assert found["limbeck_student_batch_texts_bucket", model, "2.0"] == 0


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (InvalidInput("x"), "invalid"),
        (Busy("x"), "busy"),
        (TooSlow("x"), "late"),
        (asyncio.CancelledError(), "left"),
        (Unavailable("x"), "failed"),
        (ValueError("x"), "failed"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_request_that_was_not_answered_is_counted_by_its_error(error: BaseException, outcome: str) -> None:
    tally = Tally()
    with pytest.raises(type(error)), Counted(tally):
        raise error
    assert {kind.value: count for kind, count in tally.ended.items() if count} == {outcome: 1}
    assert tally.seconds.cumulated()[-1] == ("+Inf", 0)
