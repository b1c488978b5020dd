#!/bin/sh
# Install the packages of Debian that are not there; fails, and names them, if they can't be had.
set -eu
missing() {
    for package; do
        dpkg-query --show --showformat='${Status}' "$package" 2>/dev/null | grep -q "ok installed" || echo "$package"
    done
}
wanted=$(missing "$@")
if [ -n "$wanted" ]; then
    root=""
    [ "$(id -u)" = 0 ] || root=sudo
    $root apt-get update -qq
    # shellcheck disable=SC2086
    $root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 install -y -qq --no-install-recommends $wanted
fi
wanted=$(missing "$@")
[ -z "$wanted" ] || { echo "not installed: $wanted" >&2; exit 1; }
