"""Fetching pictures from the web: which addresses may be reached, and one bounded fetch after the other."""
