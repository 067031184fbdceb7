"""Decoding, metrics, significance and the report."""
