#!/bin/sh
# A client in shell, without Python on its side.
. ../start.sh
export FLASK_CTL_SOCKET="$place/app.sock"
cp "$EXAMPLES/quickstart/app.py" .
python app.py >log 2>&1 &
server=$!
flask-ctl ping --quiet --wait 20
show sh control.sh "$FLASK_CTL_SOCKET" status
show sh control.sh "$FLASK_CTL_SOCKET" greeted reset=true
expect 1 sh control.sh "$FLASK_CTL_SOCKET" greeted reset=perhaps
show sh control.sh "$FLASK_CTL_SOCKET" stop grace=10
wait $server
expect 3 sh control.sh "$FLASK_CTL_SOCKET" status
