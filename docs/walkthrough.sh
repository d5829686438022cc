#!/usr/bin/env bash
# A federation of three pretend hospitals on this machine, from nothing to the report: the commands of walkthrough.md.
#   docs/walkthrough.sh [FOLDER]     in a new folder; default: runs/walkthrough. PORT=8444 before it: another port.
set -euo pipefail

checkout=$(cd "$(dirname "$0")/.." && pwd)
out=${1:-$checkout/runs/walkthrough}
[[ $out = /* ]] || out=$PWD/$out
port=${PORT:-8443}
programs=() # what runs in the background, the server first
stage=""

begin() { # begin TITLE: say how long the stage before took, and name the next one
    [ -z "$stage" ] || echo "--- $stage: $((SECONDS - begun)) s"
    stage=$1 begun=$SECONDS
    [ -z "$stage" ] || printf '\n=== %s\n' "$stage"
}

run() { # run COMMAND...: show it as it would be typed, then do it
    printf '\n%s$ %s\n' "${PWD#"$(dirname "$out")"/}" "$*"
    "$@"
}

background() { # background NAME COMMAND...: the same, in a terminal of its own
    printf '\n%s$ %s &\n' "${PWD#"$(dirname "$out")"/}" "${*:2}"
    "${@:2}" >"$out/$1.log" 2>&1 </dev/null &
    programs+=($!)
}

stop() { # end what runs in the background, and wait until it is gone
    local program
    for program in "${programs[@]}"; do kill "$program" 2>/dev/null || true; done
    for program in "${programs[@]}"; do wait "$program" 2>/dev/null || true; done
    programs=()
}

give_up() { # something is not as it should be: show the last words of all programs, and stop
    tail -n 5 "$out"/*.log >&2
    echo "walkthrough: stopped; the logs are in $out" >&2
    exit 1
}

trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
command -v fedpretext >/dev/null || { echo "fedpretext is not on the PATH; source .venv/bin/activate first" >&2; exit 2; }

begin "1. pretend hospitals"
cd "$checkout"
run fedpretext pretend-hospitals "$out"
run mkdir "$out/lead"
run cp configs/walkthrough.yaml "$out/lead/study.yaml"

begin "2. the study lead makes the federation and sends out kits"
cd "$out/lead"
run fedpretext provision study.yaml --server "localhost:$port" --sites north,south,west --out kits
run cp -r kits/kit-north ../north/kit
run cp -r kits/kit-south ../south/kit
run cp -r kits/kit-west ../west/kit

begin "3. each hospital makes its key"
for site in north south west; do
    cd "$out/$site/kit"
    run fedpretext site init . --data ../images
    run cp site.csr "../../lead/$site.csr"
done

begin "4. the study lead enrols the hospitals and starts the server"
cd "$out/lead"
run fedpretext accept kits/server north.csr
run fedpretext accept kits/server south.csr
run fedpretext accept kits/server west.csr
background server fedpretext server study.yaml --host 127.0.0.1
until grep -q "^listening on" "$out/server.log"; do
    kill -0 "${programs[0]}" 2>/dev/null || give_up
    sleep 0.5
done
cat "$out/server.log"

begin "5. each hospital looks, approves and joins"
for site in north south west; do
    cd "$out/$site/kit"
    run fedpretext site check
    run fedpretext site approve study.yaml <<<y
    background "$site" fedpretext client .
done

begin "6. two rounds"
cd "$out/lead"
run fedpretext status --once
wait -n || give_up # the server ends by itself when all is done, a client only when something is wrong
run fedpretext status --once
stop

begin "7. each hospital looks back"
for site in north south west; do
    cd "$out/$site/kit"
    run fedpretext audit
    run sha256sum state/*/final.safetensors
done

begin "8. the study lead looks back, and evaluates"
cd "$out/lead"
run fedpretext audit kits/server
run sha256sum kits/server/runs/*/arms/federated/fold-0/seed-0/global.safetensors
run grep -ril nobody . && give_up # a word of every name at north; grep finds it nowhere here
run fedpretext evaluate kits/server/runs/walkthrough-* --data ../evaluator/images

begin ""
cd "$out"
weights=(lead/kits/server/runs/*/arms/federated/fold-0/seed-0/global.safetensors */kit/state/*/final.safetensors)
printf '\nSHA-256 of the shared weights, at the server and at each hospital:\n'
sha256sum "${weights[@]}"
for each in "${weights[@]:1}"; do cmp "${weights[0]}" "$each" || give_up; done
printf '\nThey are equal. All of it took %d s.\nreport: %s\n' "$SECONDS" "$out"/lead/kits/server/runs/*/report.html
