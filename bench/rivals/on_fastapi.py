"""The three jobs on FastAPI, a model for each request and reply: uvicorn bench.rivals.on_fastapi:echo, ..."""

import numpy as np
import pybase64
from fastapi import FastAPI
from pydantic import BaseModel

WEIGHTS = np.arange(128, dtype=np.float32).reshape(32, 4)


class Strings(BaseModel):
    data: list[str]


class Rows(BaseModel):
    data: list[list[float]]


class Numbers(BaseModel):
    data: list[float]


echo, matrix, image = FastAPI(), FastAPI(), FastAPI()


@echo.post("/")
async def answer_echo(request: Strings) -> Strings:
    return request


@matrix.post("/")
async def answer_matrix(request: Rows) -> Rows:
    return Rows(data=(np.asarray(request.data, np.float32) @ WEIGHTS).tolist())


@image.post("/")
async def answer_image(request: Strings) -> Numbers:
    pixels = (np.frombuffer(pybase64.b64decode(item, validate=True), np.float32) for item in request.data)
    return Numbers(data=[float(image.mean()) for image in pixels])
