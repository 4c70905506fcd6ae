"""kubernetes.sh and its manifests: the JobSet against a schema, its jobs as strict batch/v1, which knows pods."""

import json
import pathlib
import re

import jsonschema
import kubernetes_validate
import pytest
import yaml

pytestmark = pytest.mark.slow

JOB = ["--name=night", "--image=registry.example/fgclip:1", "--claim=shared"]
V5E = ["--accelerator=tpu-v5-lite-podslice", "--topology=16x16"]


def check(text: str, root: pathlib.Path) -> dict:
  """Loads and checks a manifest."""
  manifest = yaml.safe_load(text)
  jsonschema.validate(manifest, json.loads((root / "tests/launch/jobset.schema.json").read_text()))
  for replicated in manifest["spec"]["replicatedJobs"]:
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": replicated["name"]}, **replicated["template"]}
    kubernetes_validate.validate(job, "1.33", strict=True)
  return manifest


@pytest.mark.parametrize(
  ("right", "wrong"),
  [
    ("maxRestarts: 3", "maxRestart: 3"),
    ("BlockingRecreate", "Recreate-blocking"),
    ("backoffLimit: 0", "backoffLimit: none"),
    ("mountPath: /dev/shm", "path: /dev/shm"),
  ],
)
def test_the_check_finds_mistakes(machine, root, right, wrong):
  text = machine().bash("launch/kubernetes.sh", "gpu", "--dry_run", *JOB, "--nodes=4", "--", "--config=c").stdout
  check(text, root)
  assert right in text
  with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
    check(text.replace(right, wrong), root)


@pytest.mark.parametrize(
  ("flags", "jobs", "pods", "chips"),
  [
    (V5E, 1, 64, 4),
    ([*V5E, "--slices=2"], 2, 64, 4),
    (["--accelerator=tpu-v5p-slice", "--topology=8x4x4"], 1, 32, 4),
    (["--accelerator=tpu-v6e-slice", "--topology=2x4", "--chips_per_host=8"], 1, 1, 8),
    (["--accelerator=tpu-v5-lite-podslice", "--topology=1x1"], 1, 1, 1),
  ],
)
def test_tpu(machine, root, flags, jobs, pods, chips):
  here = machine()
  command = ["launch/kubernetes.sh", "tpu", "--dry_run", *JOB, *flags, "--max_restarts=9", "--", *here.training]
  spec = check(here.bash(*command).stdout, root)["spec"]
  assert spec["failurePolicy"]["maxRestarts"] == 9
  [slices] = spec["replicatedJobs"]
  job = slices["template"]["spec"]
  assert (slices["replicas"], job["parallelism"], job["completions"]) == (jobs, pods, pods)
  container = container_of(job)
  assert container["resources"]["limits"] == {"google.com/tpu": chips}
  assert container["args"] == [*here.training]
  selector = job["template"]["spec"]["nodeSelector"].values()
  assert set(selector) == {flag.partition("=")[2] for flag in flags if flag.startswith(("--accel", "--topology"))}


def test_gpu_processes_find_the_first_pod(machine, root):
  here = machine()
  command = ["launch/kubernetes.sh", "gpu", "--dry_run", *JOB, "--nodes=4", "--gpus_per_node=2", "--", *here.training]
  manifest = check(here.bash(*command).stdout, root)
  [nodes] = manifest["spec"]["replicatedJobs"]
  job = nodes["template"]["spec"]
  container = container_of(job)
  assert container["resources"]["limits"] == {"nvidia.com/gpu": 2}
  # JobSet's names: JOBSET-REPLICATEDJOB-JOB-POD.JOBSET
  host = f"{manifest['metadata']['name']}-{nodes['name']}-0-0.{manifest['metadata']['name']}"
  assert container["args"] == [
    f"--coordinator={host}:8476",
    f"--processes={job['completions']}",
    "--process=$(JOB_COMPLETION_INDEX)",
    *here.training,
  ]
  assert manifest["spec"]["network"]["enableDNSHostnames"] and job["completionMode"] == "Indexed"


