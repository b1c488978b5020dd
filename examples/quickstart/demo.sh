#!/bin/sh
# Shows flask-ctl at work on app.py: real processes, real output.
set -eu
place=$(mktemp -d)
cp "$(dirname "$0")/app.py" "$place"
cd "$place"
# The default socket of the app is in there, and is removed with the rest; instances elsewhere are not seen.
export XDG_RUNTIME_DIR="$place" TMPDIR="$place"
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || :; rm -rf "$place"' EXIT

title() { printf '\n== %s\n' "$1"; }
show() {
    printf '$ %s\n' "$*"
    code=0
    "$@" || code=$?
    printf '(exit code %s)\n' "$code"
}
start() {
    printf '$ python app.py &\n'
    python app.py 2>log &
    server=$!
}
quietly() { flask-ctl --quiet "$@"; }
find_url() { url=$(quietly status --json | python -c 'import json, sys; print(json.load(sys.stdin)["server"]["listeners"][0])'); }
fetch() { python -c 'import sys, urllib.request as u; print("the request:", u.urlopen(sys.argv[1]).read().decode(), end="")' "$1"; }
begin_slow_request() {
    printf 'a request of three seconds begins\n'
    (fetch "$url/slow" 2>/dev/null || echo "the request: CUT") &
    request=$!
    until quietly status --json | grep -q '"in_flight": 1'; do :; done
}

title "An app with Control(app): commands find it from its directory"
start
show flask-ctl ping --wait 10

title "Inspect it"
show flask-ctl status
find_url

title "Call one of its own commands"
fetch "$url/"
show flask-ctl greeted --reset
show flask-ctl call greeted reset=perhaps

title "Reload it while a request is in flight: the old code answers it, the new code all later requests"
begin_slow_request
sed 's/Hello!/Hello from the new code!/' app.py >new.py && mv new.py app.py
show flask-ctl reload
wait "$request"
fetch "$url/"

title "Reload it with broken code: the reload is refused, and the old code still serves"
cp app.py good.py
echo 'def broken(:' >>app.py
show flask-ctl reload
fetch "$url/"
cp good.py app.py

title "Stop it while a request is in flight: the request is answered, then the process ends"
begin_slow_request
show flask-ctl stop
wait "$request"
code=0
wait "$server" || code=$?
printf 'python app.py ended with exit code %s\n' "$code"

title "Stop it again: nothing is running"
show flask-ctl stop

title "A stop with a short grace reports that it cut a request"
start
quietly ping --wait 10
find_url
begin_slow_request
show flask-ctl stop --grace 0.5
wait "$request" "$server"
