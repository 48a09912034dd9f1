"""Predicts how diabetes progresses: scikit-learn's bundled table, a regressor trained when the worker starts.

`make tables` sends it the patients that it was not trained on: tables of them go in, a column comes out for each. To
send rows of numbers yourself, from another shell:

    python examples/tables.py --serve
    curl localhost:8000 -d '{"data": [[0.04, 0.05, 0.06, 0.02, -0.04, -0.03, -0.04, 0, 0.02, -0.02]]}'

It answers {"data":[PROGRESS],"error":null}. In this folder `gunicorn tables:app -k virtex.VirtexWorker` serves it, too.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pandas as pd
from serving import run
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score
from sklearn.model_selection import train_test_split

from virtex import HttpClient, HttpMessage, ItemError, RequestHandler, http_server
from virtex.serial import decode_pandas, encode_pandas

HELD_OUT = 90  # patients that the regressor is not trained on
COLUMNS = ["age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6"]
ROW = [0.04, 0.05, 0.06, 0.02, -0.04, -0.03, -0.04, 0, 0.02, -0.02]  # a patient


def split() -> tuple[pd.DataFrame, pd.DataFrame, pd.Series, pd.Series]:
    """Patients to train on and held out, then the progress of both; always the same split."""
    measured, progress = load_diabetes(return_X_y=True, as_frame=True)
    return tuple(train_test_split(measured, progress, test_size=HELD_OUT, random_state=0))


def train() -> LinearRegression:
    patients, _, progress, _ = split()
    return LinearRegression().fit(patients, progress)


def patients_of(item: Any) -> pd.DataFrame | pd.Series:
    """An item, if it is a row of numbers, a patient, or a table of patients."""
    if isinstance(item, list):
        if len(item) != len(COLUMNS):
            raise ItemError(f"expected a row of {len(COLUMNS)} numbers ({', '.join(COLUMNS)}), got {len(item)}")
        return check(pd.DataFrame([item], columns=COLUMNS)).iloc[0]
    frame = decode_pandas(item)
    if not isinstance(frame, pd.DataFrame) or list(frame.columns) != COLUMNS:
        raise ItemError(f"expected a DataFrame of the columns {', '.join(COLUMNS)}")
    return check(frame)


def check(frame: pd.DataFrame) -> pd.DataFrame:
    are_numbers = all(dtype.kind in "fiu" for dtype in frame.dtypes)
    if frame.empty or not are_numbers or not np.isfinite(frame.to_numpy("f8", na_value=np.nan)).all():
        raise ItemError("expected one row at least, and a finite number in each cell")
    return frame


def sendable(progress: pd.Series | float) -> Any:
    return encode_pandas(progress) if isinstance(progress, pd.Series) else progress


class Progress(RequestHandler):
    """Takes patients: rows of ten numbers, a number is the answer to each; DataFrames by encode_pandas, a Series is."""

    decode_item = patients_of
    encode_item = sendable

    def setup(self, worker: Any) -> None:
        self.model = train()

    def run_inference(self, items: list[pd.DataFrame | pd.Series]) -> list[pd.Series | float]:
        frames = [item if isinstance(item, pd.DataFrame) else item.to_frame().T for item in items]
        parts = np.split(self.model.predict(pd.concat(frames)), np.cumsum([len(frame) for frame in frames])[:-1])
        return [
            pd.Series(part, item.index, name="progress") if isinstance(item, pd.DataFrame) else float(part[0])
            for part, item in zip(parts, items, strict=True)
        ]

    def example(self) -> list[list[float]]:
        return [ROW]


app = http_server(name="tables", handler=Progress, max_batch_size=64)


def show(client: HttpClient) -> None:
    """Send the held-out patients as three tables, and print what comes beside what was."""
    _, patients, _, progress = split()
    message = HttpMessage(data=[patients[0:30], patients[30:60], patients[60:90]])
    message.encode(encode_pandas)
    answer = client.post(message)
    answer.decode(decode_pandas)
    predicted = pd.concat(answer.data)
    print(pd.DataFrame({"predicted": predicted.round(1), "was": progress}).head())
    print(f"R2 {r2_score(progress, predicted):.3f} ({len(predicted)} patients in {len(answer.data)} tables)")


def load() -> list[HttpMessage]:
    patients = split()[1]
    messages = [HttpMessage(data=[patients[n : n + 1]]) for n in range(len(patients))]
    for message in messages:
        message.encode(encode_pandas)
    return messages


if __name__ == "__main__":
    sys.exit(run("tables:app", __doc__, show, load, rate=50, serve=app.run))
