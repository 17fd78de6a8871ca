"""Pictures on the disk: fetched by the one engine, written by img2dataset's parts, read row by row. None else knows it."""
