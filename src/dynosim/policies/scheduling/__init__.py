"""Orders of the waiting queue, one per file; the file's name is the policy's name."""
