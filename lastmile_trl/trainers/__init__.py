"""Trainers that TRL lacks."""
