"""What one writes in an afternoon: FastAPI and a transformers pipeline. ``python pipeline_server.py STUDENT PORT``."""

from __future__ import annotations

import sys
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import pipeline

app = FastAPI()
pipe = pipeline("text-classification", sys.argv[1], device="cpu")


class Question(BaseModel):
    inputs: str


@app.post("/predict")
def predict(question: Question) -> Any:
    return pipe(question.inputs, truncation=True)


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
