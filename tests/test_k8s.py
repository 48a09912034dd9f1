"""deploy/k8s: what its probes, ports, commands and queries say is true of a real server, and a real Prometheus."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading

import pytest
import yaml
from kit import needs
from kit.k8s import FOLDER, container_of, document, manifests, pod, variables
from kit.pages import Page
from kit.prom import get, needs_prometheus, needs_pushgateway, program, prometheus, samples
from kit.servers import DRAIN_DELAY, HELD_DRAIN, ROOT, free_port, until

from virtex.limits import allowance
from virtex.resident import Memory
from virtex.workers.settings import drain_delay

PAGE = Page(ROOT / "docs" / "kubernetes.md")
SERVED = [("base/deployment.yaml", "Deployment"), ("kserve.yaml", "ServingRuntime")]  # what runs a service
OURS = [*SERVED, ("loadtest.yaml", "Job"), ("pushgateway.yaml", "Deployment")]
SERVICE = PAGE.files["in_a_pod.py"]
BODY = b'{"data":[[1,2,3,4]]}'

# The page's service. `gate` and `hold` are files that it reads to their end: as a FIFO, each holds it up.
SERVER = (
    Page(ROOT / "README.md").files["server.py"].partition("if __name__")[0]
    + """
class Linear(Linear):
    def setup(self, worker):
        assert open("gate").read() == "", "the model is broken"
        super().setup(worker)

    def run_inference(self, batch):
        open("hold").read()
        return super().run_inference(batch)
