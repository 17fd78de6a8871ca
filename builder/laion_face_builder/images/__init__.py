"""Pictures as bytes: what they are, whether they decode, which way up; and short names for what went wrong."""
