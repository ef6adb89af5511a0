"""The command `scenemask`."""

from pipeline.cli.app import main

__all__ = ["main"]
