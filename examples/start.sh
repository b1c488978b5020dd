# What the examples have in common: a temporary directory, an app that is stopped at the end, and a way to fail.
# Usage: . ../start.sh
set -eu
place=$(mktemp -d)
export XDG_RUNTIME_DIR="$place"
trap 'jobs=$(jobs -p); [ -z "$jobs" ] || kill $jobs 2>/dev/null || :; wait; rm -rf "$place"' EXIT
EXAMPLES=$(cd .. && pwd)
cp -R . "$place/app"
cd "$place/app"

show() {
    printf '$ %s\n' "$*"
    "$@"
}

# expect CODE COMMAND...: the command has to end with this exit code.
expect() {
    wanted=$1
    shift
    code=0
    show "$@" || code=$?
    [ "$code" = "$wanted" ] || { echo "exit code $code instead of $wanted" >&2; exit 1; }
}
