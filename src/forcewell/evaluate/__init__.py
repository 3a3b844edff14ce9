"""Judging models: one file per question."""
