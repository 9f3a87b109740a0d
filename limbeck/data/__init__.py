"""Data sets: reading, checking, splitting. Imports no torch."""

from limbeck.data.corpus import Corpus, Split
from limbeck.data.ingest import Ingested, ingest, preview
from limbeck.data.loading import load
from limbeck.data.readers import read_table

__all__ = ["Corpus", "Ingested", "Split", "ingest", "load", "preview", "read_table"]