"""
)


@pytest.fixture
def folder(tmp_path):
    return prepared(tmp_path)


def prepared(folder):
    (folder / "server.py").write_text(SERVER)
    said = 'prom_mode="scrape",'
    assert said in SERVICE
    (folder / "service.py").write_text(SERVICE.replace(said, f"{said} prom_port={free_port()},"))  # a pod has its own
    (folder / "gate").touch()
    (folder / "hold").touch()
    return folder


class Hold:
    """Makes a FIFO of this file, so that who reads it waits."""

    def __init__(self, path):
        self.path = path
        path.unlink()
        os.mkfifo(path)
        self.writer = None

    def has_reader(self):
        try:
            self.writer = os.open(self.path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            return False
        return True

    def release(self):
        self.path.unlink()
        self.path.touch()
        os.close(self.writer)


# -- the files together


def test_each_file_says_what_it_is_for_and_the_page_has_it():
    for path in manifests():
        assert (FOLDER / path).read_text().startswith("# "), path
    named = set(re.findall(r"`([\w-]+(?:\.yaml|/))`", PAGE.text.partition("## The service")[0]))
    assert named == {path.partition("/")[0] + "/" if "/" in path else path for path in manifests()}


def test_the_kustomizations_name_the_files_that_there_are():
    for path in FOLDER.glob("*/kustomization.yaml"):
        said = yaml.safe_load(path.read_text())
        for name in (*said["resources"], *(patch["path"] for patch in said.get("patches", ()))):
            assert (path.parent / name).exists()
    listed = set(document("base/kustomization.yaml")["resources"]) | {"kustomization.yaml"}
    assert listed == {path.name for path in (FOLDER / "base").iterdir()}


@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not installed")
@pytest.mark.parametrize("line", PAGE.commands(__file__))
def test_what_the_page_has_made_of_an_overlay_is_made(line):
    done = subprocess.run(line.split(), cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    made = {each["kind"]: each for each in yaml.safe_load_all(done.stdout)}
    assert made.keys() == {"Deployment", "Service", "PodDisruptionBudget"}
    (container,) = made["Deployment"]["spec"]["template"]["spec"]["containers"]
    base = container_of("base/deployment.yaml", "Deployment")
    assert container["args"] == base["args"] and container["startupProbe"] == base["startupProbe"]
    is_gpu = line.endswith("gpu")
    assert container["image"] == ("virtex-service:cuda" if is_gpu else "virtex-service:latest")
    assert container["resources"]["limits"].get("nvidia.com/gpu") == (1 if is_gpu else None)


def test_what_selects_pods_finds_them_and_their_port():
    template = document("base/deployment.yaml")["spec"]["template"]
    labels, (port,) = template["metadata"]["labels"], template["spec"]["containers"][0]["ports"]
    service = document("base/service.yaml")["spec"]
    assert service["selector"] == labels and service["ports"][0]["targetPort"] == port["name"]
    selectors = ["base/deployment.yaml", "base/disruption.yaml", "podmonitor.yaml"]
    assert [document(path)["spec"]["selector"]["matchLabels"] for path in selectors] == [labels] * 3
    (endpoint,) = document("podmonitor.yaml")["spec"]["podMetricsEndpoints"]
    said = template["metadata"]["annotations"]
    assert (endpoint["port"], endpoint["path"]) == (port["name"], said["prometheus.io/path"])
    assert said == document("kserve.yaml", "ServingRuntime")["spec"]["annotations"]
    assert said["prometheus.io/port"] == str(port["containerPort"])


def test_the_autoscalers_scale_the_same_deployment_by_the_same_numbers():
    hpa, keda = document("hpa.yaml")["spec"], document("keda.yaml")["spec"]
    name = document("base/deployment.yaml")["metadata"]["name"]
    assert hpa["scaleTargetRef"]["name"] == keda["scaleTargetRef"]["name"] == name
    assert (hpa["minReplicas"], hpa["maxReplicas"]) == (keda["minReplicaCount"], keda["maxReplicaCount"])
    assert hpa["behavior"] == keda["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    targets = [metric["pods"]["target"]["averageValue"] for metric in hpa["metrics"]]
    assert targets == ["16", "50m"]
    assert [trigger["metadata"]["threshold"] for trigger in keda["triggers"]] == ["16", "0.05"]
    (metric,) = document("kserve.yaml", "InferenceService")["spec"]["predictor"]["autoScaling"]["metrics"]
    assert metric["external"]["target"] == {"type": "Value", "value": "16"}
    assert "max_batch_size=32" in SERVICE
    asked = {metric["pods"]["metric"]["name"] for metric in hpa["metrics"]}
    assert asked == {rule["name"]["as"] for rule in document("prometheus-adapter.yaml")["rules"]["custom"]}


@pytest.mark.parametrize(("path", "kind"), OURS)
def test_a_container_has_no_privilege_and_says_what_it_needs(path, kind):
    container = container_of(path, kind)
    spec = document(path, kind)["spec"]
    of_pod = spec["template"]["spec"].get("securityContext", {}) if "template" in spec else {}
    context = of_pod | container["securityContext"]
    assert context["runAsNonRoot"] and context["runAsUser"] > 0
    assert context["readOnlyRootFilesystem"] and not context["allowPrivilegeEscalation"]
    assert context["capabilities"] == {"drop": ["ALL"]} and context["seccompProfile"] == {"type": "RuntimeDefault"}
    resources = container["resources"]
    assert resources["requests"].keys() == {"cpu", "memory"} and resources["limits"].keys() == {"memory"}


@pytest.mark.parametrize(("path", "kind"), SERVED)
def test_a_pod_has_time_for_its_end(path, kind, monkeypatch):
    container = container_of(path, kind)
    spec = document(path, kind)["spec"]
    ending = spec["template"]["spec"] if "template" in spec else document(path, "InferenceService")["spec"]["predictor"]
    (graceful,) = [int(word.partition("=")[2]) for word in container["args"] if word.startswith("--graceful-timeout=")]
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    monkeypatch.setenv("VIRTEX_DRAIN_DELAY", variables(container)["VIRTEX_DRAIN_DELAY"])
    assert drain_delay() == 5 and drain_delay() < graceful / 2
    assert pause + graceful + 5 <= ending["terminationGracePeriodSeconds"]


def test_what_requests_may_take_fits_into_the_pod():
    assert container_of(*SERVED[0])["resources"]["limits"]["memory"] == "1Gi" and "max_bytes" not in SERVICE
    assert allowance(None, found=Memory(1 << 30, "its cgroup")).max_bytes == 256 << 20


# -- a pod


def test_kserve_runs_the_same_as_the_deployment():
    ours, theirs = (container_of(*each) for each in SERVED)
    same = ("image", "args", "lifecycle", "resources", "volumeMounts")
    assert [ours[name] for name in same] == [theirs[name] for name in same]
    assert variables(theirs, "isvc") == {"MODEL_NAME": "isvc"} | variables(ours)
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        paths = [each[probe]["httpGet"]["path"] for each in (ours, theirs)]
        assert paths[1] == f"/v2{paths[0]}"
        assert ours[probe] == theirs[probe] | {"httpGet": ours[probe]["httpGet"]}


@pytest.mark.parametrize(("path", "kind"), SERVED)
def test_while_the_model_loads_the_pod_lives_and_gets_no_request(path, kind, folder):
    gate = Hold(folder / "gate")
    with pod(container_of(path, kind), folder, "isvc-7") as running:
        until(lambda: running.probe("livenessProbe") == 200, "an answer", running)
        assert running.probe("startupProbe") == running.probe("readinessProbe") == 503
        assert running.request("POST", "/", BODY)[0] == 503
        until(gate.has_reader, "setup", running)
        gate.release()
        until(lambda: running.probe("startupProbe") == 200, "readiness", running)
        assert running.probe("readinessProbe") == running.probe("livenessProbe") == 200
        assert running.request("POST", "/", BODY) == (200, b'{"data":[43210.0],"error":null}')
        if path == "kserve.yaml":
            check_kserve(running, "isvc-7")


def check_kserve(running, name):
    """Its clients ask by V2 for the model that has the name of the InferenceService."""
    model = document("kserve.yaml", "InferenceService")["spec"]["predictor"]["model"]
    assert (
        model["protocolVersion"] == "v2"
        and model["runtime"] == document("kserve.yaml", "ServingRuntime")["metadata"]["name"]
    )
    assert running.request("GET", f"/v2/models/{name}/ready")[0] == 200
    tensor = {"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
    status, body = running.request("POST", f"/v2/models/{name}/infer", json.dumps({"inputs": [tensor]}).encode())
    assert status == 200 and json.loads(body)["outputs"][0]["data"] == [43210.0]


def test_a_model_that_cannot_be_loaded_ends_the_container(folder):
    (folder / "gate").write_text("broken")
    with pod(container_of(*SERVED[0]), folder) as running:
        assert running.wait_exit() != 0
        assert "the model is broken" in running.log


def test_a_pod_that_ends_is_unready_first_and_answers_who_still_comes(folder):
    container = container_of(*SERVED[0])
    (folder / "service.py").write_text(HELD_DRAIN + (folder / "service.py").read_text())
    with pod(container, folder, VIRTEX_DRAIN_DELAY=str(DRAIN_DELAY)) as running:
        until(lambda: running.probe("startupProbe") == 200, "readiness", running)
        pause, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
        assert int(seconds) == 5  # which is not waited for here
        assert subprocess.run([pause, "0.01"], timeout=60).returncode == 0
        assert running.probe("readinessProbe") == 200
        running.signal(signal.SIGTERM)
        until(lambda: running.probe("readinessProbe") == 503, "unreadiness", running)
        assert [running.request("POST", "/", BODY)[0] for _ in range(20)] == [200] * 20
        assert running.probe("livenessProbe") == 200
        running.end_delay()
        assert running.wait_exit() == 0


def test_a_probe_of_kind_grpc_goes_by_the_lines_of_the_page(folder):
    needs.library("grpc")
    import grpc

    (lines,) = [yaml.safe_load(block.code) for block in PAGE.blocks if block.language == "yaml"]
    container = container_of(*SERVED[0])
    asked, (variable,) = lines["readinessProbe"]["grpc"], lines["env"]
    assert lines["ports"][0]["containerPort"] == asked["port"] == int(variable["value"])
    port = free_port()
    with (
        pod(container, folder, **{variable["name"]: str(port), "VIRTEX_DRAIN_DELAY": "2"}) as running,
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        running.wait_log("gRPC at")
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        seconds = container["readinessProbe"]["timeoutSeconds"]
        assert check(b"", timeout=seconds) == check(b"\n\x06linear", timeout=seconds) == b"\x08\x01"
        running.signal(signal.SIGTERM)
        until(lambda: check(b"", timeout=seconds) == b"\x08\x02", "NOT_SERVING", running)
        assert running.wait_exit() == 0


# -- what scales


def filled(rule):
    """A rule of the adapter for the pods of an autoscaler."""
    series = re.match(r"\w+", rule["seriesQuery"])[0]
    said = {"Series": series, "LabelMatchers": 'namespace="default",pod=~"virtex-0"', "GroupBy": "pod"}
    return re.sub(r"<<\.(\w+)>>", lambda found: said[found[1]], rule["metricsQuery"])


ADAPTER = document("prometheus-adapter.yaml")["rules"]["custom"]
KSERVE = document("kserve.yaml", "InferenceService")["spec"]["predictor"]["autoScaling"]["metrics"]
QUERIES = {
    **{f"adapter {rule['name']['as']}": filled(rule) for rule in ADAPTER},
    **{
        f"keda {each['metadata']['threshold']}": each["metadata"]["query"]
        for each in document("keda.yaml")["spec"]["triggers"]
    },
    "kserve": KSERVE[0]["external"]["metric"]["query"],
}


@pytest.fixture(scope="module")
def prom(tmp_path_factory):
    """A Prometheus beside a pod as its annotations say, and what each query gave before a request came."""
    folder = prepared(tmp_path_factory.mktemp("pod"))
    said = document("base/deployment.yaml")["spec"]["template"]["metadata"]["annotations"]
    assert said["prometheus.io/path"] == "/metrics"  # where a Prometheus looks by itself
    with pod(container_of(*SERVED[0]), folder) as running:
        until(lambda: running.probe("startupProbe") == 200, "readiness", running)
        target, labels = f"127.0.0.1:{running.port}", {"namespace": "default", "pod": "virtex-0"}
        with prometheus(tmp_path_factory.mktemp("prometheus"), target, **labels) as prom:
            until(lambda: (prom.value("count_over_time(virtex_workers[1m])") or 0) > 2, "scrapes")
            before = {name: prom.value(query) for name, query in QUERIES.items()}
            crowd(running, folder, prom)
            yield prom, before, {name for name, _ in samples(get(f"http://{target}/metrics"))}


def crowd(running, folder, prom):
    """One batch is held up, five requests wait behind it until Prometheus has seen that; then all are answered."""
    hold = Hold(folder / "hold")
    asking = [threading.Thread(target=running.request, args=("POST", "/", BODY)) for _ in range(6)]
    asking[0].start()
    until(hold.has_reader, "a batch", running)
    for thread in asking[1:]:
        thread.start()
    until(lambda: prom.value("virtex_queue_items") == 5, "five that wait", running)
    hold.release()
    for thread in asking:
        thread.join(60)


@needs_prometheus
@pytest.mark.parametrize("name", QUERIES)
def test_what_the_autoscalers_ask_is_nothing_at_first_and_more_when_requests_wait(name, prom):
    prom, before, names = prom
    assert set(re.findall(r"virtex_\w+", QUERIES[name])) <= names
    assert before[name] == 0 or math.isnan(before[name])  # which the adapter and KEDA take for 0
    until(lambda: (prom.value(QUERIES[name]) or math.nan) > 0, name)


@needs_prometheus
@pytest.mark.parametrize("rule", ADAPTER, ids=[rule["name"]["as"] for rule in ADAPTER])
def test_the_adapter_finds_its_series_with_the_labels_of_a_pod(rule, prom):
    assert prom[0].query(rule["seriesQuery"])
    assert rule["resources"]["overrides"].keys() == {"namespace", "pod"}


# -- the Job, and the Pushgateway


def with_virtex(folder, line):
    """An environment in which virtex is this line of shell."""
    (folder / "virtex").write_text(f"#!/bin/sh\n{line}\n")
    (folder / "virtex").chmod(0o755)
    paths = {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    return os.environ | paths


def test_the_job_sends_from_several_pods_and_their_reports_add_up(folder):
    test, shell = document("loadtest.yaml")["spec"], container_of("loadtest.yaml", "Job")["command"]
    service = document("base/service.yaml")
    assert test["completions"] == test["parallelism"] == 4 and service["spec"]["ports"][0]["port"] == 80
    (adds,) = [block.code for block in PAGE.blocks if block.language == "python" and block.why_not]
    (folder / "add_reports.py").write_text(adds)
    env = with_virtex(folder, f'exec {sys.executable} -m virtex "$@"')
    with pod(container_of(*SERVED[0]), folder) as running:
        until(lambda: running.probe("startupProbe") == 200, "readiness", running)

        def start(place):
            line = shell[-1].replace(f"http://{service['metadata']['name']}/", f"http://127.0.0.1:{running.port}/")
            for said, here in (("/tmp/", f"{place}/"), ("60s", "1s"), ("5s", "0.1s"), ("250", "50"), ("100ms", "20s")):
                assert said in line
                line = line.replace(said, here)
            place.mkdir()
            return subprocess.Popen([*shell[:-1], line], env=env, stdout=subprocess.PIPE, text=True)

        senders = [start(folder / str(index)) for index in range(2)]
        logs = [sender.communicate(timeout=60)[0] for sender in senders]
    assert [sender.returncode for sender in senders] == [0, 0]
    reports = [json.loads(log) for log in logs]
    assert [report["schema"] for report in reports] == ["virtex.loadtest/1"] * 2
    told = subprocess.run(
        [sys.executable, folder / "add_reports.py"], input="".join(logs), capture_output=True, text=True
    )
    assert told.returncode == 0, told.stderr
    rates = [report["runs"][0]["answers_per_second"] for report in reports]
    p99 = sorted(report["runs"][0]["response"]["percentiles"]["99"] for report in reports)
    assert told.stdout.splitlines() == [
        f"2 pods, {sum(rates):.0f} answers a second",
        "0 errors",
        f"p99 between {p99[0]:.3f} and {p99[1]:.3f} s",
    ]


def test_a_job_whose_bound_is_missed_fails(folder):
    line = container_of("loadtest.yaml", "Job")["command"][-1]
    env = with_virtex(folder, "echo '{}' >report.json; exit 1")
    done = subprocess.run(["sh", "-c", line.replace("/tmp/", "")], cwd=folder, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "{}\n")


@needs_pushgateway
def test_a_service_that_pushes_as_the_page_says_reaches_the_gateway(tmp_path):
    container, port = container_of("pushgateway.yaml", "Deployment"), free_port()
    service = document("pushgateway.yaml", "Service")
    said = re.search(r"http_server\(\.\.\., (prom_mode=.+?)\)`", PAGE.text, re.DOTALL)[1]
    host, number = service["metadata"]["name"], service["spec"]["ports"][0]["port"]
    assert f'"http://{host}"' in said and f"prom_port={number}" in said
    args = [
        word.replace(f":{container['ports'][0]['containerPort']}", f"127.0.0.1:{port}") for word in container["args"]
    ]
    said = said.replace(host, "127.0.0.1").replace(str(number), str(port))
    prepared(tmp_path)
    (tmp_path / "service.py").write_text(
        f"from server import Linear\nfrom virtex import http_server\napp = http_server('linear', Linear, {said})"
    )
    with program(tmp_path, port, "prometheus-pushgateway", *args):
        for probe in ("readinessProbe", "livenessProbe"):
            get(f"http://127.0.0.1:{port}{container[probe]['httpGet']['path']}")
        with pod(container_of(*SERVED[0]), tmp_path, VIRTEX_DRAIN_DELAY="0") as running:
            until(lambda: running.probe("startupProbe") == 200, "readiness", running)
            running.request("POST", "/", BODY)
            until(lambda: "virtex_queries_total" in get(f"http://127.0.0.1:{port}/metrics"), "a push", running)
            running.signal(signal.SIGTERM)
            assert running.wait_exit() == 0
        assert "virtex_queries_total" not in get(f"http://127.0.0.1:{port}/metrics")
