#!/usr/bin/env bash
# make demo: the whole pipeline on four small tasks that need no download, on this machine's loopback. Run it again and
# what is finished is skipped. VENV is the environment (.venv); HST_STATE is where everything is kept.
set -euo pipefail
cd "$(dirname "$0")/.."
bin="$(cd "${VENV:-.venv}/bin" && pwd)"

venv=""
[ "${VENV:-.venv}" = .venv ] || venv=" VENV=$VENV"

say() { printf '\n== %s\n' "$*"; }

say "The stack: an MLflow server and a Ray head, on this machine alone"
"$bin/python" -m infra.stack up
# shellcheck disable=SC1090
. "$("$bin/python" -m infra.stack env)"

say "The data: real handwritten digits, and shapes drawn here"
data="$HST_STATE/demo-data"
"$bin/python" jobs/make_demo_data.py "$data"

say "The job: one side network a task on one frozen ViT, which was pretrained on drawings of formulas alone"
submission="demo-$(date +%Y%m%d-%H%M%S)-$$"
trap '"$bin/ray" job stop "$submission" || true; exit 130' INT TERM
"$bin/ray" job submit --submission-id "$submission" --working-dir . -- \
    python jobs/fanout_vtab.py --tasks demo --data "$data" \
    --backbone hst_vit_micro_patch8_64 \
    --storage "$HST_STORAGE" --tracking-uri "$MLFLOW_TRACKING_URI" "$@"
trap - INT TERM

say "A task's checkpoint, from the registry"
pulled="$HST_STATE/pulled"
"$bin/hst-registry" pull demo-digits --dest "$pulled"
"$bin/hst-registry" verify "$pulled/demo-digits.safetensors"

cat <<END

== Where to look next
   Runs, compared     $MLFLOW_TRACKING_URI
   The cluster        $RAY_API_SERVER_ADDRESS   (asks for the token in $RAY_AUTH_TOKEN_PATH)
   The checkpoint     $pulled/demo-digits.safetensors
   This shell         . "$HST_STATE/env" && export PATH="$bin:\$PATH" && hst-registry list
   make ui$venv            say where the MLflow page is, and start it if it does not run
   make down$venv          end the stack; runs, checkpoints and data stay in $HST_STATE
END
