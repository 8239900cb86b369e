"""The `mod-edge` commands: each parses, calls one library function and prints."""
