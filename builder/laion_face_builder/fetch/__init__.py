"""Pictures from the web, one at a time: which addresses may be reached, and one bounded fetch after the other."""
