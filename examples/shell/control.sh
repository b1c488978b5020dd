#!/bin/sh
# control.sh SOCKET COMMAND [KEY=VALUE ...]: a client that needs only netcat (OpenBSD's, or ncat).
# The answer is text; the exit code is 1 for an error, 3 if nothing is running.
set -eu
socket=$1
shift
answer=$(echo "$*" | nc -U "$socket") || { echo "nothing is running at $socket" >&2; exit 3; }
printf '%s\n' "$answer"
case $answer in error:*) exit 1 ;; esac
