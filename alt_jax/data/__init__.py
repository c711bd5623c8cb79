"""From raw files to batches of value ids, and prompts put together from them."""
