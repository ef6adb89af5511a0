"""What a person sees: preview pictures, summaries."""
