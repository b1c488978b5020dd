#!/bin/sh
# Shows flask-ctl at work on app.py: real processes, real output.
set -eu
place=$(mktemp -d)
cp "$(dirname "$0")/app.py" "$place"
cd "$place"
socket=$place/app.sock
trap 'kill "$server" 2>/dev/null || :; rm -rf "$place"' EXIT

title() { printf '\n== %s\n' "$1"; }
show() {
    printf '$ %s\n' "$*"
    code=0
    "$@" || code=$?
    printf '(exit code %s)\n' "$code"
}
fetch() { python -c 'import sys, urllib.request as u; print("the request:", u.urlopen(sys.argv[1]).read().decode(), end="")' "$1"; }

title "python app.py: the app has nothing but Control(app)"
FLASK_CTL_SOCKET=$socket python app.py 2>"$place/log" &
server=$!
show flask-ctl ping --wait 10 --socket "$socket"

title "Look into it"
show flask-ctl status --socket "$socket"
url=$(flask-ctl status --socket "$socket" --json | python -c 'import json, sys; print(json.load(sys.stdin)["server"]["listeners"][0])')

title "Call a command of its own"
fetch "$url/"
show flask-ctl greeted --reset --socket "$socket"
show flask-ctl call greeted reset=perhaps --socket "$socket"

title "Reload it while a request of three seconds is in flight: the old code answers that, the new code everybody else"
fetch "$url/slow" &
request=$!
until flask-ctl status --socket "$socket" --json | grep -q '"in_flight": 1'; do :; done
sed -i 's/Hello!/Hello from the new code!/' app.py
show flask-ctl reload --socket "$socket"
wait "$request"
fetch "$url/"

title "Reload it with broken code: refused, and the old code serves on"
cp app.py good.py
echo 'def broken(:' >>app.py
show flask-ctl reload --socket "$socket"
fetch "$url/"
cp good.py app.py

title "Stop it while a request of three seconds is in flight: the request is answered, then the process is gone"
fetch "$url/slow" &
request=$!
until flask-ctl status --socket "$socket" --json | grep -q '"in_flight": 1'; do :; done
flask-ctl status --socket "$socket" | grep requests
show flask-ctl stop --socket "$socket"
wait "$request"
code=0
wait "$server" || code=$?
printf 'python app.py ended with exit code %s\n' "$code"

title "Ask again: nothing is running"
show flask-ctl stop --socket "$socket"

title "A stop that may not wait says that it cut a request"
FLASK_CTL_SOCKET=$socket python app.py 2>"$place/log" &
server=$!
flask-ctl ping --wait 10 --socket "$socket" --quiet
url=$(flask-ctl status --socket "$socket" --json | python -c 'import json, sys; print(json.load(sys.stdin)["server"]["listeners"][0])')
(fetch "$url/slow" 2>/dev/null || echo "the request: cut") &
request=$!
until flask-ctl status --socket "$socket" --json | grep -q '"in_flight": 1'; do :; done
show flask-ctl stop --grace 0.5 --socket "$socket"
wait "$request" "$server"
