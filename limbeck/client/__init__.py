"""The client of a Limbeck server: plain HTTP, no torch.

from limbeck.client import Client

client = Client("http://127.0.0.1:8000")
job = client.submit({"teacher": "builtin:minilm-l6", "dataset": "builtin:stdlib-docstrings", "method": "kd"})
job = client.wait(job.id)
client.download(job.student_id, "student")
"""

from limbeck.client.client import Client
from limbeck.client.records import Alias, Attempt, Dataset, Event, Job, JobProgress, Listing, Model, ModelFile, Outcome

__all__ = [
    "Alias",
    "Attempt",
    "Client",
    "Dataset",
    "Event",
    "Job",
    "JobProgress",
    "Listing",
    "Model",
    "ModelFile",
    "Outcome",
]
