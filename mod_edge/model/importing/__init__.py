"""Published weights in: folders of Hugging Face models become a mod-edge checkpoint."""
