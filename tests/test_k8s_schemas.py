"""deploy/k8s is what the published schemas of Kubernetes, KServe, KEDA and the Prometheus operator take.

They are in an environment of their own, that of the clients of V2: `make test-all` makes it, and names it in VIRTEX_V2.
"""

import copy
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from kit import needs
from kit.k8s import FOLDER, manifests
from kit.servers import ROOT

WHERE = os.environ.get("VIRTEX_V2", "")
if not WHERE:
    if needs.every:
        raise RuntimeError("VIRTEX_V2: expected an environment with kserve and kubernetes-validate, got nothing")
    pytest.skip("VIRTEX_V2 names no environment with kserve and kubernetes-validate", allow_module_level=True)

NO_KINDS = {"Kustomization"}  # which kustomize reads, and no cluster
PARTS = {"gpu/gpu.yaml", "prometheus-adapter.yaml"}  # a patch of base/, and values of a Helm chart
WHOLE = {
    f"{path} {each['kind']}": each
    for path, documents in manifests().items()
    if path not in PARTS
    for each in documents
    if each["kind"] not in NO_KINDS
}
if shutil.which("kubectl"):  # of what gpu.yaml alone is but a part
    made = subprocess.run(
        ["kubectl", "kustomize", FOLDER / "gpu"], capture_output=True, text=True, timeout=60, check=True
    )
    WHOLE |= {f"gpu {each['kind']}": each for each in yaml.safe_load_all(made.stdout)}


def broken(name, *path, value):
    """A copy of a document with one value changed, or, for None, taken away."""
    document = copy.deepcopy(WHOLE[name])
    *way, last = path
    at = document
    for step in way:
        at = at[step]
    if value is None:
        del at[last]
    else:
        at[last] = value
    return document


CONTAINER = ("spec", "template", "spec", "containers", 0)
TRIGGER = ("spec", "triggers", 0)
METRIC = ("spec", "predictor", "autoScaling", "metrics", 0)
BROKEN = {  # what must be found, so that the schemas are known to look
    "required": broken("base/deployment.yaml Deployment", "spec", "selector", value=None),
    "timeoutSecond": broken("base/deployment.yaml Deployment", *CONTAINER, "livenessProbe", "timeoutSecond", value=1),
    "maxUnavailable": broken("base/disruption.yaml PodDisruptionBudget", "spec", "maxUnavailable", value=[1]),
    "targetAverage": broken(
        "hpa.yaml HorizontalPodAutoscaler", "spec", "metrics", 0, "pods", "targetAverage", value="1"
    ),
    "completions": broken("loadtest.yaml Job", "spec", "completions", value="four"),
    "maxReplicas": broken("keda.yaml ScaledObject", "spec", "maxReplicas", value=20),
    "metadata": broken("keda.yaml ScaledObject", *TRIGGER, "metadata", value=None),
    "podMetricsEndpoint": broken("podmonitor.yaml PodMonitor", "spec", "podMetricsEndpoint", value=[]),
    "protocolVersion": broken("kserve.yaml ServingRuntime", "spec", "protocolVersion", value="v2"),
    "containers": broken("kserve.yaml ServingRuntime", "spec", "containers", value=None),
    "serverUrl": broken("kserve.yaml InferenceService", *METRIC, "external", "metric", "serverUrl", value="http://a"),
    "minReplicas": broken("kserve.yaml InferenceService", "spec", "predictor", "minReplicas", value="two"),
}


@pytest.fixture(scope="module")
def found():
    """What is wrong with each, by its name."""
    told = subprocess.run(
        [Path(WHERE, "bin", "python"), ROOT / "tests" / "clients" / "manifests.py"],
        input=json.dumps([*WHOLE.values(), *BROKEN.values()]),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert told.returncode == 0, told.stderr[-3000:]
    return dict(zip([*WHOLE, *BROKEN], json.loads(told.stdout), strict=True))


@pytest.mark.parametrize("name", WHOLE)
def test_a_manifest_is_what_its_schema_takes(name, found):
    assert found[name] == ""


@pytest.mark.parametrize("name", BROKEN)
def test_a_schema_finds_what_is_wrong(name, found):
    assert name in found[name]
