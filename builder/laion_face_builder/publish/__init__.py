"""What is prepared, written as a repo that anybody can read without code; and sent to a folder or the Hub."""
