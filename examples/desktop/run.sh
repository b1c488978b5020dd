#!/bin/sh
# The program ends when its window is closed, and no request is lost.
. ../start.sh
show python notes.py >out
cat out
grep -q "saved: buy ink" out
