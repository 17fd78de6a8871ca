"""What is published, and how it is had: files from the Hub and elsewhere, and the customs desk for pickles."""
