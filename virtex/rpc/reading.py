"""A ModelInferRequest as items: the format that reads it, which has the bytes of tensors where they came.

Rules: as of service/v2_read.py, whose Infer does all that concerns tensors. Here is where a message of protobuf has
what the head of an infer request has by REST.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import orjson

from ..errors import RequestError, quoted
from ..message import Account
from ..service import v2
from ..service.formats import USUAL
from ..service.v2_head import BYTES, Call, Place
from ..service.v2_read import Infer
from .contents import GROWN, as_raw, check_head, read
from .cut import cut
from .writing import Answer

EMPTY_FINAL = "triton_enable_empty_final_response"  # it brings no more: each answer is final
MOST_ODD = 1 << 16  # bytes of a message that is not as cut() takes it: nothing has counted its fields

Raws = tuple[tuple[int, int], ...]  # of each tensor, from the first one's beginning on: where its bytes begin, how many


class GrpcInfer(Infer):
    """Requests of one model. admission: has it as `served`, once it is there: ahead of that no body is read."""

    def __init__(self, admission: Any) -> None:
        super().__init__(admission.served, -1)
        self._admission = admission
        self._usual = lru_cache(256)(self._said)

    def _called(self, body: Any, account: Account) -> tuple[Call, Any, Any, list[tuple[int, int]]]:
        if self._served is None:
            self._served = self._admission.served
        found = cut(body)
        if found is None and len(body) > MOST_ODD:
            wrong = f"{len(body)} bytes that break off, or with fields that the protocol has not"
            raise RequestError(400, f"expected a ModelInferRequest, got {wrong}")
        if found is None or not found.raws:
            body = as_raw(body, account, self._admission.most_values)
            found = cut(body)
        if found is None or not found.raws:
            raise RequestError(400, "inputs: expected a tensor at least")
        if len(found.id) > USUAL:
            account.admit_items(0, len(found.id))
        start = found.raws[0][0]
        raws = tuple([(begin - start, end - begin) for begin, end in found.raws])
        if len(found.head) > USUAL:
            check_head(len(found.head))
            account.admit_items(0, GROWN * len(found.head))
            call, answer = self._said(found.head, raws)
        else:
            call, answer = self._usual(found.head, raws)
        if call.parameters:
            account.parameters = dict(call.parameters)
        account.answer_as(answer.with_id(found.id) if found.id else answer, call.patience)
        return call, body, body[:start], []

    def _said(self, head: bytes, raws: Raws) -> tuple[Call, Answer]:
        """What a head says, checked. Raises RequestError: 400, 404, 501."""
        request, model = read(head), self._served
        check_model(request.model_name, request.model_version, [model.name])
        if model.missing:
            raise RequestError(501, f"V2 has no datatype for {', '.join(model.missing)} of {model.name!r}")
        inputs = [_described(tensor) for tensor in request.inputs]
        if len(inputs) != len(raws):
            raise RequestError(400, f"raw_input_contents: expected {len(inputs)}, for as many inputs, got {len(raws)}")
        for tensor, (_, size) in zip(inputs, raws, strict=True):
            tensor["parameters"]["binary_data_size"] = size
        outputs = [{"name": one.name, "parameters": parameters_of(one)} for one in request.outputs]
        parameters = parameters_of(request)
        if type(parameters.get(EMPTY_FINAL, True)) is not bool:  # Triton refuses it, too
            raise RequestError(400, f"{EMPTY_FINAL}: expected bool_param, got {quoted(parameters[EMPTY_FINAL])!r}")
        tree = {"inputs": inputs, "outputs": outputs, "parameters": parameters}
        call = model.called(orjson.dumps(tree), False)
        begins = {tensor["name"]: begin for tensor, (begin, _) in zip(inputs, raws, strict=True)}
        places = [_moved(place, begins[place.name]) for place in call.places]
        wanted = tuple(dict.fromkeys(output["name"] for output in outputs))
        return Call(places, call.behind, call.asked, call.parameters), Answer(model, b"", wanted)


def _described(tensor: Any) -> dict[str, Any]:
    """An input, as the head of an infer request has it."""
    if tensor.HasField("contents"):
        raise RequestError(400, f"input {quoted(tensor.name)!r}: got contents, and raw_input_contents too")
    return {
        "name": tensor.name,
        "datatype": tensor.datatype,
        "shape": list(tensor.shape),
        "parameters": parameters_of(tensor),
    }


def parameters_of(message: Any) -> dict[str, Any]:
    """The parameters of a message, as JSON has them; one that holds none of its choices is left out."""
    found = {}
    for name, parameter in message.parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        if choice is not None:
            found[name] = getattr(parameter, choice)
    return found


def _moved(place: Place, at: int) -> Place:
    """The same tensor at another place."""
    moved = Place(place.name, place.datatype, place.shape, BYTES, at, place.size)
    moved.signature, moved.text = place.signature, place.text
    return moved


def check_model(name: str, version: str, names: list[str]) -> None:
    """Raise RequestError (404) for a model or version that there is not. names: of those that there are."""
    if name not in names or version not in ("", v2.VERSION):
        raise no_model(name, version, names)


def no_model(name: str, version: str, names: list[str]) -> RequestError:
    """What says that there is none of that name and version."""
    asked = f"model {quoted(name)!r}" + (f", version {quoted(version)!r}" if version else "")
    return RequestError(404, f"{asked}: expected {', '.join(names)}, version {v2.VERSION}")
