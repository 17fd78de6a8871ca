"""Publish prepared parts to a folder or the Hub, as files that anybody can read without code."""
