#!/usr/bin/env bash
# make demo: runs the whole pipeline on four small tasks that need no download, on this machine's loopback. A second run
# skips what is finished. VENV is the environment (.venv); HST_STATE is the folder that keeps everything.
set -euo pipefail
cd "$(dirname "$0")/.."
bin="$(cd "${VENV:-.venv}/bin" && pwd)"

venv=""
[ "${VENV:-.venv}" = .venv ] || venv=" VENV=$VENV"

say() { printf '\n== %s\n' "$*"; }

say "The stack: an MLflow server and a Ray head, on this machine only"
"$bin/python" -m infra.stack up
# shellcheck disable=SC1090
. "$("$bin/python" -m infra.stack env)"

say "The data: real handwritten digits, and drawn shapes"
data="$HST_STATE/demo-data"
"$bin/python" jobs/make_demo_data.py "$data"

say "The job: one side network per task on one frozen ViT, which was pretrained only on drawings of formulas"
submission="demo-$(date +%Y%m%d-%H%M%S)-$$"
trap '"$bin/ray" job stop "$submission" || true; exit 130' INT TERM
"$bin/ray" job submit --submission-id "$submission" --working-dir . -- \
    python jobs/fanout_vtab.py --tasks demo --data "$data" \
    --backbone hst_vit_micro_patch8_64 \
    --storage "$HST_STORAGE" --tracking-uri "$MLFLOW_TRACKING_URI" "$@"
trap - INT TERM

say "The checkpoint of one task, from the registry"
pulled="$HST_STATE/pulled"
"$bin/hst-registry" pull demo-digits --dest "$pulled"
"$bin/hst-registry" verify "$pulled/demo-digits.safetensors"

cat <<END

== Where to look next
   Compare the runs   $MLFLOW_TRACKING_URI
   The cluster        $RAY_API_SERVER_ADDRESS   (asks for the token in $RAY_AUTH_TOKEN_PATH)
   The checkpoint     $pulled/demo-digits.safetensors
   This shell         . "$HST_STATE/env" && export PATH="$bin:\$PATH" && hst-registry list
   make ui$venv            print the address of the MLflow page; start the server if it does not run
   make down$venv          end the stack; runs, checkpoints and data stay in $HST_STATE
END
