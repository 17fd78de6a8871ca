"""Contact sheets and statistics for people to look at, as self-contained pages."""
