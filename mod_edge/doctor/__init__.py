"""`mod-edge doctor`: facts about this machine, and findings with their fixes."""
