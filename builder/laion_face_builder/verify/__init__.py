"""Verify what is prepared, downloaded and published: whatever is wrong, a line each."""
