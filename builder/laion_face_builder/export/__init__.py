"""What is prepared or on the web, as files that other programs read: pictures, crops, tars, lists, tables."""
