#!/usr/bin/env bash
# Runs a command on a Kubernetes cluster that has JobSet (https://jobset.sigs.k8s.io), on GPUs or on TPUs of GKE:
#
#   ./launch/k8s.sh gpu --name NAME --image IMAGE --claim PVC [--hosts H] [--chips 8] [--retries N] \
#       -- alt-jax pretrain CONFIG --run-dir /data/runs/D --data.dir /data/prepared/P ...
#   ./launch/k8s.sh tpu --name NAME --image IMAGE --claim PVC [--hosts H] [--chips 8] [--retries N] \
#       [--accelerator tpu-v5-lite-podslice] [--topology 2x4] -- alt-jax ...
#
# Fills in k8s/gpu.yaml or k8s/tpu.yaml and applies it. IMAGE is built from launch/Dockerfile; PVC is a claim that all hosts
# mount, at /data; --chips is the number of GPUs or TPU chips that each of H hosts has. With several hosts, --cluster
# is added to the command. kubectl's own context and namespace count. Pods that exit 75 are replaced, other failures
# start all of them again N times at most (3), bad input (exit code 2) ends it.
#
#   --dry-run   print what would be run, and run nothing
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
# shellcheck source-path=SCRIPTDIR source=steps.sh
source "$root/launch/steps.sh"

kind=${1:-}
case $kind in
  -h | --help) usage && exit ;;
  gpu | tpu) shift ;;
  "") refuse "say on what: gpu or tpu." ;;
  *) refuse "there is no '$kind': gpu or tpu." ;;
esac
name="" image="" claim="" hosts=1 chips=8 accelerator=tpu-v5-lite-podslice topology=2x4
while (($#)); do
  case $1 in
    -h | --help) usage && exit ;;
    --dry-run) dry_run=true && shift ;;
    --name) name="$(value "$@")"; shift 2 ;;
    --image) image="$(value "$@")"; shift 2 ;;
    --claim) claim="$(value "$@")"; shift 2 ;;
    --hosts) hosts="$(count "$@")"; shift 2 ;;
    --chips) chips="$(count "$@")"; shift 2 ;;
    --retries) retries="$(count "$@")"; shift 2 ;;
    --accelerator | --topology)
      if [[ $kind == gpu ]]; then refuse "$1 is for tpu."; fi
      if [[ $1 == --topology ]]; then topology="$(value "$@")"; else accelerator="$(value "$@")"; fi
      shift 2
      ;;
    --) shift && break ;;
    -*) refuse "there is no option $1; ${0##*/} --help shows all." ;;
    *) break ;;
  esac
done
(($#)) || refuse "give the command to run after --, e.g. -- alt-jax pretrain CONFIG --run-dir /data/runs/D."

label='^[a-z]([-a-z0-9]*[a-z0-9])?$'
[[ $name =~ $label && ${#name} -le 40 ]] ||
  refuse "--name '$name' should be at most 40 small letters, digits and hyphens, and begin with a letter."
[[ $claim =~ ^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$ ]] || refuse "--claim '$claim' should be the name of a PersistentVolumeClaim."
[[ $image =~ ^[A-Za-z0-9][A-Za-z0-9._/:@-]*$ ]] || refuse "--image '$image' should be an image's name, e.g. registry/alt-jax:cuda."
[[ $accelerator =~ $label ]] || refuse "--accelerator '$accelerator' should be a node label's value, e.g. tpu-v5-lite-podslice."
[[ $topology =~ ^[1-9][0-9]*(x[1-9][0-9]*)+$ ]] || refuse "--topology '$topology' should be like 2x4."
((hosts > 0 && chips > 0)) || refuse "--hosts and --chips must be at least 1."
if [[ $kind == tpu ]] && ((hosts * chips != ${topology//x/*})); then
  refuse "a topology of $topology has $((${topology//x/*})) chips, but --hosts $hosts --chips $chips makes $((hosts * chips))."
fi

command=("$@")
if ((hosts > 1)); then
  command+=(--cluster-wait 300) # pods know each other's names before they start, but do not start at once
  if [[ $kind == tpu ]]; then
    command+=(--cluster auto)
  else
    # The pod's own number, which Kubernetes puts in.
    command+=(--cluster "$name-workers-0-0.$name:8476,\$(JOB_COMPLETION_INDEX)/$hosts")
  fi
fi
list="" # JSON, which is YAML
for word in "${command[@]}"; do
  if [[ $word == *[[:cntrl:]]* ]]; then refuse "a word of the command has a line break or tab in it."; fi
  word=${word//\\/\\\\}
  word=${word//\"/\\\"}
  list+=", \"$word\""
done

manifest() {
  local line
  while IFS= read -r line; do
    if [[ $line == \#* ]]; then continue; fi
    line=${line//<NAME>/$name}
    line=${line//<IMAGE>/$image}
    line=${line//<CLAIM>/$claim}
    line=${line//<HOSTS>/$hosts}
    line=${line//<CHIPS>/$chips}
    line=${line//<RETRIES>/$retries}
    line=${line//<ACCELERATOR>/$accelerator}
    line=${line//<TOPOLOGY>/$topology}
    if [[ $line == *"<COMMAND>"* ]]; then line="${line%%<COMMAND>*}[${list#, }]"; fi
    printf '%s\n' "$line"
  done <"$root/launch/k8s/$kind.yaml"
}

if $dry_run; then
  printf '%s\n' "kubectl apply -f - <<'EOF'" "$(manifest)" EOF
  exit
fi
need kubectl "install it, and let its context be your cluster."
manifest | kubectl apply -f -
say "kubectl get jobset $name; kubectl logs --follow -l jobset.sigs.k8s.io/jobset-name=$name; kubectl delete jobset $name"
