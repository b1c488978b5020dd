#!/bin/sh
# A client in JavaScript, without flask-ctl on its side.
. ../start.sh
export FLASK_CTL_SOCKET="$place/app.sock"
cp "$EXAMPLES/quickstart/app.py" .
python app.py >log 2>&1 &
flask-ctl ping --quiet --wait 20
show node flask-ctl.js "$FLASK_CTL_SOCKET" ping
show node flask-ctl.js "$FLASK_CTL_SOCKET" greeted '{"reset": true}'
expect 1 node flask-ctl.js "$FLASK_CTL_SOCKET" stop '{"mode": "gently"}'
show node flask-ctl.js "$FLASK_CTL_SOCKET" stop '{"grace": 10}'
expect 3 flask-ctl ping
