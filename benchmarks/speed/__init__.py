"""What runtime.py measures, against whom, and the page that it makes of it."""
