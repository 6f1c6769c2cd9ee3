"""A single-host GPU daemon for speech-to-text."""

__version__ = "0.1.0"
