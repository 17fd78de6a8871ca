"""Fetch what is published, from the Hub and elsewhere, and read its pickles safely."""
