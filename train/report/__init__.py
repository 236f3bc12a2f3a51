"""What a run shows a person: one file a kind of page."""
