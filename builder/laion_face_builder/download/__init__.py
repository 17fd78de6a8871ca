"""Pictures on the disk: fetched by the one engine, written by img2dataset's parts, which nothing else knows."""