def container_of(job: dict) -> dict:
  """The only container of a job; what concerns restarts and volumes is looked at on the way."""
  pod = job["template"]["spec"]
  [container] = pod["containers"]
  caught = job["podFailurePolicy"]["rules"]
  for rule, code in zip(caught, (2, 75), strict=False):
    assert rule["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [code]}
  assert all(rule["action"] == "FailJob" for rule in caught)
  assert pod["restartPolicy"] == "Never" and job["backoffLimit"] == 0  # any failure restarts all pods together
  assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
  return container


@pytest.mark.parametrize("flags", [["tpu", *V5E], ["gpu", "--nodes=2"]])
@pytest.mark.parametrize(
  ("code", "action"), [(2, "FailJobSet"), (75, "RestartJobSetAndIgnoreMaxRestarts"), (1, None), (137, None), (25, None)]
)
def test_what_becomes_of_an_exit_code(machine, root, flags, code, action):
  """As JobSet's controller takes its rules: the first that matches; without one, a restart that counts."""
  here = machine()
  manifest = check(here.bash("launch/kubernetes.sh", *flags, "--dry_run", *JOB, "--", *here.training).stdout, root)
  [replicated] = manifest["spec"]["replicatedJobs"]
  caught = replicated["template"]["spec"]["podFailurePolicy"]["rules"]
  index = next((i for i, rule in enumerate(caught) if code in rule.get("onExitCodes", {}).get("values", ())), None)
  # the condition that Kubernetes gives the job (pkg/controller/job/pod_failure_policy.go)
  reason, message = "BackoffLimitExceeded", "Job has reached the specified backoff limit"
  if index is not None:
    reason = "PodFailurePolicy"
    message = (
      f"Container train for pod default/night-0-0 failed with exit code {code} matching FailJob rule at index {index}"
    )
  rules = manifest["spec"]["failurePolicy"]["rules"]
  taken = [
    rule["action"]
    for rule in rules
    if reason in rule["onJobFailureReasons"]
    and any(re.search(pattern, message) for pattern in rule.get("onJobFailureMessagePatterns", [""]))
  ]
  assert (taken[0] if taken else None) == action


@pytest.mark.parametrize("flags", [["tpu", *V5E], ["gpu", "--nodes=2"]])
def test_what_a_dry_run_prints_is_applied(machine, flags):
  here = machine("kubectl")
  command = ["launch/kubernetes.sh", *flags, *JOB]
  printed = here.bash(*command, "--dry_run", "--", *here.training).stdout
  assert here.calls() == []
  assert "${" not in printed
  here.bash(*command, "--", *here.training)
  assert here.calls() == [["kubectl", "apply", "-f", "-"]]
  assert json.loads(here.log.read_text())["stdin"] == printed


@pytest.mark.parametrize("flags", [["tpu", *V5E], ["gpu", "--nodes=2"]])
def test_a_bucket_needs_no_claim_but_an_account(machine, root, flags):
  here = machine()
  command = ["launch/kubernetes.sh", *flags, "--dry_run", *JOB[:2], "--service_account=trainer"]
  training = ["--config=c", "--workdir=gs://bucket/run"]
  manifest = check(here.bash(*command, "--", *training).stdout, root)
  [replicated] = manifest["spec"]["replicatedJobs"]
  pod = replicated["template"]["spec"]["template"]["spec"]
  assert pod["serviceAccountName"] == "trainer"
  assert [volume["name"] for volume in pod["volumes"]] == ["memory"]
  assert container_of(replicated["template"]["spec"])["args"][-2:] == training
  refused = here.bash(*command, "--", "--config=c", "--workdir=/mnt/shared/run", code=2)
  assert "--claim is missing" in refused.stderr


@pytest.mark.parametrize("flags", [["tpu", *V5E], ["gpu", "--nodes=2"]])
def test_without_an_account_the_pods_have_the_default_one(machine, root, flags):
  here = machine()
  text = here.bash("launch/kubernetes.sh", *flags, "--dry_run", *JOB, "--", *here.training).stdout
  [replicated] = check(text, root)["spec"]["replicatedJobs"]
  pod = replicated["template"]["spec"]["template"]["spec"]
  assert "serviceAccountName" not in pod
  assert {"name": "shared", "persistentVolumeClaim": {"claimName": "shared"}} in pod["volumes"]


def test_the_image_is_built_from_files_that_are_there(root):
  text = (root / "launch/kubernetes/Dockerfile").read_text()
  for accelerator in ("tpu", "gpu"):
    copies = re.findall(r"^COPY (.+) \S+$", text.replace("${ACCELERATOR}", accelerator), re.MULTILINE)
    sources = [source for copy in copies for source in copy.split()]
    assert f"requirements-{accelerator}.txt" in sources
    assert all((root / source).exists() for source in sources)
