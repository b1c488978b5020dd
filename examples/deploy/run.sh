#!/bin/sh
# gunicorn behind a symbolic link: a good release, a broken one, a good one again; no request is lost.
. ../start.sh
for release in 1 2 3; do
    mkdir -p releases/$release
    cp shop.py releases/$release
    echo $release >releases/$release/RELEASE
done
echo 'import nonsense' >>releases/2/shop.py
ln -s releases/1 current

export FLASK_CTL_SOCKET="$place/shop.sock"
port=$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
gunicorn --workers 2 --threads 4 --bind "127.0.0.1:$port" --no-control-socket --chdir "$PWD/current" shop:app 2>log &
show flask-ctl ping --quiet --wait 30

expect 7 sh deploy.sh 2
[ "$(curl -s "http://127.0.0.1:$port/")" = "release 1" ]
curl -s "http://127.0.0.1:$port/slow" >slow &
request=$!
while kill -0 $request 2>kill.txt && ! flask-ctl status --json | grep -q '"in_flight": 1,'; do :; done
expect 0 sh deploy.sh 3
wait $request
[ "$(cat slow)" = "release 1, slowly" ]
[ "$(curl -s "http://127.0.0.1:$port/")" = "release 3" ]
expect 0 flask-ctl stop --grace 10 --kill-after 20
