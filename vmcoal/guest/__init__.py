"""Images, seed and the agent channel."""
