"""Scenemask segments whole satellite and aerial scenes."""
