"""Holds manifests against what packages ship: the schemas of Kubernetes, the models of KServe, KEDA and an operator.

Reads documents from stdin, as a list of JSON; writes a list of what is wrong with each, "" for nothing.
"""

import json
import re
import sys
from typing import Any

import cloudcoil.models.keda.v1alpha1 as keda
import cloudcoil.models.prometheus_operator.v1 as monitoring
import kserve.models
import kubernetes.client
import kubernetes_validate
import pydantic

KUBERNETES = "1.37"
BY_PYDANTIC = {"keda.sh/v1alpha1": keda, "monitoring.coreos.com/v1": monitoring}
BY_KSERVE = {"serving.kserve.io/v1alpha1": "V1alpha1", "serving.kserve.io/v1beta1": "V1beta1"}
QUANTITIES = {"ResourceQuantity": (str, int), "V1beta1MetricQuantity": (str, int)}
PLAIN = {"str": str, "int": int, "bool": bool, "float": (int, float), "object": object, **QUANTITIES}


def wrong(document: dict[str, Any]) -> str:
    version, kind = document["apiVersion"], document["kind"]
    try:
        if version in BY_PYDANTIC:
            model = getattr(BY_PYDANTIC[version], kind)
            model.model_validate(document, extra="forbid", by_alias=True, by_name=False)
        elif version in BY_KSERVE:
            build(document, BY_KSERVE[version] + kind, kind)
        else:
            kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except (pydantic.ValidationError, kubernetes_validate.ValidationError, ValueError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def build(value: Any, kind: str, where: str) -> Any:
    """An object of a generated model, whose constructor asks for what is required. Raises ValueError for all else."""
    if many := re.fullmatch(r"(?i)list\[(.+)\]", kind):
        return [build(each, many[1], f"{where}[{at}]") for at, each in enumerate(value)]
    if many := re.fullmatch(r"(?i)dict[([]str, (.+)[)\]]", kind):
        return {name: build(each, many[1], f"{where}.{name}") for name, each in value.items()}
    if kind in PLAIN:
        if not isinstance(value, PLAIN[kind]):
            raise ValueError(f"{where}: expected {kind}, got {value!r}")
        return value
    model = getattr(kserve.models, kind, None) or getattr(kubernetes.client, kind)
    names = {told: name for name, told in model.attribute_map.items()}
    if unknown := value.keys() - names.keys():
        raise ValueError(f"{where}: nothing is named {', '.join(sorted(unknown))}")
    said = {names[key]: build(each, model.openapi_types[names[key]], f"{where}.{key}") for key, each in value.items()}
    return model(**said)


print(json.dumps([wrong(document) for document in json.load(sys.stdin)]))
