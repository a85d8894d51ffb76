"""What every trainer's run shares: its directory, its numbers, its face, and how it ends."""
