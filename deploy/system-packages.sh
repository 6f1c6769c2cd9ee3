#!/bin/sh
# Sees to it that these programs are there: system-packages.sh [--optional] PROGRAM...
# As root on Debian or Ubuntu it installs what is missing; elsewhere it says in one line what to type, and ends with 1.
# With --optional there is a way without them: it installs them if it can and says nothing if it cannot.
set -eu

optional=no
if [ "${1:-}" = --optional ]; then
    optional=yes
    shift
fi

missing=""
for program in "$@"; do
    command -v "$program" >/dev/null 2>&1 || missing="$missing $program"
done
missing=${missing# }
[ -n "$missing" ] || exit 0

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "Installing $missing with apt-get …"
    log=$(mktemp)
    # shellcheck disable=SC2086 # a list of words
    if DEBIAN_FRONTEND=noninteractive apt-get -qq update >"$log" 2>&1 &&
        DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $missing >>"$log" 2>&1; then
        rm -f "$log"
        exit 0
    fi
    [ "$optional" = yes ] || tail -n 5 "$log" >&2
    rm -f "$log"
fi
[ "$optional" = no ] || exit 0

# The programs are called like their packages, save for Fedora's ffmpeg.
if command -v apt-get >/dev/null 2>&1; then
    install="sudo apt-get install $missing"
elif command -v dnf >/dev/null 2>&1; then
    install="sudo dnf install $(echo "$missing" | sed 's/ffmpeg/ffmpeg-free/')"
elif command -v pacman >/dev/null 2>&1; then
    install="sudo pacman -S $missing"
elif command -v brew >/dev/null 2>&1; then
    install="brew install $missing"
else
    install="install $missing"
fi
echo "Missing: $missing. Type: $install" >&2
exit 1
