#!/usr/bin/env python3
"""Renders the chart in every shape it has, and checks what comes out: check.py [--helm helm].

    pip install kubernetes-validate

The chart must lint; its objects must pass Kubernetes's own schemas, with those of the Prometheus operator left out, which
are not among them; with the values it has, its pods must be those of deploy/kubernetes/pleach.yaml; and values that
make no sense must be refused."""
import argparse
import collections
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import yaml

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--helm", default="helm", help="Helm's program")
args = parser.parse_args()
validator = shutil.which("kubernetes-validate") or pathlib.Path(sys.executable).with_name("kubernetes-validate")
deploy = pathlib.Path(__file__).resolve().parent.parent
chart = deploy / "helm/pleach"
keys = '[[key]]\nname = "anna"\nkey = "long-and-random"\n'

SHAPES = {
    "as it is": {},
    "one replica": {"replicas": 1},
    "keys and settings": {
        "apiKeys": {"file": keys}, "draft": "/draft.gguf", "servedModelName": "m", "hubToken": {"secret": "hub"},
        "env": {"PLEACH_MAX_NUM_SEQS": 32, "PLEACH_NO_PREFIX_CACHING": True}, "service": {"type": "LoadBalancer"},
        "envFrom": [{"configMapRef": {"name": "more"}}], "imagePullSecrets": [{"name": "registry"}],
    },
    "several models": {
        "also": {"small": {"model": "hf:o/small", "draft": "none"}, "b": {"model": "/b.gguf", "draft": ""}, "c": {"model": "c"}},
        "cache": {"kind": "emptyDir"},
    },
    "keys of one's own": {"apiKeys": {"existingSecret": "mine"}},
    "a cache that goes": {"cache": {"kind": "emptyDir"}},
    "a shared cache": {"cache": {"kind": "shared", "accessModes": ["ReadWriteMany"], "storageClass": "nfs"}},
    "a claim of one's own": {"cache": {"kind": "shared", "existingClaim": "mine"}},
    "a cache for each": {"cache": {"kind": "perReplica", "size": "50Gi"}, "autoscaling": {"enabled": True}},
    "watched": {
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}}, "prometheusRule": {"enabled": True},
    },
    "on some nodes": {
        "nodeSelector": {"kind": "gpu"}, "tolerations": [{"key": "gpu", "operator": "Exists"}], "podLabels": {"a": "b"},
        "podAnnotations": {"c": "d"}, "resources": {"limits": {"nvidia.com/gpu": 1}}, "priorityClassName": "high",
        "affinity": {"podAntiAffinity": {}}, "fullnameOverride": "x" * 70,
        "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}],
    },
}
REFUSED = [
    {"replicas": -1}, {"replica": 1}, {"model": ""}, {"cache": {"kind": "disk"}}, {"cache": {"size": "large"}},
    {"env": {"max-num-seqs": "1"}}, {"apiKeys": {"file": keys, "existingSecret": "mine"}}, {"service": {"port": 0}},
    {"also": ["small=s.gguf"]}, {"also": {"small": {}}}, {"also": {"small": {"model": ""}}},
    {"also": {"a,b": {"model": "s"}}}, {"also": {"a=b": {"model": "s"}}}, {"also": {"a": {"model": "s", "drafts": "d"}}},
    {"autoscaling": {"maxReplicas": 0}}, {"serviceMonitor": {"interval": "soon"}}, {"image": {"tag": ""}},
]


def helm(*arguments, values):
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(values, file)
        file.flush()
        command = [args.helm, *arguments, chart, "--values", file.name]
        return subprocess.run(command, capture_output=True, text=True)


def rendered(values, release="pleach"):
    result = helm("template", release, values=values)
    if result.returncode:
        sys.exit(result.stderr)
    objects = collections.defaultdict(list)
    for thing in yaml.safe_load_all(result.stdout):
        if thing:
            objects[thing["kind"]].append(thing)
    return objects


def check(holds, what):
    if not holds:
        sys.exit(what)


