"""Predicts how diabetes progresses: scikit-learn's bundled table, a regressor trained when the worker starts.

Run it with `gunicorn tables:app -k virtex.VirtexWorker` in this folder, or with `make tables`, which sends it the
patients that it was not trained on: tables of them go in, a column comes out for each.
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


def split() -> tuple[pd.DataFrame, pd.DataFrame, pd.Series, pd.Series]:
    """Patients to train on and held out, then the progress of both; always the same split."""
    measured, progress = load_diabetes(return_X_y=True, as_frame=True)
    return tuple(train_test_split(measured, progress, test_size=HELD_OUT, random_state=0))


def train() -> LinearRegression:
    patients, _, progress, _ = split()
    return LinearRegression().fit(patients, progress)


def table(item: Any) -> pd.DataFrame:
    """An item, if it is a table of patients."""
    frame = decode_pandas(item)
    if not isinstance(frame, pd.DataFrame) or list(frame.columns) != COLUMNS:
        raise ItemError(f"expected a DataFrame of the columns {', '.join(COLUMNS)}")
    are_numbers = all(dtype.kind in "fiu" for dtype in frame.dtypes)
    if frame.empty or not are_numbers or not np.isfinite(frame.to_numpy("f8", na_value=np.nan)).all():
        raise ItemError("expected one row at least, and a finite number in each cell")
    return frame


class Progress(RequestHandler):
    """Takes DataFrames by encode_pandas, a row for a patient; answers a Series for each, of the same index."""

    decode_item = table
    encode_item = encode_pandas

    def setup(self, worker: Any) -> None:
        self.model = train()

    def run_inference(self, frames: list[pd.DataFrame]) -> list[pd.Series]:
        progress = self.model.predict(pd.concat(frames))
        parts = np.split(progress, np.cumsum([len(frame) for frame in frames])[:-1])
        return [pd.Series(part, frame.index, name="progress") for frame, part in zip(frames, parts, strict=True)]


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
    sys.exit(run("tables:app", __doc__, show, load, rate=50))
