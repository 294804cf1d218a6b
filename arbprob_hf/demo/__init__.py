"""A page on which a text is asked about: what it computes, and how it is shown."""
