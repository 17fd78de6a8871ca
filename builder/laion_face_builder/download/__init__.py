"""Pictures on the disk: img2dataset driven and checked, its tars read row by row. Nothing else knows img2dataset."""
