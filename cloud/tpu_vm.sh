#!/bin/sh
# A job on a TPU slice with gcloud: create the slice, install, run on every host, fetch, delete.
#
#   sh cloud/tpu_vm.sh [--dry-run] STEP [ARGUMENTS]
#
#   create     asks for the slice        install    copies this repository to every host, pip install
#   run JOB .. starts the job there      logs       follows the log of the first host
#   status     the slice's state         stop       SIGTERM to the job: it saves and ends
#   fetch DIR  copies the run to DIR     delete     deletes the slice: the end of the costs
#
# Variables (none has a silent default that costs money or picks a place):
#   PROJECT  ZONE  NAME              Google Cloud project, zone, name of the slice
#   ACCELERATOR_TYPE  RUNTIME_VERSION    create: v5litepod-16 with v2-alpha-tpuv5-lite, ...
#   RUN_DIR                          run, fetch: gs://BUCKET/PATH, which outlives the slice
#   SPOT=1                           create: cheaper, may be taken away at any time
#   EXTRA                            install: further pip requirements
#
# --dry-run prints each command and runs none. What install copies is the last commit; uv brings
# Python 3.11, which the images of TPU VMs may lack.
set -eu

dry_run=
if [ "${1:-}" = --dry-run ]; then
  dry_run=1
  shift
fi
step=${1:-}
[ "$#" -eq 0 ] || shift

fail() {
  echo "tpu_vm.sh: $*" >&2
  exit 2
}

need() {
  for variable in "$@"; do
    eval "value=\${$variable:-}"
    # shellcheck disable=SC2154 # set by eval
    [ -n "$value" ] || fail "$step needs the variable $variable; see the head of this file"
  done
}

quoted() { # the words as a shell would read them again
  for word in "$@"; do
    case $word in
      *[!A-Za-z0-9_./:=,@%+-]* | "") printf "'%s' " "$(printf %s "$word" | sed "s/'/'\\\\''/g")" ;;
      *) printf '%s ' "$word" ;;
    esac
  done
}

do_it() {
  if [ -n "$dry_run" ]; then
    quoted "$@"
    echo
  else
    "$@"
  fi
}

tpu() { # a gcloud command on the slice: tpu VERB ARGUMENTS
  verb=$1
  shift
  do_it gcloud compute tpus tpu-vm "$verb" "$@" --project="$PROJECT" --zone="$ZONE"
}

on_all() { # a shell command on every host
  tpu ssh "$NAME" --worker=all --command="$1"
}

case $step in
  create)
    need PROJECT ZONE NAME ACCELERATOR_TYPE RUNTIME_VERSION
    case ${SPOT:-0} in
      0) tpu create "$NAME" --accelerator-type="$ACCELERATOR_TYPE" --version="$RUNTIME_VERSION" ;;
      1) tpu create "$NAME" --accelerator-type="$ACCELERATOR_TYPE" --version="$RUNTIME_VERSION" --spot ;;
      *) fail "SPOT is '$SPOT'; it must be 0 or 1" ;;
    esac
    ;;
  install)
    need PROJECT ZONE NAME
    here=$(cd "$(dirname "$0")/.." && pwd)
    archive=${TMPDIR:-/tmp}/alignax_$NAME.tar.gz
    do_it git -C "$here" archive --format=tar.gz --output="$archive" HEAD
    tpu scp "$archive" "$NAME:alignax.tar.gz" --worker=all
    on_all "rm -rf alignax && mkdir alignax && tar -xzf alignax.tar.gz -C alignax && cd alignax && python3 -m pip install --quiet --user uv && python3 -m uv venv --quiet --python 3.11 .venv && python3 -m uv pip install --quiet --python .venv/bin/python '.[tpu,gs]' ${EXTRA:-}"
    ;;
  run)
    need PROJECT ZONE NAME RUN_DIR
    [ "$#" -gt 0 ] || fail "run needs a job: run rec.pipeline --preset onerec_1b"
    case $RUN_DIR in
      gs://?*) ;;
      *) fail "RUN_DIR is '$RUN_DIR'; it must be gs://BUCKET/PATH, which every host sees and which outlives the slice" ;;
    esac
    words=$(quoted "$@")
    on_all "cd alignax || exit 1; nohup .venv/bin/python -m launch.tpu_pod ${words}--run-dir $RUN_DIR > ~/alignax.log 2>&1 & echo \$! > ~/alignax.pid"
    ;;
  logs)
    need PROJECT ZONE NAME
    tpu ssh "$NAME" --worker=0 --command="tail -n 50 -F ~/alignax.log"
    ;;
  status)
    need PROJECT ZONE NAME
    tpu describe "$NAME" --format="value(state,health)"
    ;;
  stop)
    need PROJECT ZONE NAME
    on_all "kill -TERM \$(cat ~/alignax.pid)"
    ;;
  fetch)
    need RUN_DIR
    [ "$#" -eq 1 ] || fail "fetch needs the folder to copy to: fetch runs/from_the_pod"
    do_it mkdir -p "$1"
    do_it gcloud storage rsync --recursive "$RUN_DIR" "$1"
    ;;
  delete)
    need PROJECT ZONE NAME
    tpu delete "$NAME" --quiet
    ;;
  *)
    fail "the step is '$step'; it must be create, install, run, logs, status, stop, fetch or delete"
    ;;
esac
