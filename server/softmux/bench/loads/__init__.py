"""What is asked, when, of what, and what became of it: the load that every server and engine is given alike."""
