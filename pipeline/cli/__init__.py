"""The command `scenemask`."""
