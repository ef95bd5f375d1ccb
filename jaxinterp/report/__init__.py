"""Results files, the tables made from them, and the page that shows a run."""
