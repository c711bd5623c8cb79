#!/usr/bin/env bash
# Sees a run on Cloud TPUs through to its end, with queued resources and spot chips:
#
#   ./launch/tpu_queued.sh --name NAME [options] alt-jax pretrain CONFIG --run-dir /mnt/share/runs/D ...
#
# Asks for the chips, waits for them, installs alt-jax and runs the command. Where the chips are taken away it asks again
# and starts the same command, which goes on from its last checkpoint. It ends when the command exits 0 (done) or 2 (its
# input is wrong), or has failed too often, and then deletes what it asked for. The run folder must outlive the machines:
# --mount says how every worker gets at storage that they share. Started again after Ctrl-C, it goes on where it is.
#
#   --type v5litepod-8 --version v2-alpha-tpuv5-lite --zone Z --project P --mount COMMAND     as for tpu_vm.sh
#   --on-demand   not spot
#   --retries N   times that something else than a preemption may go wrong (3)
#   --poll S      seconds between two looks at the queue (30)
#   --keep        do not delete at the end; what is kept costs
#   --dry-run     print what would be run, and run nothing
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
# shellcheck source-path=SCRIPTDIR source=steps.sh
source "$root/launch/steps.sh"

name="" type=v5litepod-8 version=v2-alpha-tpuv5-lite zone="" project="" mount="" poll=30 spot=true keep=false
while (($#)); do
  case $1 in
    -h | --help) usage && exit ;;
    --dry-run) dry_run=true && shift ;;
    --on-demand) spot=false && shift ;;
    --keep) keep=true && shift ;;
    --name) name="$(value "$@")"; shift 2 ;;
    --type) type="$(value "$@")"; shift 2 ;;
    --version) version="$(value "$@")"; shift 2 ;;
    --zone) zone="$(value "$@")"; shift 2 ;;
    --project) project="$(value "$@")"; shift 2 ;;
    --mount) mount="$(value "$@")"; shift 2 ;;
    --retries) retries="$(count "$@")"; shift 2 ;;
    --poll) poll="$(count "$@")"; shift 2 ;;
    --) shift && break ;;
    -*) refuse "there is no option $1; ${0##*/} --help shows all." ;;
    *) break ;;
  esac
done
[[ -n $name ]] || refuse "give the chips a name: --name NAME."
[[ $name =~ ^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$ ]] ||
  refuse "--name '$name' should be small letters, digits and hyphens, and begin with a letter."
(($#)) || refuse "give the command to run after the options, e.g. alt-jax pretrain CONFIG --run-dir /mnt/share/runs/D."
[[ " $* " =~ \ --run-dir[\ =]/ ]] ||
  refuse "the command needs --run-dir /PATH on storage that all machines see: a VM's own disk is lost with the VM."
$dry_run || need gcloud "install the Google Cloud CLI."

where=()
if [[ -n $zone ]]; then where+=(--zone="$zone"); fi
if [[ -n $project ]]; then where+=(--project="$project"); fi

queued() { # VERB ARGUMENTS...
  run gcloud compute tpus queued-resources "$@" ${where[@]+"${where[@]}"}
}

vm() { # ACTION ARGUMENTS...
  local action=$1
  shift
  local options=(--name "$name")
  if [[ -n $zone ]]; then options+=(--zone "$zone"); fi
  if [[ -n $project ]]; then options+=(--project "$project"); fi
  if $dry_run; then options+=(--dry-run); fi
  "$root/launch/tpu_vm.sh" "$action" "${options[@]}" "$@"
}

create() {
  local tier=()
  if $spot; then tier=(--spot); fi
  queued create "$name" --node-id="$name" --accelerator-type="$type" --runtime-version="$version" ${tier[@]+"${tier[@]}"}
}

delete() { queued delete "$name" --force --quiet; }

install() { vm install ${mount:+--mount "$mount"}; }

state() { # as the service calls it, or NONE
  local answer
  if answer="$(queued describe "$name" --format='value(state.state)' 2>&1)"; then
    printf '%s\n' "${answer##*$'\n'}"
  elif [[ $answer == *NOT_FOUND* ]]; then
    echo NONE
  else
    printf '%s\n' "$answer" >&2
    echo UNKNOWN
  fi
}

if $dry_run; then
  create
  printf '%s\n' "# until it says ACTIVE:"
  queued describe "$name" --format='value(state.state)'
  install
  vm run -- "$@"
  $keep || delete
  exit
fi

left="$name is left as it is, and costs; the same command goes on with it, and this deletes it: gcloud compute tpus
queued-resources delete $name --force ${where[*]-}"
trap 'say "$left"; exit 130' INT
trap 'say "$left"; exit 143' TERM

end() { # CODE SENTENCE
  say "$2"
  if $keep; then
    say "$left"
  elif [[ "$(state)" != NONE ]] && ! delete; then
    say "$left"
  fi
  exit "$1"
}

failures=0
failed() { # CODE WHAT
  failures=$((failures + 1))
  if ((failures > retries)); then end "$1" "$2, exit code $1; that was once too often."; fi
  say "$2, exit code $1; trying again ($failures of $retries)."
  sleep "$poll"
}

installed=false before=""
while :; do
  now="$(state)"
  if [[ $now != "$before" ]]; then say "$name: $now"; fi
  before=$now
  code=0
  case $now in
    NONE)
      installed=false
      create || failed $? "asking for the chips failed"
      ;;
    SUSPENDED)
      say "the chips were taken away; asking again."
      delete || failed $? "deleting failed"
      ;;
    FAILED)
      delete || failed $? "deleting failed"
      failed 1 "the request for the chips failed (quota? zone? type?)"
      ;;
    UNKNOWN) failed 1 "the state could not be read" ;;
    ACTIVE)
      if ! $installed; then install || code=$?; fi
      what="installing failed"
      if ((code == 0)); then
        installed=true what="the command failed"
        vm run -- "$@" || code=$?
        case $code in
          0) end 0 "done." ;;
          2) end 2 "the command's input is wrong; not started again." ;;
          69) keep=true && end 69 "another command is running on $name; tpu_vm.sh stop --name $name ends it." ;;
        esac
      fi
      sleep "$poll" # until the service knows of a preemption
      if ((code == 75)); then
        say "it stopped after saving; going on."
      elif [[ "$(state)" == ACTIVE ]]; then
        failed "$code" "$what"
      fi
      ;;
    *) sleep "$poll" ;; # on its way: CREATING, WAITING_FOR_RESOURCES, PROVISIONING, SUSPENDING, DELETING
  esac
done
