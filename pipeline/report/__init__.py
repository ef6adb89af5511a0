"""What a person sees of a finished run: preview and report."""

from pipeline.report.preview import read_overview_mask, write_preview

__all__ = ["read_overview_mask", "write_preview"]
