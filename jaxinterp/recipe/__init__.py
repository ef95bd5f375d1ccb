"""What a run is: its configuration, its family, its evaluation and its page."""
