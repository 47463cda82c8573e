"""What carries a round's messages between its parties."""
