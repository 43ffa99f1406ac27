"""A seeded short-video world: it writes logs, and says what a user would do with a session."""
