# Everything runs from .venv, which the first target that needs it makes: `make demo` and `make test` work on a bare machine.
TORCH ?= cuda
PY := .venv/bin/python
# A stamp per purpose, named by the requirements it was made from: a changed file makes pip run again.
RUN_STAMP := .venv/$(TORCH)-run-$(shell cat requirements.txt requirements-$(TORCH).txt | cksum | cut -d' ' -f1)
PEERS_STAMP := .cache/bench-peers/$(shell cksum <bench/requirements-peers.txt | cut -d' ' -f1)
DEV_STAMP := .venv/$(TORCH)-dev-$(shell cat requirements.txt requirements-$(TORCH).txt requirements-dev.txt | cksum | cut -d' ' -f1)

.PHONY: help demo run test check parity chaos fuzz bench bench-memory bench-queue bench-engine bench-diarize screenshots doctor format venv

help: ## what can be made
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "  make %-13s %s\n", $$1, $$2 }'
	@echo
	@echo "  TORCH=rocm takes the packages for AMD GPUs; PYTHON=… names the interpreter."

demo: $(RUN_STAMP) ## a conversation through a real daemon: who says what, callback, times
	@deploy/system-packages.sh --optional ffmpeg
	@$(PY) -m gpu_daemon demo

run: $(RUN_STAMP) ## start the daemon; its settings come from the environment and .env
	@deploy/system-packages.sh --optional ffmpeg
	@$(PY) run.py

test: $(DEV_STAMP) ## everything that CI runs: format, lint, types, imports, tests
	@{ deploy/system-packages.sh ffmpeg espeak-ng curl && deploy/system-packages.sh --optional chromium && deploy/javascript.sh; } & \
	programs=$$!; $(MAKE) --no-print-directory check; checked=$$?; wait $$programs && exit $$checked
	$(PY) -m pytest --numprocesses=logical --maxprocesses=4 --dist=worksteal

check: $(DEV_STAMP) ## the part of `test` that only reads the code
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	.venv/bin/lint-imports --no-logo

parity: $(DEV_STAMP) ## does the engine hear exactly what whisper.transcribe hears? 70 minutes of audio (ARGUMENTS)
	@deploy/system-packages.sh espeak-ng
	$(PY) -W ignore -m tests.parity.sweep $(ARGUMENTS)

JOBS ?= 2000
KILLS ?= 40
chaos: $(DEV_STAMP) ## 2,000 jobs through 40 kills of daemon, runner, database, receiver: what was lost? (JOBS, KILLS, SEED)
	@deploy/system-packages.sh ffmpeg
	$(PY) -m tests.chaos --jobs $(JOBS) --kills $(KILLS) $(if $(SEED),--seed $(SEED))

EXAMPLES ?= 50
fuzz: $(DEV_STAMP) ## Schemathesis on the OpenAPI document: every route, boundary and link (EXAMPLES)
	@deploy/system-packages.sh ffmpeg
	$(PY) -m tests.fuzz --examples $(EXAMPLES)

bench: $(DEV_STAMP) ## latency of /health under load and with 300 pages open, memory during a large upload
	@deploy/system-packages.sh ffmpeg espeak-ng
	$(PY) -m bench.health_latency
	$(PY) -m bench.viewers
	$(PY) -m bench.upload_memory

bench-memory: $(DEV_STAMP) ## memory of a runner over 500 jobs: 150 s of processor time
	@deploy/system-packages.sh espeak-ng
	$(PY) -m bench.runner_memory

bench-queue: $(DEV_STAMP) $(PEERS_STAMP) ## jobs that take no time, beside Celery and RQ on Redis
	@deploy/system-packages.sh redis-server
	$(PY) -m bench.queue

FILES ?= 1 8
bench-engine: $(DEV_STAMP) $(PEERS_STAMP) ## the engine beside whisper.transcribe and faster-whisper, same weights (FILES, ARGUMENTS)
	@deploy/system-packages.sh espeak-ng
	$(PY) -m bench.engine --files $(FILES) $(ARGUMENTS)
	$(PY) -m bench.engine --files $(FILES) --model demo $(ARGUMENTS)

bench-diarize: $(DEV_STAMP) ## who speaks, beside pyannote.audio as it is, same weights: time, memory, errors (ARGUMENTS)
	@deploy/system-packages.sh espeak-ng
	$(PY) -W ignore -m bench.diarize $(ARGUMENTS)

screenshots: $(DEV_STAMP) ## the pictures of the README, from a real daemon
	@deploy/system-packages.sh ffmpeg espeak-ng chromium
	$(PY) -m tests.browser.screenshots

doctor: $(RUN_STAMP) ## what would keep the daemon from working on this machine
	@$(PY) -m gpu_daemon doctor

format: $(DEV_STAMP) ## write the code the way `check` wants it
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

venv: $(RUN_STAMP) ## only the virtual environment

$(RUN_STAMP):
	@deploy/make-venv.sh $(TORCH)
	@rm -f .venv/*-run-* .venv/*-dev-*
	@touch $@

$(PEERS_STAMP): $(RUN_STAMP)
	@$(PY) -m venv --clear .cache/bench-peers
	@.cache/bench-peers/bin/python -m pip install --quiet --no-input --disable-pip-version-check -r bench/requirements-peers.txt
	@touch $@

$(DEV_STAMP): $(RUN_STAMP)
	@deploy/make-venv.sh tools
	@rm -f .venv/*-dev-*
	@touch $@
