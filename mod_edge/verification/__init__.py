"""`mod-edge verify`: recorded inputs, the backends that run them, and the allowed errors."""
