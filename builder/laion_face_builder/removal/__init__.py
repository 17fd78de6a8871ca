"""Take rows and pictures down wherever they are, and prove that none is left."""
