"""Inside FastAPI: a route of pydantic models that asks the service of tables.py, and that service itself, mounted.

`make inside` asks both. To ask them yourself, from another shell:

    virtex serve inside:app --chdir examples
    curl localhost:8000/patients -H 'Content-Type: application/json' -d '[{"age": 0.04, "bmi": 0.06}]'
    curl localhost:8000/tables/ -d '{"data": [[0.04, 0.05, 0.06, 0.02, -0.04, -0.03, -0.04, 0, 0.02, -0.02]]}'

What both bring goes into the same batches. FastAPI describes its route at /docs.
"""

from __future__ import annotations

import sys
from typing import Annotated
from urllib.parse import urljoin

import httpx2
import tables
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field
from serving import run

from virtex import HttpClient, ItemError
from virtex.errors import RequestError


class Patient(BaseModel):
    """What was measured, scaled as the model's table is; 0, its mean, where it was not."""

    age: float = 0
    sex: float = 0
    bmi: float = 0
    bp: float = 0
    blood: Annotated[list[float], Field(min_length=6, max_length=6)] = [0] * 6

    def row(self) -> list[float]:
        return [self.age, self.sex, self.bmi, self.bp, *self.blood]


app = FastAPI()
app.mount("/tables", tables.app)


@app.post("/patients")
async def patients(patients: list[Patient]) -> list[float]:
    """The progress of each; a patient whose values are unusable is a 422, as anywhere."""
    try:
        return await tables.app.submit([patient.row() for patient in patients])
    except ItemError as error:
        raise HTTPException(error.status, str(error)) from None
    except RequestError as error:  # 413: too many; 503: no room; 504: too late
        raise HTTPException(error.status, error.reason) from None


def show(client: HttpClient) -> None:
    """Ask the mounted service as `make tables` does, and the route for two patients."""
    tables.show(client)
    both = [{"age": 0.04, "bmi": 0.06}, {"age": 0.04, "bmi": -0.06}]
    answer = httpx2.post(urljoin(str(client.url), "/patients"), json=both)
    print("progress " + ", ".join(f"{progress:.1f}" for progress in answer.raise_for_status().json()))


if __name__ == "__main__":
    sys.exit(run("inside:app", __doc__, show, tables.load, rate=50, path="/tables/"))
