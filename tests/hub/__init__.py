"""A Hub on this machine, for tests that push to one, pull from it or stream from it."""
