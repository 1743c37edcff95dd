"""From samples to forward passes, whatever is done with them."""
