"""Files of weights, read as they are: a module a format."""
