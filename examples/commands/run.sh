#!/bin/sh
# The app's own commands are commands of flask-ctl.
. ../start.sh
python app.py 2>log &
show flask-ctl ping --quiet --wait 20
url=$(flask-ctl status --quiet --json | python -c 'import json, sys; print(json.load(sys.stdin)["server"]["listeners"][0])')
for job in ann bob cid; do curl -s -X POST "$url/jobs/$job" >log; done
show flask-ctl queue --limit 2
show flask-ctl discard --names ann --names bob
show flask-ctl speed --to fast
expect 2 flask-ctl speed --to sideways
show flask-ctl queue
show flask-ctl stop
