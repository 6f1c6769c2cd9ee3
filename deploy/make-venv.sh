#!/bin/sh
# Makes or completes .venv: make-venv.sh cuda|rocm|tools. Called by the Makefile when a requirements file has changed.
# `tools` are those of requirements-dev.txt, on top of one of the others.
# PYTHON names the interpreter, else the first suitable one of those usually there is taken.
set -eu
what=$1

suitable() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' >/dev/null 2>&1
}

python=""
for candidate in ${PYTHON:-python3 python3.12 python3.11 python3.13}; do
    if suitable "$candidate"; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    echo "Python 3.11, 3.12 or 3.13 is needed. Install one, or name it: make PYTHON=/path/to/python3.12" >&2
    exit 1
fi
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')

if ! "$python" -c 'import venv, ensurepip' >/dev/null 2>&1; then
    # Debian and Ubuntu ship these two in a package of their own.
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        echo "Installing python$version-venv with apt-get …"
        DEBIAN_FRONTEND=noninteractive apt-get -qq update >/dev/null
        DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "python$version-venv" >/dev/null
    else
        echo "Python's venv module is missing. Type: sudo apt-get install python$version-venv" >&2
        exit 1
    fi
fi

if ! .venv/bin/python -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$version')" >/dev/null 2>&1; then
    echo "Making .venv with Python $version …"
    "$python" -m venv --clear .venv
fi

begun=$(date +%s)
pip="env PIP_DISABLE_PIP_VERSION_CHECK=1 .venv/bin/python -m pip install --quiet --quiet --no-input --no-compile"
if [ "$what" = tools ]; then
    echo "Installing the tools of requirements-dev.txt …"
    grep -v '^-r ' requirements-dev.txt >.venv/tools.txt
    $pip -r .venv/tools.txt
else
    echo "Installing the packages of requirements-$what.txt (2 to 5 minutes and 6 GB of disk when new) …"
    $pip -r "requirements-$what.txt"
    if [ "$what" = rocm ]; then
        # Without its dependencies: see requirements-rocm.txt.
        $pip --no-deps "$(grep '^openai-whisper==' requirements-cuda.txt)"
    fi
fi
# pip would compile them one after the other. Some are templates, and not Python: nobody imports them.
.venv/bin/python -m compileall -qq -j 0 .venv/lib || true
echo "They are in place after $(($(date +%s) - begun)) s."
