"""The learning record store: statements and documents of the Experience API (xAPI)."""
