"""Pretrained encoders: run in an environment of their own (`make test-encoders`)."""