for shape, values in SHAPES.items():
    lint = helm("lint", "--strict", values=values)
    check(lint.returncode == 0, f"{shape}: {lint.stdout}{lint.stderr}")
    objects = rendered(values)
    known = [thing for kind in objects.values() for thing in kind if "coreos" not in thing["apiVersion"]]
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump_all(known, file)
        file.flush()
        result = subprocess.run([validator, "--strict", file.name], capture_output=True, text=True)
    check(result.returncode == 0, f"{shape}: {result.stdout}{result.stderr}")
    names = [thing["metadata"]["name"] for kind in objects.values() for thing in kind]
    check(all(len(name) <= 63 for name in names), f"{shape}: {names}")
    print(f"{shape}: {', '.join(sorted(objects))}")

plain = rendered({})
manifest = {thing["kind"]: thing for thing in yaml.safe_load_all((deploy / "kubernetes/pleach.yaml").read_text())}
ours, theirs = (thing["spec"]["template"] for thing in (plain["Deployment"][0], manifest["Deployment"]))
container = ours["spec"]["containers"][0]
check(container.pop("imagePullPolicy") == "IfNotPresent", "the image is not pulled as the values say")
container["env"].remove({"name": "PLEACH_DRAIN_TIMEOUT", "value": "30"})
check(ours["spec"] == theirs["spec"], "pods differ from those of deploy/kubernetes/pleach.yaml")
check(ours["metadata"]["annotations"] == theirs["metadata"]["annotations"], "annotations differ, too")
scaled = rendered({"autoscaling": {"enabled": True}})
for kind in ["HorizontalPodAutoscaler", "PodDisruptionBudget"]:
    ours, theirs = scaled[kind][0]["spec"], manifest[kind]["spec"]
    check(all(ours[field] == theirs[field] for field in theirs if field != "selector"), f"{kind} differs")
several = rendered(SHAPES["several models"])["Deployment"][0]["spec"]["template"]["spec"]["containers"][0]["env"]
several = {variable["name"]: variable.get("value") for variable in several}
check(several["PLEACH_ALSO"] == "b=/b.gguf,c=c,small=hf:o/small", f"further models are {several['PLEACH_ALSO']}")
check(several["PLEACH_ALSO_DRAFT"] == "small=none", f"their drafts are {several['PLEACH_ALSO_DRAFT']}")
check("replicas" not in scaled["Deployment"][0]["spec"], "the autoscaler's replicas are set anew by every upgrade")

# What selects pods selects them, and claims, keys and metrics are those that pods have.
for values in SHAPES.values():
    objects = rendered(values, "another")
    workload = (objects["Deployment"] + objects["StatefulSet"])[0]["spec"]
    labels = workload["template"]["metadata"]["labels"].items()
    selectors = [workload["selector"]["matchLabels"]] + [thing["spec"]["selector"] for thing in objects["Service"]]
    check(all(selector.items() <= labels for selector in selectors), f"{selectors} are not {labels}")
    volumes = {volume["name"]: volume for volume in workload["template"]["spec"]["volumes"]}
    claims = {claim["metadata"]["name"] for claim in workload.get("volumeClaimTemplates", [])}
    mounted = {mount["name"] for mount in workload["template"]["spec"]["containers"][0]["volumeMounts"]}
    check(mounted == volumes.keys() | claims, f"{mounted} are mounted of {volumes}, {claims}")
    for claim in objects["PersistentVolumeClaim"]:
        check(volumes["cache"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"], "another claim")
    for secret in objects["Secret"]:
        check(volumes["keys"]["secret"]["secretName"] == secret["metadata"]["name"], "another secret")
    for monitor in objects["ServiceMonitor"]:
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        chosen = [thing for thing in objects["Service"] if wanted <= thing["metadata"]["labels"].items()]
        ports = [port["name"] for thing in chosen for port in thing["spec"]["ports"]]
        check(ports == [monitor["spec"]["endpoints"][0]["port"]] == ["metrics"], f"the monitor finds {ports}")
        check(chosen[0]["metadata"]["labels"][monitor["spec"]["jobLabel"]] == "pleach", "alerts know another job")
    for rule in objects["PrometheusRule"]:
        rules = yaml.safe_load((deploy / "prometheus/rules.yml").read_text())
        check(rule["spec"] == rules, "the rules are not those of deploy/prometheus/rules.yml")

for values in REFUSED:
    check(helm("template", "pleach", values=values).returncode != 0, f"{values} should be refused")
print(f"{len(REFUSED)} values are refused")
