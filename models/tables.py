"""Every table in one place: importing this module fills the metadata."""

from models.alias import Alias
from models.attempt import Attempt
from models.base import Base
from models.dataset import Dataset
from models.event import Event, LogChunk, MetricPoint
from models.host_place import HostPlace
from models.job import Job
from models.model import Model, ModelFile
from models.part import TeacherPart
from models.present_worker import PresentWorker

METADATA = Base.metadata

__all__ = [
    "METADATA",
    "Alias",
    "Attempt",
    "Dataset",
    "Event",
    "HostPlace",
    "Job",
    "LogChunk",
    "MetricPoint",
    "Model",
    "ModelFile",
    "PresentWorker",
    "TeacherPart",
]
