"""Reference-based rewards."""
