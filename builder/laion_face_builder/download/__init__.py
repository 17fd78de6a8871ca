"""Download pictures to disk, laid out as img2dataset does; nothing else in the project uses img2dataset."""
