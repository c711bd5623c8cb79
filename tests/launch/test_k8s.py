"""The manifests say what Kubernetes and JobSet need, as k8s.sh fills them in."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from world import ROOT, World

TRAIN = ["alt-jax", "pretrain", "configs/a.py", "--run-dir", '/data/it\'s "a" <NAME> \\ & $run']
POD = ("--name", "ctr-1", "--image", "registry:5000/alt-jax@sha256:ab", "--claim", "share")


def applied(world: World, *arguments: str) -> dict[str, Any]:
    assert world.run("k8s.sh", *arguments).returncode == 0
    (call,) = world.calls("kubectl")
    assert call.args == ["apply", "-f", "-"]
    return yaml.safe_load(call.stdin)


def job_of(manifest: dict[str, Any]) -> dict[str, Any]:
    (workers,) = manifest["spec"]["replicatedJobs"]
    assert workers["replicas"] == 1
    return workers["template"]["spec"]


@pytest.mark.parametrize("kind", ["gpu", "tpu"])
@pytest.mark.parametrize("hosts", [1, 4])
def test_what_is_applied(kind: str, hosts: int, world: World) -> None:
    chips = ("--chips", "4", "--topology", "4x4" if hosts == 4 else "2x2") if kind == "tpu" else ("--chips", "4")
    manifest = applied(world, kind, *POD, "--hosts", str(hosts), *chips, "--retries", "7", "--", *TRAIN)
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert manifest["metadata"]["name"] == "ctr-1"
    job = job_of(manifest)
    assert job["completionMode"] == "Indexed"
    assert job["completions"] == job["parallelism"] == hosts

    # 75: the pod again. 2: never again. Anything else: all of them again, seven times.
    rules = job["podFailurePolicy"]["rules"]
    by_code = {rule["onExitCodes"]["values"][0]: rule["action"] for rule in rules if "onExitCodes" in rule}
    assert by_code == {2: "FailJob", 75: "Ignore"}
    assert {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]} in rules
    assert job["backoffLimit"] == 0
    assert manifest["spec"]["failurePolicy"] == {
        "maxRestarts": 7,
        "rules": [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
    }

    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # what podFailurePolicy asks for
    assert pod["terminationGracePeriodSeconds"] >= 60
    (container,) = pod["containers"]
    assert {rule["onExitCodes"]["containerName"] for rule in rules if "onExitCodes" in rule} == {container["name"]}
    assert container["image"] == pod["initContainers"][0]["image"] == "registry:5000/alt-jax@sha256:ab"
    assert "command" not in container  # the image has no entry point, so args is the whole command
    cluster = {
        ("gpu", 4): ["--cluster", "ctr-1-workers-0-0.ctr-1:8476,$(JOB_COMPLETION_INDEX)/4"],
        ("tpu", 4): ["--cluster", "auto"],
    }
    wait = ["--cluster-wait", "300"] if hosts > 1 else []
    assert container["args"] == TRAIN + wait + cluster.get((kind, hosts), [])
    assert container["env"] == [{"name": "JAX_PLATFORMS", "value": {"gpu": "cuda,cpu", "tpu": "tpu,cpu"}[kind]}]
    assert container["resources"]["limits"] == {{"gpu": "nvidia.com/gpu", "tpu": "google.com/tpu"}[kind]: 4}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert set(mounts) == set(volumes)
    assert mounts["data"] == "/data"
    assert volumes["data"]["persistentVolumeClaim"] == {"claimName": "share"}
    if kind == "tpu":
        assert pod["nodeSelector"] == {
            "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
            "cloud.google.com/gke-tpu-topology": "4x4" if hosts == 4 else "2x2",
        }
    else:
        assert pod["securityContext"]["runAsNonRoot"]


@pytest.mark.parametrize("kind", ["gpu", "tpu"])
def test_the_comment_of_a_manifest_explains_every_gap_and_the_rest_is_yaml(kind: str) -> None:
    text = (ROOT / "launch" / "k8s" / f"{kind}.yaml").read_text()
    head, body = text.split("apiVersion", 1)
    assert set(re.findall("<[A-Z]+>", body)) == set(re.findall("<[A-Z]+>", head))
    assert yaml.safe_load(text)["kind"] == "JobSet"


def test_a_pod_waits_for_all_hosts(world: World, tmp_path: Path) -> None:
    """The second host is found at the third look."""
    wait = job_of(applied(world, "gpu", *POD, "--hosts", "2", "--", *TRAIN))["template"]["spec"]["initContainers"][0]
    (tmp_path / "getent").write_text(
        f'#!/bin/sh\necho "$2" >>{tmp_path}/looks\n'
        f'case "$2" in ctr-1-workers-0-1.ctr-1) [ "$(grep -c 0-1 {tmp_path}/looks)" -ge 3 ] ;; esac\n'
    )
    (tmp_path / "sleep").write_text("#!/bin/sh\n")
    for name in ("getent", "sleep"):
        (tmp_path / name).chmod(0o755)
    env = {item["name"]: item["value"] for item in wait["env"]} | {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    subprocess.run(wait["command"], env=env, check=True, timeout=20)
    looks = (tmp_path / "looks").read_text().split()
    assert looks == ["ctr-1-workers-0-0.ctr-1"] + ["ctr-1-workers-0-1.ctr-1"] * 3


def test_a_cluster_that_refuses_ends_in_its_exit_code(world: World) -> None:
    world.play("kubectl", {"code": 1, "err": "no matches for kind JobSet"})
    done = world.run("k8s.sh", "gpu", *POD, "--", *TRAIN)
    assert done.returncode == 1
    assert "kubectl logs" not in done.stderr
