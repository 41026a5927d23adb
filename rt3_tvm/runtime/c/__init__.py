"""The C runtime of a bundle: sources that are compiled into it, and the headers of its API."""
