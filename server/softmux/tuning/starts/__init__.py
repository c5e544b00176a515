"""Where a task begins: from another, from the best of a bank, anew."""
