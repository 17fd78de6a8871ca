"""Make the index from ids, detections and metadata, a file for each part, and read it again."""
