"""Time and memory of the machine, and other runtimes to race against."""
