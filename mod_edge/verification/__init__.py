"""How `mod-edge verify` judges: what is recorded, on which backends it is run, what is allowed."""
