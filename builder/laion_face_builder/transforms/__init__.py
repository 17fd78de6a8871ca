"""Faces out of pictures: crops, alignments and drawings, with the annotations kept in step."""
