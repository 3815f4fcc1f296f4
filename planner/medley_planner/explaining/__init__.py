"""Why this mix and no other, and how far that holds."""
