#!/bin/sh
# Puts the JavaScript packages of tests/javascript into .cache/javascript. Where there is no Node.js, and none to be had,
# or no registry that answers, it says so and ends with 0: the tests that need them are skipped then, and say why.
set -eu
from=tests/javascript
into=.cache/javascript
installed=$into/installed-$(cat $from/package-lock.json $from/.npmrc | cksum | cut -d' ' -f1)
[ ! -e "$installed" ] || exit 0

command -v node >/dev/null 2>&1 || deploy/system-packages.sh --optional nodejs
command -v npm >/dev/null 2>&1 || deploy/system-packages.sh --optional npm
if ! command -v node >/dev/null 2>&1 || ! command -v npm >/dev/null 2>&1; then
    echo "Node.js and npm are missing: tests of JavaScript clients will be skipped." >&2
    exit 0
fi
rm -rf "$into"
mkdir -p "$into"
cp $from/package.json $from/package-lock.json $from/.npmrc "$into"
if ! npm ci --prefix "$into" --ignore-scripts --no-progress --silent; then
    echo "npm could not install tests/javascript: tests of JavaScript clients will be skipped." >&2
    rm -rf "$into"
    exit 0
fi
touch "$installed"
