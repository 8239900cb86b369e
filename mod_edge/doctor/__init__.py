"""What this machine can run and what it lacks: the facts, and what to do about them."""
