"""What people use a model with: the command that fills blanks, the page, the server."""
