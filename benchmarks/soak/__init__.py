"""A long stream through capture thread, session and event file, and the judge of its samples."""
