"""A run: its configuration, its family, its evaluation and its page."""
