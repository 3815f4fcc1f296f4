"""What the operator tells people: statuses with conditions, and events."""
