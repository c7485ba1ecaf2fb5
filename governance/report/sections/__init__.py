"""The report's sections: each turns a summary into one piece of markup and claims nothing beyond its numbers."""
