"""Students that answer over HTTP: their files on this machine, and the ones that are loaded."""

from api.inference.batcher import Batcher
from api.inference.students import Loaded, Students

__all__ = ["Batcher", "Loaded", "Students"]
