"""The one table: ids, detections and metadata in, an index part out; and reading it again."""
