#!/bin/sh
# `flask --app shop ctl` takes the address from the app's configuration.
. ../start.sh
export FLASK_APP=shop
flask run --port 0 2>log &
show flask ctl ping --quiet --wait 20
url=$(flask ctl status --json | python -c 'import json, sys; print(json.load(sys.stdin)["server"]["listeners"][0])')
curl -s -d item=pen "$url/orders/"
curl -s -d item=ink "$url/orders/"
show flask ctl order-count
show flask ctl reload
[ "$(flask ctl order-count)" = 2 ]
show flask ctl stop
[ ! -s shop.db-wal ]
