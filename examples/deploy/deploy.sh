#!/bin/sh
# deploy.sh RELEASE: switch the link `current` to releases/RELEASE, and reload. If the release does not load, switch back.
set -eu
switch() { ln -sfn "$1" current.new && mv -fT current.new current; }

before=$(readlink current)
switch "releases/$1"
code=0
flask-ctl reload --grace 20 || code=$?
case $code in
0) echo "release $1 serves" ;;
6) echo "release $1 serves, but requests were cut" ;;
*)
    switch "$before"
    echo "release $1 does not serve (exit code $code); $before still does" >&2
    exit "$code"
    ;;
esac
