"""Fetch what is published, from the Hub and elsewhere: found, copied in resumable pieces, checked."""
