"""`python run.py` is `python -m gpu_daemon serve`."""

from gpu_daemon.cli import main

if __name__ == "__main__":
    main(["serve"])
