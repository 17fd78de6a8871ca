"""From rows and pictures to the examples that `datasets` yields."""
