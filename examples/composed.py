"""Two models on Ray Serve, one of which asks the other: each has replicas and batches of its own.

`make composed` asks them. To ask them yourself, from another shell:

    virtex ray composed:app         # in this folder
    curl localhost:8000/ -d '{"data": ["wo ist das brot?"]}'

Languages says which language a text is in, by the pairs of its letters. Greetings answers in that language: its
handler gets the handle of Languages, and asks with `submit`, for all texts of its batch at once. Their items meet those
of everyone else in the batches of Languages.
"""

from __future__ import annotations

import sys
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np

from virtex import ItemError, RequestHandler, http_server
from virtex.ray import deployment

KNOWN = {
    "en": "the cat that they thought was with this other one there where what when which these those then",
    "de": "der hund ist nicht auch ein wo ich und das schon sie eine zwischen brot wie noch weiter sehr",
    "fr": "le chien est dans une rue ou il y a du pain que nous aimons beaucoup aujourd hui avec les autres",
}
GREETINGS = {"en": "hello", "de": "guten tag", "fr": "bonjour"}
TEXTS = ["where is the bread?", "wo ist das brot?", "ou est le pain?"]


def pairs(text: str) -> Counter[str]:
    """How often each pair of letters is in a text."""
    return Counter(map("".join, pairwise(text)))


class Languages(RequestHandler):
    """Texts in, languages out."""

    def setup(self, worker: Any) -> None:
        counted = {language: pairs(text) for language, text in KNOWN.items()}
        self.columns = {pair: i for i, pair in enumerate(sorted(set().union(*counted.values())))}
        self.weights = np.array([self.row(text) for text in KNOWN.values()]).T
        self.weights = self.weights / np.linalg.norm(self.weights, axis=0)

    def row(self, text: str) -> list[int]:
        counted = pairs(text)
        return [counted[pair] for pair in self.columns]

    def process_request(self, data: list[Any]) -> Any:
        for i, text in enumerate(data):
            if not isinstance(text, str):
                raise ItemError("expected a text", i)
        return np.array([self.row(text) for text in data])

    def run_inference(self, model_input: Any) -> Any:
        return (model_input @ self.weights).argmax(axis=1)

    def process_response(self, model_output_item: Any) -> Any:
        return list(KNOWN)[model_output_item]


class Greetings(RequestHandler):
    """Texts in, greetings out. languages: the handle of the other deployment."""

    def __init__(self, languages: Any) -> None:
        self.languages = languages

    def process_request(self, data: list[Any]) -> Any:
        for i, text in enumerate(data):
            if not isinstance(text, str):
                raise ItemError("expected a text", i)
        return data

    async def run_inference(self, model_input: Any) -> Any:
        return await self.languages.submit.remote(model_input)

    def process_response(self, model_output_item: Any) -> Any:
        return GREETINGS[model_output_item]


def make_languages() -> Any:
    return http_server("languages", Languages)


def make_greetings(languages: Any) -> Any:
    return http_server("greetings", lambda: Greetings(languages))


SMALL = {"num_cpus": 0.5}  # of the cluster's, for each replica: the example is to run on two
languages = deployment(make_languages, name="languages", num_replicas=2, ray_actor_options=SMALL, ingress=False)
greetings = deployment(make_greetings, name="greetings", ray_actor_options=SMALL)
app = greetings.bind(languages.bind())


def main() -> None:
    """Deploy both on a Ray of this machine, ask, and end it."""
    import ray
    from ray import serve

    from virtex import HttpClient, HttpMessage

    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    try:
        serve.run(app)
        with HttpClient("http://127.0.0.1:8000/") as client:
            for text in TEXTS:
                print(f"{text}  {client.post(HttpMessage(data=[text])).data[0]}")
    finally:
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    sys.exit(main())
